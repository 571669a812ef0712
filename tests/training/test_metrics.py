import math

import pytest

from llama_index_ziprerank.training.metrics import measure_order, metrics_table


def test_recall_is_the_part_of_the_relevant_that_was_found() -> None:
    assert measure_order([3, 1, 0, 2, 4], {3}) == {"recall@1": 1, "recall@3": 1, "recall@5": 1, "ndcg@5": 1}
    assert measure_order([3, 1, 0, 2, 4], {3, 2})["recall@3"] == 0.5


def test_ndcg_by_hand() -> None:
    """Relevant at ranks 2 and 4 of the best possible 1 and 2."""
    gain = 1 / math.log2(3) + 1 / math.log2(5)
    assert measure_order([0, 1, 2, 3], {1, 3})["ndcg@5"] == pytest.approx(gain / (1 + 1 / math.log2(3)))


def test_nothing_relevant_is_an_error_and_not_a_zero() -> None:
    with pytest.raises(ValueError, match="at least one relevant"):
        measure_order([0, 1], set())


def test_a_table_has_a_row_for_each_metric() -> None:
    table = metrics_table({"before": measure_order([0, 1], {1}), "after": measure_order([1, 0], {1})})
    assert "| recall@1 | 0.0 | 100.0 |" in table
