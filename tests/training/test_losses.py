import math

import pytest
import torch

from llama_index_ziprerank.training.losses import (
    STAGE1,
    STAGE2,
    Objective,
    language_model_loss,
    ranknet_loss,
    soft_ranking_loss,
)

LOG2 = math.log(2)


def test_ranknet_of_equal_scores_is_log_2_times_the_mean_weight() -> None:
    """Ranks 1, 2, 3: the pairs weigh 1/3, 1/4 and 1/5."""
    loss = ranknet_loss(torch.zeros(3), [0, 1, 2])
    assert loss.item() == pytest.approx(LOG2 * (1 / 3 + 1 / 4 + 1 / 5) / 3)


def test_ranknet_of_one_pair_by_hand() -> None:
    """softplus(1 - 3) / (1 + 2), and the other way round softplus(3 - 1) / 3."""
    scores = torch.tensor([3.0, 1.0])
    assert ranknet_loss(scores, [0, 1]).item() == pytest.approx(math.log1p(math.exp(-2)) / 3)
    assert ranknet_loss(scores, [1, 0]).item() == pytest.approx(math.log1p(math.exp(2)) / 3)


def test_ranknet_keeps_pairs_of_tied_scores_and_drops_pairs_of_tied_ranks() -> None:
    scores = torch.zeros(3, requires_grad=True)
    ranknet_loss(scores, [0, 1, 1]).backward()
    assert scores.grad is not None
    better, *worse = scores.grad.tolist()
    assert better == pytest.approx(-1 / 6)  # two pairs of weight 1/3, each with slope 1/2, over two
    assert worse == pytest.approx([1 / 12, 1 / 12])


def test_ranknet_needs_a_rank_for_each_score_and_two_different_ones() -> None:
    for ranks in ([0], [0, 0], [0, 1, 2]):
        with pytest.raises(ValueError, match="a rank for each score; got 2 scores"):
            ranknet_loss(torch.zeros(2), ranks)


def test_soft_ranking_of_equal_scores_is_log_n() -> None:
    assert soft_ranking_loss(torch.zeros(4), [2, 0, 1, 3], {1}).item() == pytest.approx(2 * LOG2)


def test_soft_ranking_by_hand() -> None:
    """Targets of B > A > C with decay 1/2 are 4/7, 2/7, 1/7; scores are log-probabilities themselves."""
    probabilities = torch.tensor([0.25, 0.5, 0.25])
    loss = soft_ranking_loss(probabilities.log(), [0, 2, 1], {1})
    assert loss.item() == pytest.approx((4 * LOG2 + 2 * 2 * LOG2 + 2 * LOG2) / 7)


def test_soft_ranking_is_least_where_the_scores_are_the_target() -> None:
    scores = torch.tensor([2.0, 4.0, 1.0]).log().requires_grad_()
    soft_ranking_loss(scores, [1, 0, 2], set()).backward()
    torch.testing.assert_close(scores.grad, torch.zeros(3), atol=1e-6, rtol=0)


def test_soft_ranking_prefers_the_teachers_order_among_the_others() -> None:
    scores = torch.zeros(4, requires_grad=True)
    soft_ranking_loss(scores, [3, 2, 0, 1], {0}).backward()
    assert scores.grad is not None
    pull = (-scores.grad).tolist()
    assert pull[0] > pull[3] > pull[2] > pull[1]


def test_a_positive_that_the_teacher_left_out_still_comes_first() -> None:
    scores = torch.tensor([0.3, -1.0, 2.0])
    assert soft_ranking_loss(scores, [2, 0], {1}) == soft_ranking_loss(scores, [1, 2, 0], set())


def test_candidates_in_neither_order_nor_positives_are_pushed_down() -> None:
    scores = torch.zeros(3, requires_grad=True)
    soft_ranking_loss(scores, [0], set()).backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([-2 / 3, 1 / 3, 1 / 3])


@pytest.mark.parametrize("order", [[], [0, 0], [0, 7]])
def test_soft_ranking_refuses_an_order_of_other_candidates(order: list[int]) -> None:
    with pytest.raises(ValueError, match="some of the 2 candidates once each"):
        soft_ranking_loss(torch.zeros(2), order, set())


def test_the_language_model_loss_of_a_uniform_guess_is_log_v() -> None:
    assert language_model_loss(torch.zeros(5, 8), torch.arange(5)).item() == pytest.approx(3 * LOG2)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (STAGE1, 3 * LOG2 + 10 * LOG2 / 3),
        (STAGE2, 3 * LOG2 + LOG2),
        (Objective("ranknet", 0.0), 3 * LOG2),
        (Objective("soft_ranking", 2.0, language_model_weight=0.0), 2 * LOG2),
    ],
)
def test_a_stages_loss_adds_the_weighted_ranking_loss(stage: Objective, expected: float) -> None:
    loss = stage(torch.zeros(5, 8), torch.arange(5), torch.zeros(2), [1, 0], frozenset())
    assert loss.total.item() == pytest.approx(expected)
