import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast, Qwen3VLProcessor

from llama_index_ziprerank.reranking import ListwiseReranker
from llama_index_ziprerank.reranking.permutation import (
    IDENTIFIERS,
    complete_order,
    format_permutation,
    identifier_token_ids,
    order_to_ranks,
    parse_permutation,
    ranks_to_order,
)

orders = st.integers(1, 20).flatmap(lambda n: st.permutations(range(n)))


@given(orders)
def test_order_and_ranks_are_inverse(order: list[int]) -> None:
    ranks = order_to_ranks(order)
    assert [ranks[candidate] for candidate in order] == list(range(len(order)))
    assert ranks_to_order(ranks) == order


@pytest.mark.parametrize("order", [[0, 0], [1, 2], [-1, 0]])
def test_what_is_no_permutation_has_no_ranks(order: list[int]) -> None:
    with pytest.raises(ValueError, match="exactly once"):
        order_to_ranks(order)


@given(orders)
def test_parsing_undoes_formatting(order: list[int]) -> None:
    assert parse_permutation(format_permutation(order), len(order)) == order


def test_the_first_mention_of_a_known_letter_counts() -> None:
    assert parse_permutation("Sure: [C] > [A] > [C] > [F] > [AB] > B", 3) == [2, 0]


@given(orders, st.data())
def test_completing_keeps_the_named_and_loses_none(order: list[int], data: st.DataObject) -> None:
    named = order[: data.draw(st.integers(0, len(order)))]
    completed = complete_order(named, len(order))
    assert completed[: len(named)] == named
    assert sorted(completed) == list(range(len(order)))


@pytest.mark.parametrize("n", [0, 21])
def test_a_window_holds_one_to_twenty_pages(n: int) -> None:
    with pytest.raises(ValueError, match=rf"1 to 20 pages \(A-T\), got {n}\."):
        format_permutation(range(n))


def test_each_identifier_is_the_token_that_spells_it(
    reranker: ListwiseReranker, lower_casing_processor: Qwen3VLProcessor
) -> None:
    for tokenizer in (reranker.processor.tokenizer, lower_casing_processor.tokenizer):
        ids = identifier_token_ids(tokenizer, 20).tolist()
        assert tokenizer.convert_ids_to_tokens(ids) == list(IDENTIFIERS)


def test_a_tokenizer_without_the_letters_is_refused() -> None:
    core = Tokenizer(models.WordPiece({"[UNK]": 0, "[": 1}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")
    with pytest.raises(ValueError, match="needs 'A' to be one token"):
        identifier_token_ids(tokenizer, 3)


def test_a_tokenizer_that_confuses_two_letters_is_refused() -> None:
    core = Tokenizer(models.WordLevel({"[UNK]": 0, "A": 1, "B": 2}, unk_token="[UNK]"))
    core.normalizer = normalizers.Replace("B", "A")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")
    with pytest.raises(ValueError, match=r"gives two identifiers the same token: \[1, 1\]"):
        identifier_token_ids(tokenizer, 2)
