"""Runs and qrels: how they are written down (TREC text and JSONL, never pickle) and how they are measured.

A *run* holds for every query the pages it got, best first; *qrels* hold the pages that answer it, with their grades.
TREC files are those of trec_eval: `query 0 page grade` and `query Q0 page rank score tag`, so ids have no white space.
Metrics come from ir_measures, intervals from the percentile bootstrap over queries (Efron and Tibshirani, 1993).
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import ir_measures
import numpy as np
from ir_measures import RR, R, nDCG

Qrels: TypeAlias = Mapping[str, Mapping[str, int]]
Run: TypeAlias = Mapping[str, Sequence[str]]

_MEASURES = {"R@1": R @ 1, "R@5": R @ 5, "nDCG@5": nDCG @ 5, "MRR": RR}
METRICS = tuple(_MEASURES)


def measure(qrels: Qrels, run: Run) -> dict[str, dict[str, float]]:
    """Return metric → query → value, for every query of `qrels`; a query that the run lacks scores 0."""
    scored = {query: _descending_scores(pages) for query, pages in run.items() if query in qrels}
    names = {metric: name for name, metric in _MEASURES.items()}
    values = {name: dict.fromkeys(qrels, 0.0) for name in METRICS}
    for found in ir_measures.iter_calc(list(names), {query: dict(pages) for query, pages in qrels.items()}, scored):
        values[names[found.measure]][found.query_id] = float(found.value)
    return values


def bootstrap_interval(values: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mean of `values` over queries drawn again with replacement."""
    if not values:
        raise ValueError("An interval needs at least one value, got none.")
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(np.asarray(values)[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def write_qrels(path: Path, qrels: Qrels) -> None:
    """Write qrels in TREC's format, in the order given."""
    lines = (f"{_id(query)} 0 {_id(page)} {grade}" for query, pages in qrels.items() for page, grade in pages.items())
    _write_lines(path, lines)


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Read qrels in TREC's format."""
    qrels: dict[str, dict[str, int]] = {}
    for query, _, page, grade in _read_columns(path, 4):
        qrels.setdefault(query, {})[page] = int(grade)
    return qrels


def write_run(path: Path, run: Run, *, tag: str) -> None:
    """Write a run in TREC's format under the name `tag`; the scores only say the order."""
    lines = (
        f"{_id(query)} Q0 {_id(page)} {rank} {score:g} {_id(tag)}"
        for query, pages in run.items()
        for rank, (page, score) in enumerate(_descending_scores(pages).items(), start=1)
    )
    _write_lines(path, lines)


def read_run(path: Path) -> dict[str, list[str]]:
    """Read a run in TREC's format; as trec_eval does, the scores say the order and not the ranks."""
    scored: dict[str, list[tuple[float, str]]] = {}
    for query, _, page, _, score, _ in _read_columns(path, 6):
        scored.setdefault(query, []).append((-float(score), page))
    return {query: [page for _, page in sorted(pages, key=lambda pair: pair[0])] for query, pages in scored.items()}


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line."""
    _write_lines(path, (json.dumps(row, ensure_ascii=False) for row in rows))


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Add one JSON object as a line of its own and hand it to the operating system at once."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read the JSON object on every line; a last line that an interruption cut off is left out.

    Raises:
        ValueError: when any other line is not JSON.
    """
    lines = path.read_text(encoding="utf-8").split("\n")  # what follows the last newline was not finished
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: line {number} is not JSON ({error}). Remove the line or the file.") from error
    return rows


def _descending_scores(pages: Sequence[str]) -> dict[str, float]:
    if len(set(pages)) != len(pages):
        raise ValueError(f"A run names each page of a query once, got {list(pages)}.")
    return {page: float(len(pages) - position) for position, page in enumerate(pages)}


def _id(text: str) -> str:
    if not text or any(character.isspace() for character in text):
        raise ValueError(f"An id in a TREC file has no white space and is not empty, got {text!r}.")
    return text


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    unfinished = path.with_name(f"{path.name}.partial")
    unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    unfinished.replace(path)


def _read_columns(path: Path, count: int) -> Iterator[list[str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        columns = line.split()
        if len(columns) != count:
            raise ValueError(f"{path}: line {number} has {len(columns)} columns, wanted {count}: {line!r}.")
        yield columns
