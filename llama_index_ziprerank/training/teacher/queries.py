"""What the teacher is asked: queries and their candidate pages, one JSON object a line, made by any first stage::

    {"query_id": "q1", "query": "How is a polar grid drawn?", "doc_name": "manual.pdf", "domain": "manuals",
     "candidate_page_ids": ["manual.pdf#7", "manual.pdf#2"], "gt_page_ids": ["manual.pdf#7"],
     "first_stage_scores": [11.2, 9.8]}

`first_stage_scores` may be missing, `gt_page_ids` may be empty.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from llama_index_ziprerank.reranking.permutation import WINDOW_SIZE

Id: TypeAlias = str | int


@dataclass(frozen=True)
class TeacherQuery:
    """A query and the pages that the teacher is to rank for it. `query_id` is unique only together with `domain`."""

    query_id: Id
    query: str
    doc_name: str
    domain: str
    candidates: tuple[Id, ...]
    """Page ids in the order of the first stage: 2 to 20, each once."""
    positives: tuple[Id, ...]
    """Page ids known to answer the query; they need not be among the candidates."""
    first_stage_scores: tuple[float, ...] | None

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"query {self.query_id!r}" + (f" of {self.domain!r}" if self.domain else "")


def read_queries(path: Path) -> Iterator[TeacherQuery]:
    """Read the rows of a file of queries one at a time.

    Raises:
        ValueError: a row is not JSON, lacks a column, or holds something else in it; the message names the line.
    """
    with path.open("rb") as file:  # json tells a line's encoding, and passes over a byte order mark
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield _query(json.loads(line))
                except ValueError as error:  # json.JSONDecodeError is one
                    raise ValueError(f"{path}: line {number}: {error}") from error


def check_queries(path: Path, check_page: Callable[[Id], object]) -> int:
    """Read all rows once, before the first request costs money, and return how many there are.

    Raises:
        ValueError: as `read_queries`; no row at all, two rows of one query; and what `check_page` raises.
    """
    seen: set[tuple[str, Id]] = set()
    for query in read_queries(path):
        if (query.domain, query.query_id) in seen:
            raise ValueError(f"{path}: {query.name} stands there twice. Give each row of a domain its own query_id.")
        seen.add((query.domain, query.query_id))
        for page in query.candidates:
            check_page(page)
    if not seen:
        raise ValueError(f"{path} holds no query.")
    return len(seen)


def _query(row: Any) -> TeacherQuery:
    """Check one row. Values stay as they are: an id may be a text or a number."""
    if not isinstance(row, Mapping):
        raise ValueError(f"a row is a JSON object, got {row!r:.80}.")
    for column in ("query", "doc_name", "domain"):
        _check(row, column, isinstance(row.get(column), str), "a text")
    _check(row, "query", bool(row["query"].strip()), "a question")
    _check(row, "query_id", _is_id(row.get("query_id")), "a text or a number")
    for column in ("candidate_page_ids", "gt_page_ids"):
        pages = row.get(column)
        _check(row, column, isinstance(pages, list) and all(map(_is_id, pages)), "a list of page ids")
    candidates, scores = row["candidate_page_ids"], row.get("first_stage_scores")
    fits = 2 <= len(candidates) <= WINDOW_SIZE and len(set(candidates)) == len(candidates)
    _check(row, "candidate_page_ids", fits, f"2 to {WINDOW_SIZE} page ids, each once: what fits one request")
    if scores is not None:
        valid = isinstance(scores, list) and all(isinstance(score, float | int) for score in scores)
        _check(row, "first_stage_scores", valid and len(scores) == len(candidates), "one number for each candidate")
    return TeacherQuery(
        query_id=row["query_id"],
        query=row["query"],
        doc_name=row["doc_name"],
        domain=row["domain"],
        candidates=tuple(candidates),
        positives=tuple(row["gt_page_ids"]),
        first_stage_scores=None if scores is None else tuple(scores),
    )


def _is_id(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _check(row: Mapping[str, Any], column: str, right: bool, wanted: str) -> None:
    if not right:
        came = f"got {row[column]!r:.120}" if column in row else "it is missing"
        raise ValueError(f"{column} must be {wanted}; {came}.")
