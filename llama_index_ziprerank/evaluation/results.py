"""What a benchmark over manuals found: kept query by query, summed up with intervals, handed on as TREC and JSONL."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Generic, Protocol, TypeVar

from llama_index_ziprerank.evaluation.intervals import bootstrap_interval
from llama_index_ziprerank.evaluation.runs import (
    METRICS,
    append_jsonl,
    measure,
    read_jsonl,
    write_jsonl,
    write_qrels,
    write_run,
)

RANDOM, BM25, FIRST_STAGE, RERANKED = "random", "bm25", "first_stage", "reranked"
MODEL_ALONE = "model_alone"
"""The reranker's own order, where the first stage's scores have a part in `RERANKED`."""


class Row(Protocol):
    """One query's result in a file."""

    @property
    def query_id(self) -> str:
        """Tells queries apart."""


RowT = TypeVar("RowT", bound=Row)


@dataclass(frozen=True)
class QueryResult:
    """One query of one manual, and where the systems put its pages. Pages count from 1."""

    manual: str
    document: str
    """Of its PDF, the first 16 hexadecimal digits of the SHA-256: another file may have the same name."""
    kind: str
    query_id: str
    query: str
    pages: list[int]
    """The pages that answer it."""
    queries_of_manual: int
    """How many queries are asked of this manual in all."""
    rankings: dict[str, list[int]]
    """System → all candidates, best first."""
    seconds: dict[str, float]
    """System → time for this query alone; the pages were encoded before."""


@dataclass(frozen=True)
class Score:
    """Mean of a metric over queries, with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Score":
        """Sum up the values of at least one query."""
        return cls(fmean(values), *bootstrap_interval(values))


class ResultsFile(Generic[RowT]):
    """The results of one configuration, one JSON object a line; an interrupted run continues where it stopped."""

    def __init__(self, path: Path, settings: Mapping[str, Any], row: type[RowT]) -> None:
        """Open or begin the file, whose lines are of the dataclass `row`.

        Raises:
            ValueError: when the file holds the results of other settings, or lines of another kind.
        """
        self.path = path
        opening = json.loads(json.dumps({"settings": dict(settings)}))
        rows = read_jsonl(path) if path.exists() else []
        if rows and rows[0] != opening:
            changes = _changes(rows[0].get("settings", {}), opening["settings"])
            raise ValueError(
                f"{path} holds results of other settings ({changes}). Name another folder, or empty this one."
            )
        try:
            found = [row(**values) for values in rows[1:]]
        except TypeError as error:
            raise ValueError(f"{path} was written by another version ({error}). Remove it.") from error
        self.results = list({result.query_id: result for result in found}.values())  # two processes may have added one
        write_jsonl(path, rows or [opening])  # without the line that an interruption may have cut off

    def add(self, result: RowT) -> None:
        """Write down one more result."""
        append_jsonl(self.path, asdict(result))  # type: ignore[call-overload]
        self.results.append(result)

    def query_ids(self) -> set[str]:
        """Return the queries that are done."""
        return {result.query_id for result in self.results}


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name the settings that differ, with both values."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {json.dumps(before.get(name))}, now {json.dumps(now.get(name))}" for name in names)


def is_complete(manual: str, results: Sequence[QueryResult]) -> bool:
    """Say whether every query of this manual is done."""
    of_manual = [result for result in results if result.manual == manual]
    return bool(of_manual) and len(of_manual) == of_manual[0].queries_of_manual


Summary = dict[str, dict[str, Score]]
"""System → metric → score."""


def summarize(results: Sequence[QueryResult]) -> Summary:
    """Sum up all queries; "random" is the exact mean over all orders, not one draw.

    The systems are those of the results, in their order. A query with several pages counts once, whatever their number.
    """
    return {
        system: {metric: Score.of(values) for metric, values in metrics.items()}
        for system, metrics in _per_query(results).items()
    }


def gain(results: Sequence[QueryResult], system: str = RERANKED, base: str = FIRST_STAGE) -> dict[str, Score]:
    """Return metric → what `system` is better than `base`, query by query: the paired bootstrap's interval."""
    values = _per_query(results)
    return {
        metric: Score.of(
            [after - before for after, before in zip(values[system][metric], values[base][metric], strict=True)]
        )
        for metric in METRICS
    }


def _per_query(results: Sequence[QueryResult]) -> dict[str, dict[str, list[float]]]:
    """System → metric → the values of the queries, in their order."""
    qrels = {result.query_id: {str(page): 1 for page in result.pages} for result in results}
    per_query = {RANDOM: {metric: [_random(metric, result) for result in results] for metric in METRICS}}
    for system in results[0].rankings:
        values = measure(qrels, {result.query_id: [*map(str, result.rankings[system])] for result in results})
        per_query[system] = {metric: list(values[metric].values()) for metric in METRICS}
    return per_query


def write_runs(results: Sequence[QueryResult], folder: Path) -> None:
    """Write `qrels` and one run for each system, each as `.trec` and as `.jsonl`."""

    def named(result: QueryResult, pages: Sequence[int]) -> list[str]:
        return [f"{result.manual}:p{page}" for page in pages]

    qrels = {result.query_id: dict.fromkeys(named(result, result.pages), 1) for result in results}
    runs = {
        system: {result.query_id: named(result, result.rankings[system]) for result in results}
        for system in results[0].rankings
    }
    for suffix in (".trec", ".jsonl"):
        write_qrels(folder / f"qrels{suffix}", qrels)
        for system, run in runs.items():
            write_run(folder / f"{system}{suffix}", run, tag=system)


def _random(metric: str, result: QueryResult) -> float:
    """What a random order of n candidates, of which m are right, scores on average."""
    n, m = len(result.rankings[FIRST_STAGE]), len(result.pages)
    if metric == "MRR":  # the best of the m stands at this rank when the m - 1 others stand behind it
        ways = math.comb(n, m)
        return sum(math.comb(n - rank, m - 1) / rank for rank in range(1, n + 1)) / ways
    if metric == "nDCG@5":
        discounts = [1 / math.log2(rank + 1) for rank in range(1, min(5, n) + 1)]
        return m / n * sum(discounts) / sum(discounts[:m])
    return min(int(metric.removeprefix("R@")), n) / n
