"""Permutation self-consistency (arXiv:2310.07712): a window is shown in several orders, so that no place is favoured.

Letters: m candidates of a window.
"""

import random
from collections.abc import Sequence

MOST_PERMUTATIONS = 64
"""A bound for what is surely a mistake: every permutation costs a forward pass."""


def check_permutations(permutations: int) -> None:
    """Raise ValueError unless there are 1 to 64."""
    if not 1 <= permutations <= MOST_PERMUTATIONS:
        raise ValueError(
            f"permutations is 1 to {MOST_PERMUTATIONS} orders in which each window is read, got {permutations}."
        )


def seeded_permutations(m: int, permutations: int) -> list[list[int]]:
    """Return orders of ``m`` places: first the given one, then shuffled ones, the same in every process."""
    orders = [list(range(m))]
    for number in range(1, permutations):
        orders.append(random.Random(f"{m} {number}").sample(range(m), m))
    return orders


def mean_logits(orders: Sequence[Sequence[int]], logits: Sequence[Sequence[float]]) -> list[float]:
    """Average each candidate's logits over the orders: candidate ``orders[k][j]`` stood at place j in order k."""
    sums = [0.0] * len(orders[0])
    for order, scores in zip(orders, logits, strict=True):
        for candidate, score in zip(order, scores, strict=True):
            sums[candidate] += score
    return [total / len(orders) for total in sums]
