"""Lists longer than one window, and windows read more than once. Free of any model.

How the strategies compare (54 pages of a manual, 16 headings as queries, nano, keep_ratio 0.25, mean reciprocal rank;
the list as the first stage gives it / shuffled; in brackets: sequential steps, windows):

==========  ============================  ============================
strategy    window 20                     window 10
==========  ============================  ============================
sliding     .656 / .640 (5.0, 5.0)        .638 / .634 (10.0, 10.0)
parallel    .645 / .653 (2.9-4.2, 3.9-5.2)  .646 / .637 (3.9-5.2, 8.2-9.9)
blocks      .612 / .597 (2.0, 7.0)        .635 / .635 (2.0, 13.0)
==========  ============================  ============================

Aggregating the blocks' logits by least squares, in one step, is best by far when a simulated model's logits differ by a
constant from window to window; nano's differ in scale too, and there it is worst (.510 to .578).
"""

from collections.abc import Callable
from typing import Literal, get_args

from llama_index_ziprerank.reranking.windows.blocks import rank_blocks
from llama_index_ziprerank.reranking.windows.permutations import check_permutations, mean_logits, seeded_permutations
from llama_index_ziprerank.reranking.windows.plan import Plan, check_window, follow
from llama_index_ziprerank.reranking.windows.sliding import slide, window_spans
from llama_index_ziprerank.reranking.windows.top_down import partition

__all__ = [
    "Plan",
    "Strategy",
    "check_permutations",
    "check_strategy",
    "check_window",
    "follow",
    "mean_logits",
    "plan_windows",
    "seeded_permutations",
    "window_spans",
]

Strategy = Literal["sliding", "parallel", "blocks"]
"""How a list longer than one window is ranked.

``"sliding"``: windows one after another from back to front, as the paper measured; hence the default.
``"parallel"``: top-down partitioning; after the first window all others run as one batch: as good, in fewer steps.
``"blocks"``: overlapping blocks, always two steps, but more windows, and less good than the others with long windows.
"""

_PLANS: dict[str, Callable[[int, int, int], Plan]] = {
    "sliding": slide,
    "parallel": partition,
    "blocks": rank_blocks,
}


def check_strategy(strategy: str) -> None:
    """Raise ValueError unless the strategy is a known one."""
    if strategy not in get_args(Strategy):
        raise ValueError(f"strategy is one of {', '.join(map(repr, get_args(Strategy)))}, got {strategy!r}.")


def plan_windows(n: int, window: int, stride: int, strategy: Strategy = "sliding") -> Plan:
    """Plan the ranking of ``n`` candidates; a list that fits one window is one window, whatever the strategy."""
    check_strategy(strategy)
    return _PLANS[strategy](n, window, stride)
