"""Runs and qrels: how they are written down (TREC text and JSONL, never pickle) and how they are measured.

A *run* holds for every query the pages it got, best first; *qrels* hold the pages that answer it, with their grades.
TREC files are those of trec_eval: `query 0 page grade` and `query Q0 page rank score tag`, so ids have no white space.
JSONL files (named `.jsonl`) have one query a line: `{"query_id": "q1", "ranking": ["a", "b"]}` and
`{"query_id": "q1", "relevant": {"a": 1}}`.
Metrics come from ir_measures.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import ir_measures
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
    values = {name: dict.fromkeys(qrels, 0.0) for name in metrics}
    spellings: dict[ir_measures.measures.Measure, list[str]] = defaultdict(list)
    for name in values:
        spellings[parse_metric(name)].append(name)
    for found in ir_measures.iter_calc(list(spellings), {query: dict(pages) for query, pages in qrels.items()}, scored):
        for name in spellings[found.measure]:
            values[name][found.query_id] = float(found.value)
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
        if (first := metric.params.get("cutoff", 1)) < 1:  # trec_eval ends the whole process at such a one
            raise ValueError(f"no rank {first}")
    except (AssertionError, NameError, SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"No metric {name!r}. Use such as Hit@5, MRR, R@5, nDCG@10 or AP.") from error
    return metric


def whole_grade(written: Any) -> int:
    """Return a grade of relevance as qrels hold it, from a number or its spelling: 1, "2", "1.0".

    Raises:
        ValueError: when it is no whole number; half a grade would be none.
    """
    try:
        grade = float(written)
    except (TypeError, ValueError):
        grade = 0.5
    if not grade.is_integer():
        raise ValueError(f"a grade of relevance is a whole number, got {written!r}.")
    return int(grade)


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
        return {
            query: {page: _grade(grade, f"{path}, query {query!r}") for page, grade in found.items()}
            for query, found in _rows(path, "relevant")
        }
    qrels: dict[str, dict[str, int]] = {}
    for number, (query, _, page, grade) in _read_columns(path, 4):
        qrels.setdefault(query, {})[page] = _grade(grade, f"{path}: line {number}")
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
    for number, (query, _, page, _, score, _) in _read_columns(path, 6):
        try:
            scored.setdefault(query, []).append((-float(score), page))
        except ValueError as error:
            raise ValueError(f"{path}: line {number} has the score {score!r}, wanted a number.") from error
    return {query: [page for _, page in sorted(pages, key=lambda pair: pair[0])] for query, pages in scored.items()}


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line."""
    _write_lines(path, (json.dumps(row, ensure_ascii=False) for row in rows))


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Add one JSON object as a line of its own and hand it to the operating system at once."""
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:  # half a character, as JSON spells it
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read the JSON object on every line but blank ones; a last line that an interruption cut off is left out.

    Raises:
        ValueError: when any other line is no JSON object.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                rows.append(_object(line))
        except ValueError as error:
            if number == len(lines):  # without a newline, so that it may not have been finished
                break
            raise ValueError(
                f"{path}: line {number} is no JSON object ({error}). Remove the line or the file."
            ) from error
    return rows


def _object(line: str) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"it is {line.strip():.80}")
    return row


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
    unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace")
    unfinished.replace(path)


def _read_columns(path: Path, count: int) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        columns = line.split()
        if len(columns) != count:
            raise ValueError(f"{path}: line {number} has {len(columns)} columns, wanted {count}: {line!r}.")
        yield number, columns


def _grade(written: Any, where: str) -> int:
    try:
        return whole_grade(written)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
