"""Lists longer than one window: the sliding window of RankGPT (arXiv:2304.09542, section 3.2), free of any model.

The window starts at the back of the list and moves to the front by ``stride``; after each step the best
``window - stride`` candidates seen so far stand inside the next window. One pass puts that many in their right places.
"""

from collections.abc import Callable, Sequence

from llama_index_ziprerank.reranking.permutation import WINDOW_SIZE


def check_window(window: int, stride: int) -> None:
    """Raise ValueError unless ``2 <= window <= 20`` and ``1 <= stride < window``."""
    if not 2 <= window <= WINDOW_SIZE:
        raise ValueError(f"window is 2 to {WINDOW_SIZE} pages, as many as the model has letters for, got {window}.")
    if not 1 <= stride < window:
        raise ValueError(
            f"stride is at least 1 and smaller than the window ({window}), so that windows overlap, got {stride}."
        )


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


def slide(n: int, window: int, stride: int, rank: Callable[[Sequence[int]], Sequence[int]]) -> list[int]:
    """Rank ``n`` candidates window by window and return their order, best first.

    ``rank`` is given the candidates of one window in their present order and returns them best first.
    """
    order = list(range(n))
    for start, end in window_spans(n, window, stride):
        order[start:end] = rank(order[start:end])
    return order
