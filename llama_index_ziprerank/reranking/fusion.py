"""The first stage's scores beside the model's logits: a weighted sum of standardised scores (CombSUM, Fox, Shaw 1994).

Two models that err on different questions are better together. What a logit and a first stage's score are worth differs
from list to list, so each is taken relative to the spread of its own list.
"""

import math
from collections.abc import Sequence
from statistics import fmean, pstdev

LEAST_SCORES = 3
"""Of two pages one always lies a standard deviation above the mean and one below, however little sets them apart."""

_EQUAL = 1e-6  # of the largest score: a spread of rounding errors is no opinion


def check_first_stage_weight(weight: float | None) -> None:
    """Raise ValueError unless the weight is finite and not negative; None stands for the checkpoint's own."""
    if weight is not None and not 0 <= weight < math.inf:
        raise ValueError(f"first_stage_weight is 0 (the model alone) or more, got {weight}. 1 weighs both the same.")


def standardised(scores: Sequence[float | None]) -> list[float]:
    """Say how many standard deviations each of a list's scores lies above the list's mean.

    0 for a page without a score, or with one that is not finite; for all where fewer than `LEAST_SCORES` have one, and
    where all scores are equal up to rounding.
    """
    known = [score for score in scores if score is not None and math.isfinite(score)]
    if len(known) < LEAST_SCORES:
        return [0.0] * len(scores)
    largest = max(map(abs, known)) or 1.0  # divided by, so that no square is too large or too small for a float
    mean, spread = fmean(score / largest for score in known), pstdev(score / largest for score in known)
    if spread < _EQUAL:
        return [0.0] * len(scores)
    return [0.0 if score is None or not math.isfinite(score) else (score / largest - mean) / spread for score in scores]


def fuse(logits: Sequence[float], first_stage: Sequence[float], weight: float) -> list[float]:
    """Move each page's logit by what the first stage thinks of it (`standardised`), in the logits' own unit.

    A page one standard deviation above the mean in the first stage gains ``weight`` standard deviations of the logits.
    """
    if not weight:
        return list(logits)
    unit = weight * pstdev(logits)
    return [logit + unit * score for logit, score in zip(logits, first_stage, strict=True)]
