"""Which wrong pages are mined, and which pairs stand in one batch: rules that need no model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from training_lists import MakeRecipe, colour_lists

from llama_index_ziprerank.training.retriever.mining import choose
from llama_index_ziprerank.training.retriever.pairs import ApartSampler, Corpus, Pairs, Question, collect
from llama_index_ziprerank.training.retriever.search import Found, _merged
from llama_index_ziprerank.training.samples import RankingSample

FOUND = Found([4, 1, 0, 2, 5], [9.9, 9.6, 10.0 - 1, 8.0, 7.0], right=10.0)
QUESTION = Question("which?", frozenset({1}))


def test_wrong_pages_are_the_best_within_the_margin(recipe: MakeRecipe) -> None:
    assert choose(QUESTION, FOUND, recipe(data="x", mined=2), 9) == [0, 2]  # 4 scores above 9.5, 1 is right
    assert choose(QUESTION, FOUND, recipe(data="x", mined=2, mining_margin=1.0), 9) == [4, 0]
    assert choose(QUESTION, FOUND, recipe(data="x", mined=2, mining_skip=1), 9) == [2, 5]


def test_where_too_few_are_within_the_margin_others_are_drawn_and_the_best_come_last(recipe: MakeRecipe) -> None:
    chosen = choose(QUESTION, FOUND, recipe(data="x", mined=6), 8)
    assert chosen[:3] == [0, 2, 5]
    assert set(chosen[3:5]) == {3, 6} or set(chosen[3:6]) == {3, 6, 7}
    assert len(set(chosen)) == 6 and 1 not in chosen
    assert choose(QUESTION, FOUND, recipe(data="x", mined=6), 7)[-1] == 4


def test_what_processes_found_in_parts_is_what_one_finds_in_all() -> None:
    parts = [Found([0, 2], [3.0, 1.0], 1.0), Found([1, 3], [3.0, 2.0], -1.0)]
    assert _merged(parts, 3) == Found([0, 1, 3], [3.0, 3.0, 2.0], 1.0)


def test_equal_pages_and_equal_questions_are_one() -> None:
    red, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    lists = [
        RankingSample("a", [red, blue], [1], frozenset([0])),
        RankingSample("a", [blue, red], [1, 0]),
        RankingSample("b", [blue.copy(), "text"], [0]),
    ]
    corpus = collect(lists, 32)
    assert len(corpus.pages) == 3
    assert corpus.questions == [Question("a", frozenset([0])), Question("b", frozenset([1]))]


def sampled(relevant: list[set[int]], batch: int, epoch: int = 0) -> tuple[Pairs, list[int]]:
    questions = [Question(str(number), frozenset(pages)) for number, pages in enumerate(relevant)]
    pairs = Pairs(Corpus([""] * 13, questions, 32))
    sampler = ApartSampler(pairs, batch, seed=1)
    sampler.set_epoch(epoch)
    return pairs, list(sampler)


@given(st.lists(st.sets(st.integers(0, 12), min_size=1, max_size=3), min_size=1, max_size=12), st.integers(2, 5))
def test_every_pair_comes_once(relevant: list[set[int]], batch: int) -> None:
    pairs, order = sampled(relevant, batch)
    assert sorted(order) == list(range(len(pairs)))


@given(st.integers(0, 20))
def test_a_page_that_answers_another_question_of_the_batch_is_not_in_it(epoch: int) -> None:
    """Three questions have page 0, and three page 1: each goes with one of the other kind."""
    pairs, order = sampled([{0}, {0}, {0}, {1}, {1}, {1}], 2, epoch)
    for start in range(0, 6, 2):
        assert {pairs.pairs[index][1] for index in order[start : start + 2]} == {0, 1}


@pytest.mark.parametrize("count", [4, 8])
def test_epochs_have_orders_of_their_own(count: int) -> None:
    sampler = ApartSampler(Pairs(collect(colour_lists(count), 32)), 2, seed=1)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]
