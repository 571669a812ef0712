"""What a benchmark over manuals found: kept query by query, summed up with intervals, handed on as TREC files."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from llama_index_ziprerank.evaluation.runs import (
    METRICS,
    append_jsonl,
    bootstrap_interval,
    measure,
    read_jsonl,
    write_jsonl,
    write_qrels,
    write_run,
)

SYSTEMS = ("bm25", "first_stage", "reranked")


@dataclass(frozen=True)
class QueryResult:
    """One heading of one manual, and where the systems put its page. Pages count from 1."""

    manual: str
    query_id: str
    query: str
    page: int
    queries_of_manual: int
    """How many headings of this manual are asked in all."""
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


class ResultsFile:
    """The results of one configuration, one JSON object a line; an interrupted run continues where it stopped."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Open or begin the file.

        Raises:
            ValueError: when the file holds the results of other settings.
        """
        self.path = path
        opening = {"settings": dict(settings)}
        rows = read_jsonl(path) if path.exists() else []
        if rows and rows[0] != opening:
            raise ValueError(
                f"{path} holds results of other settings: {json.dumps(rows[0])}. Name another folder, or remove it."
            )
        self.results = [QueryResult(**row) for row in rows[1:]]
        write_jsonl(path, rows or [opening])  # without the line that an interruption may have cut off

    def add(self, result: QueryResult) -> None:
        """Write down one more result."""
        append_jsonl(self.path, asdict(result))
        self.results.append(result)

    def query_ids(self) -> set[str]:
        """Return the queries that are done."""
        return {result.query_id for result in self.results}

    def is_complete(self, manual: str) -> bool:
        """Say whether every query of this manual is done."""
        of_manual = [result for result in self.results if result.manual == manual]
        return bool(of_manual) and len(of_manual) == of_manual[0].queries_of_manual


def summarize(results: Sequence[QueryResult]) -> dict[str, dict[str, Score]]:
    """Return system → metric → score over all queries; "random" is the exact mean over all orders, not one draw."""
    qrels = {result.query_id: {str(result.page): 1} for result in results}
    per_query = {"random": {metric: [_random(metric, result) for result in results] for metric in METRICS}}
    for system in SYSTEMS:
        values = measure(qrels, {result.query_id: [*map(str, result.rankings[system])] for result in results})
        per_query[system] = {metric: list(values[metric].values()) for metric in METRICS}
    return {
        system: {metric: Score(fmean(values), *bootstrap_interval(values)) for metric, values in metrics.items()}
        for system, metrics in per_query.items()
    }


def write_trec(results: Sequence[QueryResult], folder: Path) -> None:
    """Write `qrels.trec` and one `<system>.trec` for each system."""

    def page_id(result: QueryResult, page: int) -> str:
        return f"{result.manual}:p{page}"

    write_qrels(folder / "qrels.trec", {result.query_id: {page_id(result, result.page): 1} for result in results})
    for system in SYSTEMS:
        run = {result.query_id: [page_id(result, page) for page in result.rankings[system]] for result in results}
        write_run(folder / f"{system}.trec", run, tag=system)


def _random(metric: str, result: QueryResult) -> float:
    """What a random order of n candidates, of which one is right, scores on average."""
    n = len(result.rankings["first_stage"])
    if metric == "MRR":
        return sum(1 / rank for rank in range(1, n + 1)) / n
    if metric == "nDCG@5":
        return sum(1 / math.log2(rank + 1) for rank in range(1, min(5, n) + 1)) / n
    return min(int(metric.removeprefix("R@")), n) / n
