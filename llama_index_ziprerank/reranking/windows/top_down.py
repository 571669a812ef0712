"""Top-down partitioning (TDPart, arXiv:2405.14589, section 3): rank the head of the list, compare the rest with it.

The first window is ranked; its candidate at rank ``stride`` becomes the pivot. All other candidates are ranked beside
the pivot, in windows that run as one batch. Those that beat it join the head, which is ranked in the same way, until
one window holds it. Candidates behind the pivot keep the order in which they came.
"""

from llama_index_ziprerank.reranking.windows.plan import Plan, best_first, check_window


def partition(n: int, window: int, stride: int) -> Plan:
    """Rank ``n`` candidates in about three steps, or five when the list comes in no good order, however long it is."""
    check_window(window, stride)
    head = list(range(n))
    tail: list[int] = []
    while len(head) > window:
        [logits] = yield [head[:window]]
        first = best_first(head[:window], logits)
        better, pivot, behind = first[: stride - 1], first[stride - 1], first[stride:]
        rest = head[window:]
        windows = [[pivot, *rest[start : start + window - 1]] for start in range(0, len(rest), window - 1)]
        winners: list[int] = []
        losers: list[int] = []
        for candidates, scores in zip(windows, (yield windows), strict=True):
            order = best_first(candidates, scores)
            place = order.index(pivot)
            winners += order[:place]
            losers += order[place + 1 :]
        tail = [pivot, *behind, *losers, *tail]
        head = better + winners
        if not winners or len(head) == 1:
            return head + tail
    [logits] = yield [head]
    return best_first(head, logits) + tail
