"""What running together saves: concurrent calls against one by one, and the strategies for long lists.

Repeats are interleaved and medians reported, so that a busy machine disturbs both sides alike. Pages come as features:
the vision tower is no part of this.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import get_args

from llama_index_ziprerank.reranking import ListwiseReranker, PageFeatures, Ranking
from llama_index_ziprerank.reranking.windows import Strategy


@dataclass(frozen=True)
class Concurrency:
    """Seconds for all calls, medians over the repeats."""

    calls: int
    one_by_one: float
    together: float

    @property
    def ratio(self) -> float:
        """How many times faster the calls are when made at the same time."""
        return self.one_by_one / self.together


@dataclass(frozen=True)
class LongList:
    """One strategy on a list longer than a window."""

    seconds: float
    """Median over the repeats."""
    steps: int
    """Forward passes one after another."""
    tokens: int
    """Tokens that the language model read."""


def measure_concurrency(
    reranker: ListwiseReranker,
    queries: Sequence[str],
    pages: Sequence[PageFeatures],
    *,
    keep_ratio: float = 1.0,
    repeats: int = 5,
) -> Concurrency:
    """Ask all queries about the same pages, one after another and from one thread each."""

    def ask(query: str) -> Ranking:
        return reranker.rerank(query, pages, keep_ratio)

    with ThreadPoolExecutor(len(queries)) as threads:
        times = _interleaved(
            {
                "one_by_one": lambda: [ask(query) for query in queries],
                "together": lambda: list(threads.map(ask, queries)),
            },
            repeats,
        )
    return Concurrency(len(queries), times["one_by_one"], times["together"])


def measure_long_list(
    reranker: ListwiseReranker,
    query: str,
    pages: Sequence[PageFeatures],
    *,
    keep_ratio: float = 1.0,
    window: int = 20,
    stride: int = 10,
    repeats: int = 3,
) -> dict[Strategy, LongList]:
    """Rank one long list by every strategy."""
    found: dict[str, Ranking] = {}

    def rank(strategy: Strategy) -> None:
        found[strategy] = reranker.rerank(query, pages, keep_ratio, window=window, stride=stride, strategy=strategy)

    strategies: tuple[Strategy, ...] = get_args(Strategy)
    times = _interleaved({name: lambda name=name: rank(name) for name in strategies}, repeats)  # type: ignore[misc]
    return {name: LongList(times[name], found[name].steps, found[name].sequence_length) for name in strategies}


def _interleaved(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Run each way once unmeasured, then in turns; return the median seconds."""
    for run in ways.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}
