from statistics import fmean, pstdev

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from llama_index_ziprerank.reranking import ListwiseReranker
from llama_index_ziprerank.reranking.fusion import fuse, standardised

numbers = st.floats(-100, 100, width=32)
pairs = st.lists(st.tuples(numbers, numbers), min_size=3, max_size=20)


def _by_hand(values: list[float]) -> list[float]:
    return [(value - fmean(values)) / pstdev(values) for value in values]


@given(pairs, st.floats(0.01, 10))
def test_the_order_is_that_of_the_weighted_sum_of_standardised_scores(
    scored: list[tuple[float, float]], weight: float
) -> None:
    logits, first = map(list, zip(*scored, strict=True))
    assume(pstdev(logits) > 0.01 and pstdev(first) > 0.01)
    sums = [a + weight * b for a, b in zip(_by_hand(logits), _by_hand(first), strict=True)]
    fused = fuse(logits, standardised(first), weight)
    assert _by_hand([*fused, 1e3]) == pytest.approx(
        _by_hand([*(fmean(logits) + pstdev(logits) * one for one in sums), 1e3]), abs=1e-5
    )


@given(pairs)
def test_the_unit_and_the_offset_of_the_first_stage_do_not_matter(scored: list[tuple[float, float]]) -> None:
    _, first = map(list, zip(*scored, strict=True))
    assume(pstdev(first) > 0.01)
    assert standardised([3 * score + 7 for score in first]) == pytest.approx(standardised(first), abs=1e-4)


@pytest.mark.parametrize(
    "first",
    [
        [None, None, None],
        [2.0, 2.0, 2.0],
        [1.0, 1.0, 0.9999999999999999],
        [0.0, 0.0, 0.0],
        [float("nan"), 1.0, None, 3.0],
        [0.5, 0.51],
        [0.5],
        [],
    ],
    ids="none equal rounding zero two-known two one empty".split(),
)
def test_a_first_stage_that_says_nothing_changes_nothing(first: list[float | None]) -> None:
    assert standardised(first) == [0.0] * len(first)


def test_a_page_without_a_score_keeps_its_logit_and_the_others_are_fused() -> None:
    scores = standardised([None, 1.0, 3.0, float("inf"), 2.0])
    assert (scores[0], scores[3], scores[4]) == (0.0, 0.0, 0.0)
    assert scores[1] == pytest.approx(-scores[2]) == pytest.approx(-(1.5**0.5))


@pytest.mark.parametrize("unit", [1e308, 1e-300])
def test_scores_near_the_ends_of_what_a_float_holds_are_no_trouble(unit: float) -> None:
    scores = standardised([0.2 * unit, 0.4 * unit, 0.9 * unit])
    assert scores == pytest.approx(standardised([0.2, 0.4, 0.9]))


def test_the_first_stage_moves_pages_as_far_as_its_weight_says(
    reranker: ListwiseReranker, pages: list[Image.Image]
) -> None:
    scores: list[float | None] = [float(i) for i in range(8)]
    alone = reranker.rerank("axis", pages[:8])
    assert reranker.rerank("axis", pages[:8], first_stage_scores=scores) == alone  # this checkpoint has no weight
    fused = reranker.rerank("axis", pages[:8], first_stage_scores=scores, first_stage_weight=1)
    assert fused.logits == alone.logits
    assert fused.order == sorted(range(8), key=lambda i: -fuse(alone.logits, standardised(scores), 1)[i]) != alone.order
    for weight in (1000, 1e40):
        ruled = reranker.rerank("axis", pages[:8], first_stage_scores=scores, first_stage_weight=weight)
        assert ruled.order == list(range(7, -1, -1))
        assert [ruled.scores[i] for i in ruled.order] == sorted(ruled.scores, reverse=True)
        assert sum(ruled.scores) == pytest.approx(1)


def test_of_two_pages_the_model_decides(reranker: ListwiseReranker, pages: list[Image.Image]) -> None:
    alone = reranker.rerank("axis", pages[:2])
    for scores in ([0.5, 0.51], [0.51, 0.5]):
        assert reranker.rerank("axis", pages[:2], first_stage_scores=scores, first_stage_weight=1) == alone


def test_scores_of_other_number_types_are_numbers_too(reranker: ListwiseReranker, pages: list[Image.Image]) -> None:
    scores = [0.25, 0.5, None, 2.0]
    expected = reranker.rerank("axis", pages[:4], first_stage_scores=scores, first_stage_weight=1)
    others = [torch.tensor(0.25), np.float32(0.5), None, 2]
    assert reranker.rerank("axis", pages[:4], first_stage_scores=others, first_stage_weight=1) == expected  # type: ignore[arg-type]


def test_windows_that_are_read_in_several_orders_are_fused_once(
    reranker: ListwiseReranker, pages: list[Image.Image]
) -> None:
    scores: list[float | None] = [1.0, 5.0, 2.0, 4.0]
    alone = reranker.rerank("axis", pages[:4], permutations=3)
    fused = reranker.rerank("axis", pages[:4], permutations=3, first_stage_scores=scores, first_stage_weight=1)
    moved = torch.tensor(fuse(alone.logits, standardised(scores), 1))
    assert fused.logits == alone.logits
    assert fused.scores == pytest.approx(moved.softmax(0).tolist())


@pytest.mark.parametrize("strategy", ["sliding", "parallel", "blocks"])
def test_in_a_long_list_each_window_is_fused(reranker: ListwiseReranker, pages: list[Image.Image], strategy) -> None:
    scores: list[float | None] = [float(i) for i in range(12)]
    ranking = reranker.rerank(
        "axis", pages[:12], window=5, stride=2, strategy=strategy, first_stage_scores=scores, first_stage_weight=1000
    )
    assert ranking.order[:3] == [11, 10, 9]


@pytest.mark.parametrize("weight", [-0.1, float("inf"), float("nan")])
def test_weights_out_of_bounds_are_refused(reranker: ListwiseReranker, pages: list[Image.Image], weight: float) -> None:
    with pytest.raises(ValueError, match="first_stage_weight"):
        reranker.rerank("axis", pages[:2], first_stage_weight=weight)


def test_scores_that_are_not_one_a_page_are_refused(reranker: ListwiseReranker, pages: list[Image.Image]) -> None:
    with pytest.raises(ValueError, match="got 3 for 2 pages"):
        reranker.rerank("axis", pages[:2], first_stage_scores=[1.0, 2.0, 3.0])
