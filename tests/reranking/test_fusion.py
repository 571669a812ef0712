from statistics import fmean, pstdev

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from llama_index_ziprerank.reranking import ListwiseReranker
from llama_index_ziprerank.reranking.fusion import fuse

numbers = st.floats(-100, 100, width=32)
pairs = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=20)


def _standardised(values: list[float]) -> list[float]:
    return [(value - fmean(values)) / pstdev(values) for value in values]


@given(pairs, st.floats(0.01, 10))
def test_the_order_is_that_of_the_weighted_sum_of_standardised_scores(
    scored: list[tuple[float, float]], weight: float
) -> None:
    logits, first = map(list, zip(*scored, strict=True))
    assume(pstdev(logits) > 0.01 and pstdev(first) > 0.01)
    sums = [a + weight * b for a, b in zip(_standardised(logits), _standardised(first), strict=True)]
    assert _standardised(fuse(logits, first, weight)) == pytest.approx(_standardised(sums), abs=1e-5)


@given(pairs)
def test_the_unit_and_the_offset_of_the_first_stage_do_not_matter(scored: list[tuple[float, float]]) -> None:
    logits, first = map(list, zip(*scored, strict=True))
    assume(pstdev(first) > 0.01)
    assert fuse(logits, [3 * score + 7 for score in first], 1) == pytest.approx(fuse(logits, first, 1), abs=1e-3)


@pytest.mark.parametrize(
    ("first", "weight"),
    [([3.0, 1.0, 2.0], 0), ([None, None, None], 1), ([2.0, 2.0, 2.0], 1), ([float("nan"), 1.0, None], 1)],
    ids="no-weight no-scores equal-scores one-score".split(),
)
def test_a_first_stage_that_says_nothing_changes_nothing(first: list[float | None], weight: float) -> None:
    assert fuse([1.0, 5.0, 2.0], first, weight) == [1.0, 5.0, 2.0]


def test_a_page_without_a_score_keeps_its_logit_and_the_others_are_fused() -> None:
    fused = fuse([1.0, 5.0, 2.0, 0.0], [None, 1.0, 3.0, float("inf")], 1)
    assert (fused[0], fused[3]) == (1.0, 0.0)
    assert fused[1] < 5.0 and fused[2] > 2.0


def test_the_first_stage_moves_pages_as_far_as_its_weight_says(
    reranker: ListwiseReranker, pages: list[Image.Image]
) -> None:
    scores: list[float | None] = [float(i) for i in range(8)]
    alone = reranker.rerank("axis", pages[:8])
    assert reranker.rerank("axis", pages[:8], first_stage_scores=scores) == alone  # this checkpoint has no weight
    fused = reranker.rerank("axis", pages[:8], first_stage_scores=scores, first_stage_weight=1)
    assert fused.logits == alone.logits
    assert fused.order == sorted(range(8), key=lambda i: -fuse(alone.logits, scores, 1)[i]) != alone.order
    ruled = reranker.rerank("axis", pages[:8], first_stage_scores=scores, first_stage_weight=1000)
    assert ruled.order == list(range(7, -1, -1))
    assert [ruled.scores[i] for i in ruled.order] == sorted(ruled.scores, reverse=True)


@pytest.mark.parametrize("strategy", ["sliding", "parallel", "blocks"])
def test_in_a_long_list_each_window_is_fused(reranker: ListwiseReranker, pages: list[Image.Image], strategy) -> None:
    scores: list[float | None] = [float(i) for i in range(12)]
    ranking = reranker.rerank(
        "axis", pages[:12], window=5, stride=2, strategy=strategy, first_stage_scores=scores, first_stage_weight=1000
    )
    assert ranking.order[:3] == [11, 10, 9]


def test_a_checkpoint_may_bring_its_own_weight(reranker: ListwiseReranker, pages: list[Image.Image]) -> None:
    scores: list[float | None] = [float(i) for i in range(8)]
    alone = reranker.rerank("axis", pages[:8])
    fused = reranker.rerank("axis", pages[:8], first_stage_scores=scores, first_stage_weight=1)
    reranker.model.config.first_stage_weight = 1.0
    try:
        assert reranker.rerank("axis", pages[:8], first_stage_scores=scores) == fused
        assert reranker.rerank("axis", pages[:8], first_stage_scores=scores, first_stage_weight=0) == alone
        assert reranker.rerank("axis", pages[:8]) == alone
    finally:
        del reranker.model.config.first_stage_weight


def test_nano_weighs_both_stages_the_same() -> None:
    assert ListwiseReranker.from_pretrained("nano", device="cpu").model.config.first_stage_weight == 1.0


@pytest.mark.parametrize("weight", [-0.1, float("inf"), float("nan")])
def test_weights_out_of_bounds_are_refused(reranker: ListwiseReranker, pages: list[Image.Image], weight: float) -> None:
    with pytest.raises(ValueError, match="first_stage_weight"):
        reranker.rerank("axis", pages[:2], first_stage_weight=weight)


def test_scores_that_are_not_one_a_page_are_refused(reranker: ListwiseReranker, pages: list[Image.Image]) -> None:
    with pytest.raises(ValueError, match="got 3 for 2 pages"):
        reranker.rerank("axis", pages[:2], first_stage_scores=[1.0, 2.0, 3.0])
