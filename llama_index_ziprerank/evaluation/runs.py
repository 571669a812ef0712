"""Runs and qrels: how they are written down (TREC text and JSONL, never pickle) and how they are measured.

A *run* holds for every query the pages it got, best first; *qrels* hold the pages that answer it, with their grades.
TREC files are those of trec_eval: `query 0 page grade` and `query Q0 page rank score tag`, so ids have no white space.
JSONL files (named `.jsonl`) have one query a line: `{"query_id": "q1", "ranking": ["a", "b"]}` and
`{"query_id": "q1", "relevant": {"a": 1}}`.
Metrics come from ir_measures, intervals from the percentile bootstrap over queries (Efron and Tibshirani, 1993).
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import ir_measures
import numpy as np
from ir_measures import RR, Success

Qrels: TypeAlias = Mapping[str, Mapping[str, int]]
Run: TypeAlias = Mapping[str, Sequence[str]]

METRICS = ("R@1", "R@5", "nDCG@5", "MRR")
JSONL = ".jsonl"


def measure(qrels: Qrels, run: Run, metrics: Sequence[str] = METRICS) -> dict[str, dict[str, float]]:
    """Return metric → query → value, for every query of `qrels`; a query that the run lacks scores 0.

    Metrics are named as in ir_measures ("R@5", "nDCG@10", "AP"), beside two by their common names: "MRR", or "MRR@10",
    is the reciprocal rank, "Hit@5" says whether any relevant page is among the first five.

    Raises:
        ValueError: for an unknown metric, or a run that names a page twice.
    """
    scored = {query: _descending_scores(pages) for query, pages in run.items() if query in qrels}
    names = {parse_metric(name): name for name in metrics}
    values = {name: dict.fromkeys(qrels, 0.0) for name in metrics}
    for found in ir_measures.iter_calc(list(names), {query: dict(pages) for query, pages in qrels.items()}, scored):
        values[names[found.measure]][found.query_id] = float(found.value)
    return values


def parse_metric(name: str) -> ir_measures.measures.Measure:
    """Return the ir_measures metric of this name.

    Raises:
        ValueError: when there is none.
    """
    kind, at, depth = name.partition("@")
    common = {"MRR": RR, "Hit": Success}.get(kind)
    try:
        if common is None:
            metric = ir_measures.parse_measure(name)
        else:
            metric = common @ int(depth) if at else common
        metric.validate_params()
    except (AssertionError, NameError, SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"No metric {name!r}. Use such as Hit@5, MRR, R@5, nDCG@10 or AP.") from error
    return metric


def bootstrap_interval(values: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mean of `values` over queries drawn again with replacement."""
    if not values:
        raise ValueError("An interval needs at least one value, got none.")
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(np.asarray(values)[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def without_space(name: str) -> str:
    """Return `name` fit for a TREC file: white space (and %) as in URLs; a name without any stays as it is."""
    return "".join(quote(character) if character.isspace() or character == "%" else character for character in name)


def write_qrels(path: Path, qrels: Qrels) -> None:
    """Write qrels in the order given, in TREC's format, or as JSONL where the file is named so."""
    if path.suffix == JSONL:
        return write_jsonl(path, ({"query_id": query, "relevant": dict(pages)} for query, pages in qrels.items()))
    lines = (f"{_id(query)} 0 {_id(page)} {grade}" for query, pages in qrels.items() for page, grade in pages.items())
    _write_lines(path, lines)


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Read qrels in TREC's format, or JSONL.

    Raises:
        ValueError: naming the line that is not laid out as described, or lists a query a second time (JSONL).
    """
    if path.suffix == JSONL:
        return {query: {page: int(grade) for page, grade in found.items()} for query, found in _rows(path, "relevant")}
    qrels: dict[str, dict[str, int]] = {}
    for query, _, page, grade in _read_columns(path, 4):
        qrels.setdefault(query, {})[page] = int(grade)
    return qrels


def write_run(path: Path, run: Run, *, tag: str) -> None:
    """Write a run, in TREC's format under the name `tag`, or as JSONL; TREC's scores only say the order."""
    if path.suffix == JSONL:
        return write_jsonl(path, ({"query_id": query, "ranking": list(pages)} for query, pages in run.items()))
    lines = (
        f"{_id(query)} Q0 {_id(page)} {rank} {score:g} {_id(tag)}"
        for query, pages in run.items()
        for rank, (page, score) in enumerate(_descending_scores(pages).items(), start=1)
    )
    _write_lines(path, lines)


def read_run(path: Path) -> dict[str, list[str]]:
    """Read a run in TREC's format, or JSONL; as trec_eval does, TREC's scores say the order and not the ranks.

    Raises:
        ValueError: naming the line that is not laid out as described, or lists a query a second time (JSONL).
    """
    if path.suffix == JSONL:
        return {query: [str(page) for page in pages] for query, pages in _rows(path, "ranking")}
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


def _rows(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    """The queries of a JSONL file and what `column` holds for them: a list for a ranking, an object for grades."""
    wanted = list if column == "ranking" else dict
    seen: set[str] = set()
    for number, row in enumerate(read_jsonl(path), start=1):
        query = row.get("query_id")
        if not isinstance(query, str) or not isinstance(row.get(column), wanted) or query in seen:
            raise ValueError(
                f'{path}: line {number} should be {{"query_id": "…", "{column}": …}} and name its query once, '
                f"got {json.dumps(row)[:200]}."
            )
        seen.add(query)
        yield query, row[column]


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
