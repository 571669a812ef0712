"""How well one ranking finds what is relevant: recall and nDCG at k, for lists with binary relevance."""

import math
from collections.abc import Collection, Mapping, Sequence

CUTOFFS = (1, 3, 5)
METRICS = (*(f"recall@{k}" for k in CUTOFFS), f"ndcg@{CUTOFFS[-1]}")


def measure_order(order: Sequence[int], relevant: Collection[int]) -> dict[str, float]:
    """Return recall@1, recall@3, recall@5 and nDCG@5 of an order, best first.

    Recall is the part of the relevant candidates among the first k (as MMDocIR measures). nDCG is that of Järvelin and
    Kekäläinen (2002) with gain 1 and discount log2(rank + 1), over the best that an order could reach.

    Raises:
        ValueError: when nothing is relevant.
    """
    if not relevant:
        raise ValueError("Recall needs at least one relevant candidate, got none.")
    found = {f"recall@{k}": len(set(order[:k]) & set(relevant)) / len(set(relevant)) for k in CUTOFFS}
    last = CUTOFFS[-1]
    gain = sum(_discount(place) for place, candidate in enumerate(order[:last]) if candidate in relevant)
    best = sum(_discount(place) for place in range(min(last, len(set(relevant)))))
    return {**found, f"ndcg@{last}": gain / best}


def _discount(place: int) -> float:
    return 1 / math.log2(place + 2)


def metrics_table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Write figures as a Markdown table in percent: one row a metric, one column a name of `columns`."""
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for metric in METRICS:
        cells = [f"{100 * figures[metric]:.1f}" for figures in columns.values()]
        lines.append(f"| {metric} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
