"""The sliding window of RankGPT (arXiv:2304.09542, section 3.2), as in the ZipRerank paper: one window after another.

The window starts at the back of the list and moves to the front by ``stride``; after each step the best
``window - stride`` candidates seen so far stand inside the next window. One pass puts that many in their right places.
"""

from llama_index_ziprerank.reranking.windows.plan import Plan, best_first, check_window


def window_spans(n: int, window: int, stride: int) -> list[tuple[int, int]]:
    """Return the slices ``[start, end)`` of a list of ``n`` to rank, in the order to rank them: back to front.

    Every place is covered, also when ``n - window`` is no multiple of ``stride``; the front window is then shorter.
    """
    check_window(window, stride)
    spans = [(max(0, n - window), n)]
    while spans[-1][0] > 0:
        end = spans[-1][1] - stride
        spans.append((max(0, end - window), end))
    return spans


def slide(n: int, window: int, stride: int) -> Plan:
    """Rank ``n`` candidates window by window."""
    order = list(range(n))
    for start, end in window_spans(n, window, stride):
        candidates = order[start:end]
        [logits] = yield [candidates]
        order[start:end] = best_first(candidates, logits)
    return order
