"""What the ways through a long list have in common. Free of any model.

A *plan* is a generator: it yields the windows of its next step, each a list of candidates in the order to show them, is
sent the logits of each window, and returns the whole order, best first. The windows of one step do not depend on each
other, so they may run as one batch; steps are sequential. Logits compare within their window only.
"""

from collections.abc import Callable, Generator, Sequence

from llama_index_ziprerank.reranking.permutation import WINDOW_SIZE

Plan = Generator[list[list[int]], Sequence[Sequence[float]], list[int]]


def check_window(window: int, stride: int) -> None:
    """Raise ValueError unless ``2 <= window <= 20`` and ``1 <= stride < window``."""
    if not 2 <= window <= WINDOW_SIZE:
        raise ValueError(f"window is 2 to {WINDOW_SIZE} pages, as many as the model has letters for, got {window}.")
    if not 1 <= stride < window:
        raise ValueError(
            f"stride is at least 1 and smaller than the window ({window}), so that windows overlap, got {stride}."
        )


def best_first(candidates: Sequence[int], logits: Sequence[float]) -> list[int]:
    """Order the candidates of one window by their logits; of equals the one shown earlier comes first."""
    return [candidates[i] for i in sorted(range(len(candidates)), key=lambda i: -logits[i])]


def follow(plan: Plan, score: Callable[[list[int]], Sequence[float]]) -> list[int]:
    """Carry a plan out, one window at a time, and return the order."""
    try:
        windows = next(plan)
        while True:
            windows = plan.send([score(window) for window in windows])
    except StopIteration as end:
        return end.value
