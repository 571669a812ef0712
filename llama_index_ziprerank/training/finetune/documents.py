"""PDF files become page images and texts in the work folder, once."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from llama_index_ziprerank.labels import label_manual
from llama_index_ziprerank.labels.headings import read_outline
from llama_index_ziprerank.pages.images import encode_png
from llama_index_ziprerank.pages.page import PageError
from llama_index_ziprerank.pages.pdf import read_pages

T = TypeVar("T")


class Track(Protocol):
    """Shows progress over items, of which there are `total` if that is known, and gives them back."""

    def __call__(self, items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]: ...


@dataclass(frozen=True)
class Question:
    """A question, and the pages (from 1) of one document that answer it."""

    text: str
    pages: tuple[int, ...]


@dataclass(frozen=True)
class Labels:
    """What a PDF says about itself."""

    questions: tuple[Question, ...]
    """Made of its outline and its index; may be empty."""
    candidates: tuple[int, ...]
    """Pages (from 1) that can answer something: contents and index do not."""
    sections: tuple[int, ...]
    """For each page the number of the heading that it stands under: questions are held out by it."""


@dataclass(frozen=True)
class Document:
    """A PDF that has been read."""

    name: str
    """Of its file; unique among the documents."""
    texts: list[str]
    """`texts[i]` belongs to page i + 1; empty for a page that cannot be read."""
    labels: Labels

    def page_id(self, page: int) -> str:
        """Name a page; its image is `<page id>.png` in the folder of the pages."""
        return f"{self.name}-{page:05d}"


def read_document(path: Path, folder: Path, track: Track) -> Document:
    """Read a PDF, or what an earlier run has read of it: images into `folder`, texts beside them.

    Raises:
        PageError: when it cannot be read, or has fewer than two pages that can answer something.
    """
    told = folder / f"{path.stem}.json"
    if not told.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(told, json.dumps(_read(path, folder, track), ensure_ascii=False))
    kept: dict[str, list[str]] = json.loads(told.read_text(encoding="utf-8"))
    labels = _labels(path, kept["texts"], kept["printed"])
    drawn = set(kept["drawn"])
    candidates = tuple(page for page in labels.candidates if page in drawn)
    if len(candidates) < 2:
        raise PageError(
            f"{path} has {len(candidates)} pages that can answer a question, wanted at least 2 to compare. "
            "Pass a longer document."
        )
    questions = tuple(question for question in labels.questions if set(question.pages) <= set(candidates))
    return Document(path.stem, kept["texts"], Labels(questions, candidates, labels.sections))


def _labels(path: Path, texts: list[str], printed: list[str]) -> Labels:
    """Make questions of a PDF's outline, index and captions, as the evaluation does."""
    outline = read_outline(path)
    labelled = label_manual(outline, texts, printed)
    starts = sorted({heading.page for heading in outline})
    sections = [sum(start <= page for start in starts) for page in range(1, len(texts) + 1)]
    questions = tuple(Question(query.text, query.pages) for query in labelled.queries)
    return Labels(questions, labelled.candidates, tuple(sections) if outline else tuple(range(len(texts))))


def _read(path: Path, folder: Path, track: Track) -> dict[str, list[str] | list[int]]:
    texts: dict[int, str] = {}
    printed: dict[int, str] = {}
    for page in track(read_pages(path, on_error="skip"), f"{path.name}: reading pages"):
        (folder / f"{path.stem}-{page.number:05d}.png").write_bytes(encode_png(page.image))
        texts[page.number], printed[page.number] = page.text, page.label
    numbers = range(1, max(texts) + 1)
    return {
        "texts": [texts.get(number, "") for number in numbers],
        "printed": [printed.get(number, "") for number in numbers],
        "drawn": sorted(texts),
    }


def ticker(track: Track, description: str, total: int) -> Callable[[], None]:
    """Return what shows that one more of `total` things is done."""
    progress = iter(track(range(total), description, total))
    next(progress, None)

    def tick() -> None:
        next(progress, None)

    return tick


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_name(f"{path.name}.partial")
    unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
    unfinished.replace(path)
