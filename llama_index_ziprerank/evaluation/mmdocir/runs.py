"""Runs over the documents of MMDocIR: those that come from elsewhere, and those that are written.

In a run file, JSONL or TREC, questions are named ``report.pdf:q0`` and candidates ``report.pdf:p4`` (pages) or
``report.pdf:l17`` (layouts), all from 0 within the document; white space in a document's name is written ``%20``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from llama_index_ziprerank.evaluation.digests import file_digest
from llama_index_ziprerank.evaluation.mmdocir.annotations import Document, Question, all_questions, candidate_id
from llama_index_ziprerank.evaluation.mmdocir.result import QuestionResult
from llama_index_ziprerank.evaluation.mmdocir.rows import Span
from llama_index_ziprerank.evaluation.results import FIRST_STAGE, RERANKED
from llama_index_ziprerank.evaluation.runs import Run, read_run, write_qrels, write_run

GivenRun: TypeAlias = dict[str, list[int]]
"""Question id → the numbers of its candidates within the document, best first."""


def rows_of(document: Document, level: str) -> Span:
    """Return the first and the last row of a document in the parquet file of a level."""
    return document.page_rows if level == "page" else document.layout_rows


def run_settings(path: Path) -> str:
    """Name a run file in settings, by its content too."""
    return f"run {path.name} {file_digest(path)}"


def read_given_run(path: Path, documents: Sequence[Document], asked: Sequence[str], level: str) -> GivenRun:
    """Read a run; what it lacks, or names and does not exist, is an error before any work begins.

    Raises:
        ValueError: naming the question or the candidate.
    """
    run = read_run(path)
    if missing := [query_id for query_id in asked if query_id not in run]:
        raise ValueError(
            f"{path} has no ranking for {len(missing)} of {len(asked)} questions, such as {missing[0]!r}. "
            f"Questions are named so, candidates so: {candidate_id(documents[0].name, level, 0)!r}."
        )
    return {
        question.id: _numbers(path, run, document, question, level)
        for document, question in all_questions(documents)
        if question.id in run
    }


def _numbers(path: Path, run: Run, document: Document, question: Question, level: str) -> list[int]:
    first, last = rows_of(document, level)
    number_of = {candidate_id(document.name, level, number): number for number in range(last - first + 1)}
    for name in run[question.id]:
        if name not in number_of:
            raise ValueError(
                f"{path}: {name!r} is no {level} of the document of question {question.id!r}, whose {level}s are "
                f"{candidate_id(document.name, level, 0)!r} to {candidate_id(document.name, level, last - first)!r}."
            )
    if len(set(run[question.id])) != len(run[question.id]):
        raise ValueError(f"{path} names a {level} twice for question {question.id!r}. Leave the second one out.")
    return [number_of[name] for name in run[question.id]]


def write_runs(results: Sequence[QuestionResult], documents: Sequence[Document], level: str, to: Path) -> None:
    """Write both runs, and for pages the qrels, as TREC and JSONL; a layout has no grade, only an area."""
    pages_of = {question.id: question.pages for _, question in all_questions(documents)}

    def named(result: QuestionResult, numbers: Sequence[int]) -> list[str]:
        return [candidate_id(result.document, level, number) for number in numbers]

    for suffix in (".trec", ".jsonl"):
        for system in (FIRST_STAGE, RERANKED):
            run = {result.query_id: named(result, result.rankings[system]) for result in results}
            write_run(to / f"{system}-{level}{suffix}", run, tag=system)
        if level == "page":
            qrels = {one.query_id: dict.fromkeys(named(one, pages_of[one.query_id]), 1) for one in results}
            write_qrels(to / f"qrels-page{suffix}", qrels)
