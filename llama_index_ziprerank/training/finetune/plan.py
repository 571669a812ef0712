"""How much is measured and learned, so that a fine-tuning ends in the time that it was given.

One question and one list are timed on this machine before anything is learned. What the plan leaves out is said, and
the plan lies in the work folder: an interrupted run goes on with the same one.
"""

import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import TrainerCallback, TrainingArguments

from llama_index_ziprerank.training.cache import FeatureCache
from llama_index_ziprerank.training.data import open_samples
from llama_index_ziprerank.training.finetune.documents import write_whole
from llama_index_ziprerank.training.finetune.first_stage import Ranked
from llama_index_ziprerank.training.finetune.measure import question_seconds
from llama_index_ziprerank.training.finetune.questions import Asked
from llama_index_ziprerank.training.recipes import Stage2
from llama_index_ziprerank.training.step_cost import step_seconds

MEASURING = 0.3
"""Part of the time left that measuring before and after may take."""

FEWEST = 20
"""Held-out questions that are measured, if there are so many, however long that takes."""

SLACK = 0.9
"""Part of the time left for learning that is planned; models are loaded and written in the rest."""


class Clock:
    """Counts down from so many minutes; 0: there is no limit."""

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self._end = time.monotonic() + 60 * minutes if minutes else math.inf

    def left(self) -> float:
        """Return the seconds that are left, infinity without a limit."""
        return self._end - time.monotonic()


class StopInTime(TrainerCallback):
    """Ends training, with a checkpoint, when only `reserve` seconds are left: a machine may become slower."""

    def __init__(self, clock: Clock, reserve: float) -> None:
        self.clock, self.reserve = clock, reserve

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if self.clock.left() < self.reserve:
            control.should_training_stop = control.should_save = True


@dataclass(frozen=True)
class Speed:
    """What things take on this machine, in seconds."""

    page: float
    """The vision tower on one page."""
    question: float
    """Reranking one question's candidates, their features known."""
    step: float
    """One optimiser step, features known."""


@dataclass(frozen=True)
class Plan:
    """What will be done."""

    minutes: float
    """The limit that it was made for; 0: none."""
    questions: int
    """Held-out questions that are measured on."""
    steps: int
    """Optimiser steps."""
    all_steps: int
    """Optimiser steps that the recipe asks for."""
    seconds: float
    """That it is expected to take from here on."""

    def described(self, held_out: int, lists: int, lists_a_step: int) -> str:
        """Say it to who waits."""
        learned = self.steps * lists_a_step
        short = "" if self.steps == self.all_steps else f" of {self.all_steps}; --minutes gives it more"
        minutes = max(1, round(self.seconds / 60))
        return (
            f"About {minutes} min from here: {self.questions} of {held_out} held-out questions are "
            f"measured before and after; {self.steps} steps{short} ({learned / lists:.1f} passes over {lists} lists)."
        )


def make_plan(clock: Clock, speed: Speed, *, pages: int, held_out: int, all_steps: int) -> Plan:
    """Fit measuring and learning into the time that is left (without a limit all of it is done).

    The tower looks at every page twice: to measure, and to learn.

    Raises:
        ValueError: when not even one step fits.
    """
    left = clock.left()
    looking = 2 * pages * speed.page
    if math.isinf(left):
        questions, steps = held_out, all_steps
    else:
        affordable = int(MEASURING * (left - looking) / (2 * speed.question))
        questions = min(held_out, max(FEWEST, affordable))
        steps = min(all_steps, int(SLACK * (left - looking - 2 * questions * speed.question) / speed.step))
    rest = looking + 2 * questions * speed.question
    if steps < 1:
        raise ValueError(
            f"{left / 60:.1f} min are left, but one step takes {speed.step:.0f} s and measuring {rest / 60:.1f} min. "
            "Run the same command with more --minutes (0: no limit); what was finished is kept."
        )
    return Plan(clock.minutes, questions, steps, all_steps, rest + steps * speed.step)


def planned(
    path: Path,
    clock: Clock,
    recipe: Stage2,
    held_out: Sequence[Asked],
    rankings: Mapping[str, Ranked],
    image: Callable[[str], Image.Image],
    cache: FeatureCache,
    pages: int,
) -> Plan:
    """Read the plan of an earlier run from `path`, or time this machine and write one; errors as `make_plan`.

    Raises:
        ValueError: also when the earlier run had another limit.
    """
    if path.is_file():
        plan = Plan(**json.loads(path.read_text(encoding="utf-8")))
        if plan.minutes != clock.minutes:
            raise ValueError(
                f"{str(path.parent.parent)!r} holds a fine-tuning with --minutes {plan.minutes:g}, got "
                f"{clock.minutes:g}. Name another folder, or run it with what it was begun with."
            )
        return plan
    lists = open_samples(recipe.data, max_candidates=recipe.max_candidates)
    a_step = recipe.batch_size * recipe.gradient_accumulation
    batch = [lists[number] for number in range(min(recipe.batch_size, len(lists)))]
    page, question = question_seconds(held_out[0], rankings, image, recipe, cache)
    speed = Speed(page, question, recipe.gradient_accumulation * step_seconds(recipe, batch))
    whole = recipe.max_steps if recipe.max_steps > 0 else math.ceil(recipe.epochs * math.ceil(len(lists) / a_step))
    plan = make_plan(clock, speed, pages=pages, held_out=len(held_out), all_steps=whole)
    write_whole(path, json.dumps(asdict(plan)))
    return plan


def drawn(questions: Sequence[Asked], count: int, seed: int) -> list[Asked]:
    """Draw `count` of the questions; equal seeds draw the same."""
    return random.Random(seed).sample(questions, count)
