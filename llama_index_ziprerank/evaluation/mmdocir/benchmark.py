"""Measure a first stage and its reranked order on MMDocIR, pages and layouts, question by question.

The parquet file is read once, front to back; a document's images are in memory while its questions are asked. Every
question is written down when it is done (`results-page.jsonl`, `results-layout.jsonl`).
"""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from llama_index_ziprerank.evaluation.digests import checkpoint_digests, file_digest
from llama_index_ziprerank.evaluation.first_stage import FirstStage, HeadReranker, RerankSettings
from llama_index_ziprerank.evaluation.mmdocir.annotations import (
    Box,
    Document,
    Question,
    all_questions,
    as_bbox,
    candidate_id,
    read_annotations,
)
from llama_index_ziprerank.evaluation.mmdocir.metrics import CUTOFFS, Part, layout_recalls, page_recalls, table
from llama_index_ziprerank.evaluation.mmdocir.result import QuestionResult
from llama_index_ziprerank.evaluation.mmdocir.rows import IMAGE, Row, open_rows, stream_spans
from llama_index_ziprerank.evaluation.mmdocir.runs import GivenRun, read_given_run, rows_of, write_runs
from llama_index_ziprerank.evaluation.results import FIRST_STAGE, RERANKED, ResultsFile
from llama_index_ziprerank.evaluation.tracking import Track, silently
from llama_index_ziprerank.pages.images import open_image
from llama_index_ziprerank.pages.page import PageError

ANNOTATIONS = "MMDocIR_annotations.jsonl"
LEVELS = tuple(CUTOFFS)


@dataclass(frozen=True)
class Settings:
    """What is measured on one level. Equal settings give equal results."""

    level: str = "page"
    """ "page", or "layout": paragraphs, tables and figures cut out of the pages."""
    first_stage: str = "nano"
    """The name of the retriever; of a run that is given, `run <name of the file> <digest>`."""
    rerank: RerankSettings = RerankSettings()
    queries: int | None = None
    """Questions drawn from the whole set; all of them by default."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"level is one of {', '.join(LEVELS)}, got {self.level!r}.")


def evaluate_mmdocir(
    folder: Path,
    settings: Settings,
    first_stage: FirstStage | Path,
    to: Path,
    track: Track = silently,
) -> list[QuestionResult]:
    """Measure on the published files in `folder`; results, qrels and runs are written into `to`.

    `first_stage` ranks a document's images, or is a run in JSONL or TREC (`runs`).

    Raises:
        FileNotFoundError: for a missing file of the benchmark.
        ValueError: for a file of another kind or version, a run that lacks questions, or `to` with other settings,
            annotations or images.
    """
    documents = read_annotations(folder / ANNOTATIONS)
    asked = _drawn(documents, settings)
    path = folder / f"MMDocIR_{settings.level}s.parquet"
    open_rows(path, settings.level, [rows_of(document, settings.level) for document in documents])
    first: FirstStage | GivenRun = (
        read_given_run(first_stage, documents, asked, settings.level) if isinstance(first_stage, Path) else first_stage
    )
    to.mkdir(parents=True, exist_ok=True)
    told = {
        **asdict(settings),
        "weights": checkpoint_digests(reranker=settings.rerank.model, retriever=settings.first_stage),
        "annotations": file_digest(folder / ANNOTATIONS),
        "images": file_digest(path),
    }
    file = ResultsFile(to / f"results-{settings.level}.jsonl", told, QuestionResult)
    waiting = set(asked) - file.query_ids()
    rerank = HeadReranker(settings.rerank)
    stream = _documents_with_rows(path, settings.level, documents, waiting)
    questions = (
        result
        for document, rows in stream
        for result in _Level(document, rows, settings, rerank).measure(waiting, first)
    )
    for result in track(questions, f"MMDocIR, {settings.level}s", len(waiting)):
        file.add(result)
    by_id = {result.query_id: result for result in file.results}
    results = [by_id[query_id] for query_id in asked]
    write_runs(results, documents, settings.level, to)
    return results


def summarize(results: Sequence[QuestionResult]) -> list[Part]:
    """Return the table: a line a domain, then macro and micro."""
    return table([(result.domain, result.recalls) for result in results])


def _drawn(documents: Sequence[Document], settings: Settings) -> list[str]:
    """The ids of the questions that are asked, in the file's order."""
    ids = [question.id for _, question in all_questions(documents)]
    if not ids:
        raise ValueError(f"{ANNOTATIONS} has no question.")
    if settings.queries is None or settings.queries >= len(ids):
        return ids
    drawn = set(random.Random(settings.seed).sample(ids, settings.queries))
    return [query_id for query_id in ids if query_id in drawn]


def _documents_with_rows(
    path: Path, level: str, documents: Sequence[Document], waiting: set[str]
) -> Iterator[tuple[Document, list[Row]]]:
    """The documents that are still asked about, in the order of the file."""
    wanted = [document for document in documents if waiting & {question.id for question in document.questions}]
    wanted.sort(key=lambda document: rows_of(document, level))
    spans = [rows_of(document, level) for document in wanted]
    for number, (document, (first, last)) in enumerate(zip(wanted, spans, strict=True)):
        if last < first or (number and first <= spans[number - 1][1]):
            raise ValueError(
                f"{path}: {document.name!r} has questions and the rows {first} to {last}; wanted is at least one row, "
                "and none of another document. Correct the annotations, or leave the document out."
            )
    for document, rows in zip(wanted, stream_spans(open_rows(path, level, spans), level, spans), strict=True):
        strangers = {row["doc_name"] for row in rows} - {document.name}
        if strangers:
            raise ValueError(
                f"{path}: rows {rows_of(document, level)} should be of {document.name!r}, found {strangers.pop()!r}. "
                "Annotations and parquet files must be of one version."
            )
        yield document, rows


class _Level:
    """The pages, or the layouts, of one document while its questions are asked."""

    def __init__(self, document: Document, rows: list[Row], settings: Settings, rerank: HeadReranker) -> None:
        self._document = document
        self._rows = rows
        self._settings = settings
        self._rerank = rerank
        self._number_of = {candidate_id(document.name, settings.level, n): n for n in range(len(rows))}

    def measure(self, waiting: set[str], first: FirstStage | GivenRun) -> Iterator[QuestionResult]:
        """Ask the questions that wait."""
        questions = [question for question in self._document.questions if question.id in waiting]
        rankings = first if isinstance(first, dict) else self._ranked(first, questions)
        for question in questions:
            started = time.perf_counter()
            before = rankings[question.id]
            names = [candidate_id(self._document.name, self._settings.level, number) for number in before]
            order = self._rerank(question.text, names, lambda name: self._image(self._number_of[name]))
            after = [self._number_of[name] for name in order]
            yield QuestionResult(
                question.id,
                self._document.name,
                self._document.domain,
                question.text,
                {FIRST_STAGE: before, RERANKED: after},
                {FIRST_STAGE: self._recalls(before, question), RERANKED: self._recalls(after, question)},
                round(time.perf_counter() - started, 4),
            )

    def _ranked(self, first: FirstStage, questions: Sequence[Question]) -> dict[str, list[int]]:
        depth = max(self._settings.rerank.top_k, *CUTOFFS[self._settings.level])
        images = ((str(number), self._image(number)) for number in range(len(self._rows)))
        found = first(images, {question.id: question.text for question in questions}, depth)
        return {query_id: [int(name) for name in names] for query_id, names in found.items()}

    def _image(self, number: int) -> Image.Image:
        try:
            return open_image(self._rows[number][IMAGE])
        except PageError as error:
            raise PageError(f"{self._document.name}, {self._settings.level} {number} (from 0): {error}") from error

    def _recalls(self, ranking: Sequence[int], question: Question) -> dict[str, float]:
        if self._settings.level == "page":
            return page_recalls(ranking, question)
        return layout_recalls([self._box(number) for number in ranking], question)

    def _box(self, number: int) -> Box:
        row: dict[str, Any] = self._rows[number]
        return Box(int(row["page_id"]), as_bbox(row["bbox"]))
