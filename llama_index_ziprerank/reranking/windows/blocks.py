"""Overlapping blocks with rank aggregation (JointRank, arXiv:2506.22262): two steps, whatever the length of the list.

Every candidate is ranked in two blocks whose members differ, all of them in one batch. Its mean place in these says who
comes into one last window, which orders them; the others follow by their mean place. The paper aggregates by PageRank
and has no last window; with both the nano model and simulated noise the mean place found the same candidates, and
without the last window the first places were worse.
"""

from collections.abc import Sequence

from llama_index_ziprerank.reranking.windows.plan import Plan, best_first, check_window

REPLICAS = 2
"""Blocks that each candidate is in."""


def rank_blocks(n: int, window: int, stride: int) -> Plan:
    """Rank ``n`` candidates in two steps; ``stride`` is only checked."""
    check_window(window, stride)
    order = list(range(n))
    if n > window:
        blocks = overlapping_blocks(n, window)
        places = mean_places(n, blocks, (yield blocks))
        order.sort(key=lambda i: places[i])
    last = sorted(order[:window])
    [logits] = yield [last]
    return best_first(last, logits) + order[window:]


def overlapping_blocks(n: int, window: int) -> list[list[int]]:
    """Design the blocks: a lattice, in which neighbours of one block are spread over those of the next replica."""
    count = -(-n // window)
    blocks: list[list[int]] = []
    for replica in range(REPLICAS):
        dealt: list[list[int]] = [[] for _ in range(count)]
        for i in range(n):
            dealt[(i + replica * (i // count)) % count].append(i)
        blocks += dealt
    return blocks


def mean_places(n: int, blocks: Sequence[Sequence[int]], logits: Sequence[Sequence[float]]) -> list[float]:
    """Return each candidate's mean place in its blocks, 0 for always first and 1 for always last."""
    places = [0.0] * n
    for block, scores in zip(blocks, logits, strict=True):
        for place, i in enumerate(best_first(block, scores)):
            places[i] += place / max(1, len(block) - 1) / REPLICAS
    return places
