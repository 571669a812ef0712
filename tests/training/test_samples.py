import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llama_index_ziprerank.training.samples import (
    RankingSample,
    SampleError,
    cut_candidates,
    sample_from_row,
    sample_to_row,
    shuffle_candidates,
    target_order,
    target_ranks,
)


@st.composite
def samples(draw: st.DrawFn) -> RankingSample:
    n = draw(st.integers(2, 20))
    order = draw(st.permutations(range(n)))[: draw(st.integers(1, n))]
    positives = draw(st.frozensets(st.integers(0, n - 1), max_size=3))
    return RankingSample("query", [f"text {i}" for i in range(n)], order, positives)


def by_text(sample: RankingSample) -> tuple[list[object], set[object]]:
    """The order and the positives as texts, so that samples shown differently can be compared."""
    return [sample.pages[i] for i in sample.order], {sample.pages[i] for i in sample.positives}


def test_positives_come_first_and_the_teacher_orders_the_rest() -> None:
    assert target_order([3, 0, 2], {2}) == [2, 3, 0]
    assert target_order([3, 0, 2], {1, 0}) == [0, 1, 3, 2]


def test_candidates_that_nobody_ranked_share_the_rank_behind_the_last() -> None:
    assert target_ranks([3, 0], {2}, 5) == [2, 3, 0, 1, 3]


def test_a_cut_keeps_the_teachers_best_in_their_given_order() -> None:
    sample = RankingSample("q", list("abcde"), [4, 2, 0, 1, 3])
    cut = cut_candidates(sample, 3)
    assert cut.pages == ["a", "c", "e"]
    assert by_text(cut)[0] == ["e", "c", "a"]


def test_a_positive_that_a_cut_would_lose_takes_the_last_place() -> None:
    cut = cut_candidates(RankingSample("q", list("abcde"), [4, 2, 0, 1, 3], frozenset({3})), 3)
    assert by_text(cut) == (["e", "c", "d"], {"d"})


def test_a_positive_never_makes_way_for_another() -> None:
    cut = cut_candidates(RankingSample("q", list("abcd"), [0, 1, 2, 3], frozenset({1, 3})), 2)
    assert by_text(cut) == (["b", "d"], {"b", "d"})


@pytest.mark.parametrize("order", [[3], [3, 0], [3, 2, 1, 0, 4]])
def test_the_favourite_stays_in_a_list_to_measure_on_that_names_no_positive(order: list[int]) -> None:
    cut = cut_candidates(RankingSample("q", list("abcde"), order), 2, as_given=True)
    assert cut.pages == ["a", "d"]
    assert cut.pages[cut.order[0]] == "d"


@given(samples(), st.integers(2, 20))
def test_a_cut_relabels_nothing(sample: RankingSample, most: int) -> None:
    cut = cut_candidates(sample, most)
    order, positives = by_text(cut)
    whole, known = by_text(sample)
    assert len(cut.pages) == min(most, len(sample.pages))
    assert positives <= known and (positives == known or len(known) > most)
    assert set(order) <= set(whole) | known
    unmoved = [text for text in order if text in whole]
    assert [whole.index(text) for text in unmoved] == sorted(whole.index(text) for text in unmoved)


@given(samples(), st.integers())
def test_shuffling_changes_only_where_candidates_stand(sample: RankingSample, seed: int) -> None:
    shuffled = shuffle_candidates(sample, seed)
    assert by_text(shuffled) == by_text(sample)
    assert sorted(map(str, shuffled.pages)) == sorted(map(str, sample.pages))
    assert shuffle_candidates(sample, seed).pages == shuffled.pages


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((" ", ["a", "b"], [0, 1]), "query is blank"),
        (("q", ["a"], [0]), "1 candidates, wanted at least 2"),
        (("q", ["a", "b"], []), "neither an order nor a positive"),
        (("q", ["a", "b"], [0, 0]), "twice"),
        (("q", ["a", "b"], [0, 2]), r"candidates \[2\] are named, but there are only 0..1"),
    ],
)
def test_a_list_that_teaches_nothing_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        RankingSample(*arguments)


def test_what_is_written_as_json_is_read_back(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    for pages in ([tmp_path / "a.png", tmp_path / "b.png"], ["one", "two"]):
        sample = RankingSample("query", pages, [1, 0], frozenset({0}))
        assert sample_from_row(json.loads(sample_to_row(sample)), tmp_path) == sample


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "q", "order": [0, 1]}, 'wanted either "pages" or "texts"'),
        ({"query": 7, "texts": ["a", "b"], "order": [0]}, 'a string as "query", got 7'),
        ({"query": "q", "texts": ["a", "b"], "order": ["0"]}, 'a list of int as "order"'),
        ({"query": "q", "texts": ["a", "b"], "ordre": [0]}, r"unknown columns \['ordre'\]"),
        ({"query": "q", "pages": ["a.png", "b.png"], "order": [0]}, "no image file 'a.png'"),
    ],
)
def test_a_row_that_is_none_says_why(row: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=message):
        sample_from_row(row, tmp_path)
