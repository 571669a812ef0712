"""How far chance could move a mean: the percentile bootstrap over queries (Efron and Tibshirani, 1993)."""

from collections.abc import Sequence

import numpy as np


def bootstrap_interval(values: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mean of `values` over queries drawn again with replacement."""
    if not values:
        raise ValueError("An interval needs at least one value, got none.")
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(np.asarray(values)[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)
