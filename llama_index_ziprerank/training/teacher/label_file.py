"""What the teacher answered: rankings in the columns of `dukesunmtri/ZipRerank_GPT-5-mini_MMDocIR_Train`, as JSONL."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from llama_index_ziprerank.training.hold import hold
from llama_index_ziprerank.training.teacher.queries import Id, TeacherQuery

LABEL_COLUMNS = (
    "query_id",
    "query",
    "doc_name",
    "domain",
    "candidate_page_ids",
    "gt_page_ids",
    "neg_page_ids",
    "openai_ranking",
    "ranked_page_ids",
    "openai_response",
    "first_stage_scores",
)

_BEGINNING = b'{"query_id": '
"""Of every row: the end of another file is no row that was cut off."""

_READ = ("domain", "query_id", "query", "candidate_page_ids", "openai_ranking")  # queries have the others too


class LabelFile:
    """The rankings made so far. A row is on the disk before `add` returns; opening the file again goes on after it."""

    def __init__(self, path: Path) -> None:
        """Open or begin the file; a last line that an interruption cut off is removed.

        Raises:
            ValueError: a line is no row of rankings, or another process writes this file: both would pay for a query.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("a+b")
        try:
            hold(self._file, path)
            self._labelled = dict(self._read())
            self._repair_end()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "LabelFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __contains__(self, query: TeacherQuery) -> bool:
        """Say whether the query has its ranking; ValueError when that ranking is of other words or other pages."""
        asked = self._labelled.get((query.domain, query.query_id))
        if asked is not None and asked != hash((query.query, query.candidates)):
            raise ValueError(
                f"{self.path} has a ranking of {query.name} for another question or other candidates. "
                "Write to another file, or remove that row."
            )
        return asked is not None

    def add(self, query: TeacherQuery, order: Sequence[int], response: str) -> None:
        """Write one ranking: `order` lists places among the candidates, best first; OSError when the disk is full."""
        values = (
            query.query_id,
            query.query,
            query.doc_name,
            query.domain,
            query.candidates,
            query.positives,
            [page for page in query.candidates if page not in query.positives],
            order,
            [query.candidates[place] for place in order],
            response,
            query.first_stage_scores,
        )
        row = dict(zip(LABEL_COLUMNS, values, strict=True))
        self._file.write(json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._labelled[query.domain, query.query_id] = hash((query.query, query.candidates))

    def _repair_end(self) -> None:
        """End the file with a whole line: a row that lacks but its newline gets it, half a row goes."""
        self._file.seek(0)
        end, last = 0, b""
        for line in self._file:
            end, last = end + len(line), line
        if not last or last.endswith(b"\n"):
            return
        try:
            json.loads(last)
            self._file.write(b"\n")
        except ValueError:
            self._file.truncate(end - len(last))
        self._file.flush()

    def _read(self) -> Iterator[tuple[tuple[str, Id], int]]:
        self._file.seek(0)
        for number, line in enumerate(self._file, start=1):
            try:
                row = json.loads(line)
                domain, query_id, query, candidates, _ = (row[column] for column in _READ)
                yield (domain, query_id), hash((query, tuple(candidates)))
            except (ValueError, KeyError, TypeError) as error:
                begun = not line.endswith(b"\n") and _BEGINNING.startswith(line[: len(_BEGINNING)])
                if begun and isinstance(error, ValueError):  # `_repair_end` removes it
                    return
                raise ValueError(f"{self.path}: line {number} is no ranking ({error}). Name another file.") from error
