"""A fine-tuning ends in the time that it was given: what is measured and learned follows from what things take."""

import pytest

from llama_index_ziprerank.training.finetune.plan import Clock, Speed, make_plan

SPEED = Speed(page=0.5, question=1.0, step=10.0)


@pytest.mark.parametrize("minutes", [5.0, 15.0, 30.0])
def test_a_plan_fits_the_time_that_is_left(minutes: float) -> None:
    plan = make_plan(Clock(minutes), SPEED, pages=100, held_out=500, all_steps=1000)
    assert plan.seconds <= 60 * minutes
    assert 1 <= plan.steps < plan.all_steps and 20 <= plan.questions < 500


def test_learning_takes_most_of_the_time() -> None:
    plan = make_plan(Clock(30), SPEED, pages=100, held_out=500, all_steps=1000)
    assert plan.steps * SPEED.step > 0.5 * 60 * 30


@pytest.mark.parametrize("minutes", [0.0, 1e6])
def test_with_time_enough_all_of_it_is_done(minutes: float) -> None:
    plan = make_plan(Clock(minutes), SPEED, pages=100, held_out=500, all_steps=1000)
    assert (plan.questions, plan.steps) == (500, 1000)
    assert plan.seconds == 100 + 1000 + 10_000
    assert plan.described(500, 4000, 8) == (
        "About 185 min from here: 500 of 500 held-out questions are measured before and after; 1000 steps (2.0 passes "
        "over 4000 lists)."
    )


def test_what_a_limit_leaves_out_is_said() -> None:
    plan = make_plan(Clock(15), SPEED, pages=100, held_out=500, all_steps=1000)
    assert f"; {plan.steps} steps of 1000; --minutes gives it more (" in plan.described(500, 4000, 8)


def test_a_time_in_which_nothing_can_be_learned_is_refused() -> None:
    with pytest.raises(ValueError, match="but one step takes 10 s .* with more --minutes .* what was finished is kept"):
        make_plan(Clock(2), SPEED, pages=100, held_out=500, all_steps=1000)
