"""The first stage's scores beside the model's logits: a weighted sum of standardised scores (CombSUM, Fox, Shaw 1994).

Two models that err on different questions are better together. What a logit and a first stage's score are worth differs
from list to list, so each is taken relative to the spread of its own list.
"""

import math
from collections.abc import Sequence
from statistics import fmean, pstdev


def check_first_stage_weight(weight: float | None) -> None:
    """Raise ValueError unless the weight is finite and not negative; None stands for the checkpoint's own."""
    if weight is not None and not 0 <= weight < math.inf:
        raise ValueError(f"first_stage_weight is 0 (the model alone) or more, got {weight}. 1 weighs both the same.")


def fuse(logits: Sequence[float], first_stage: Sequence[float | None], weight: float) -> list[float]:
    """Move each candidate's logit by what the first stage thinks of it, in the logits' own unit.

    A candidate one standard deviation above the list's mean in the first stage gains ``weight`` standard deviations of
    the logits. One without a score, or with one that is not finite, keeps its logit.
    """
    known = [score for score in first_stage if score is not None and math.isfinite(score)]
    spread = pstdev(known) if known else 0.0
    if not spread or not weight:
        return list(logits)
    mean, unit = fmean(known), weight * pstdev(logits) / spread
    return [
        logit if score is None or not math.isfinite(score) else logit + unit * (score - mean)
        for logit, score in zip(logits, first_stage, strict=True)
    ]
