"""`MMDocIR_annotations.jsonl`: the documents, their rows in the parquet files, and the questions with their answers.

One document a line: ``doc_name, domain, page_indices, layout_indices, questions``; the indices are the first and the
last row of the document in `MMDocIR_pages.parquet` and `MMDocIR_layouts.parquet`. A question has ``Q``, ``page_id``
(pages that answer it, from 0 within the document) and ``layout_mapping`` (boxes: ``page, bbox``).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_index_ziprerank.evaluation.runs import without_space

DOMAINS = (
    "Research report / Introduction",
    "Administration/Industry file",
    "Tutorial/Workshop",
    "Academic paper",
    "Brochure",
    "Financial report",
    "Guidebook",
    "Government",
    "Laws",
    "News",
)
"""In the order of the published tables."""


@dataclass(frozen=True)
class Box:
    """A rectangle on a page (from 0 within its document), in points: left, top, right, bottom."""

    page: int
    bbox: tuple[float, float, float, float]


@dataclass(frozen=True)
class Question:
    """A question and what answers it."""

    id: str
    """``<document>:q<number from 0>``, without white space."""
    text: str
    pages: tuple[int, ...]
    layouts: tuple[Box, ...]


@dataclass(frozen=True)
class Document:
    """A document: its first and last row in each parquet file, and its questions."""

    name: str
    domain: str
    page_rows: tuple[int, int]
    layout_rows: tuple[int, int]
    questions: tuple[Question, ...]


def candidate_id(document: str, level: str, number: int) -> str:
    """Name a page (level "page": ``report.pdf:p4``) or layout (``report.pdf:l17``), from 0 within its document."""
    return f"{without_space(document)}:{level[0]}{number}"


def read_annotations(path: Path) -> list[Document]:
    """Read the published file.

    Raises:
        FileNotFoundError: naming the place to get it from.
        ValueError: naming the line that is not laid out as described.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {path}. Get MMDocIR_annotations.jsonl from github.com/MMDocRAG/MMDocIR (folder dataset), and "
            "the parquet files from huggingface.co/datasets/MMDocIR/MMDocIR_Evaluation_Dataset."
        )
    documents = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    documents.append(_document(json.loads(line)))
                except (KeyError, TypeError, ValueError) as error:
                    raise ValueError(
                        f"{path}: line {number} is no document of MMDocIR ({type(error).__name__}: {error}). Wanted "
                        "doc_name, domain, page_indices, layout_indices, and questions with Q, page_id, layout_mapping."
                    ) from error
    names = [document.name for document in documents]
    if len(set(names)) != len(names):
        raise ValueError(f"{path} has two documents of one name. Remove one.")
    return documents


def _document(row: Mapping[str, Any]) -> Document:
    name = str(row["doc_name"])
    questions = (_question(name, number, question) for number, question in enumerate(row["questions"]))
    return Document(
        name, str(row["domain"]), _rows(row["page_indices"]), _rows(row["layout_indices"]), tuple(questions)
    )


def _question(document: str, number: int, row: Mapping[str, Any]) -> Question:
    boxes = tuple(Box(int(box["page"]), as_bbox(box["bbox"])) for box in row["layout_mapping"])
    pages = tuple(int(page) for page in row["page_id"])
    return Question(f"{without_space(document)}:q{number}", str(row["Q"]), pages, boxes)


def as_bbox(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Read a box. Raises ValueError unless there are four numbers."""
    left, top, right, bottom = (float(value) for value in values)
    return left, top, right, bottom


def _rows(indices: Sequence[int]) -> tuple[int, int]:
    first, last = (int(index) for index in indices)
    return first, last


def all_questions(documents: Sequence[Document]) -> Iterator[tuple[Document, Question]]:
    """Yield every question with its document, in the file's order."""
    for document in documents:
        for question in document.questions:
            yield document, question
