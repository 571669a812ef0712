"""Questions about documents: those of the PDF itself, or those that an LLM writes; and which of them are held out.

Held out by heading: pages stand under headings, and when a heading is drawn, every question that one of its pages
answers is held out. So no page under a drawn heading is ever taught as an answer.
"""

import asyncio
import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from llama_index_ziprerank.training.finetune.documents import Document, Question
from llama_index_ziprerank.training.teacher import Teacher, TeacherStoppedError, UnreadableAnswerError

_PROMPT = """\
This is one page of a document. Write {count} questions that a reader of the document might ask and that this page \
answers. Ask about what is particular to this page: its subject, its figures, its tables. Do not mention the page, the \
document or the picture in a question. Write each question on a line of its own, and nothing else."""

_NUMBERING = re.compile(r"^\s*(?:[-*•]\s+)?(?:\(?\d+(?:[.):]\s+|[．、]\s*))?")
"""A bullet, a number with its sign: "24 V relays: which fuse?" begins with neither."""

_AROUND = " \t*_`\"'“”„‟«»「」"
"""Quotation marks, and Markdown's bold and code."""

_MARKS = ("?", "？", "؟", "か。")
"""Question marks, and the particle that Japanese may end a question with instead."""

_WORD = re.compile(r"[぀-ヿ㐀-鿿]|[^\W぀-ヿ㐀-鿿]+")
"""A word, or one sign of Chinese and Japanese, which have no spaces."""


@dataclass(frozen=True)
class Asked:
    """A question about one of the documents."""

    id: str
    document: Document
    text: str
    pages: tuple[int, ...]
    """Pages (from 1) that answer it."""


def numbered(document: Document, questions: Iterable[Question]) -> list[Asked]:
    """Name the questions about a document; a text that stands there twice counts once, with all its pages."""
    pages: dict[str, set[int]] = {}
    for question in questions:
        pages.setdefault(question.text, set()).update(question.pages)
    return [
        Asked(f"{document.name}:{number:05d}", document, text, tuple(sorted(found)))
        for number, (text, found) in enumerate(pages.items(), start=1)
    ]


def hold_out(questions: Sequence[Asked], share: float, seed: int) -> tuple[list[Asked], list[Asked]]:
    """Part the questions into those to train on, and about `share` of them to measure on, by heading.

    Raises:
        ValueError: when one of the sides would be empty.
    """

    def headings(question: Asked) -> set[tuple[str, int]]:
        sections = question.document.labels.sections
        return {(question.document.name, sections[page - 1]) for page in question.pages}

    waiting = sorted({heading for question in questions for heading in headings(question)})
    random.Random(seed).shuffle(waiting)
    drawn: set[tuple[str, int]] = set()
    held: list[Asked] = []
    for heading in waiting:
        if len(held) >= share * len(questions):
            break
        drawn.add(heading)
        held = [question for question in questions if headings(question) & drawn]
    kept = [question for question in questions if not headings(question) & drawn]
    if not kept or not held:
        raise ValueError(
            f"{len(questions)} questions under {len(waiting)} headings leave {len(kept)} to train on, {len(held)} to "
            "measure on. Pass more documents, another share to hold out, or an LLM that writes questions."
        )
    return kept, held


async def written_questions(
    document: Document,
    teacher: Teacher,
    image: Callable[[str], Image.Image],
    path: Path,
    *,
    count: int,
    on_done: Callable[[], object] = lambda: None,
) -> list[Question]:
    """Let an LLM write `count` questions about each page; a page's questions are on the disk when they have come.

    A page that gets none is left out, also when the run is repeated: questions are known by their numbers.

    Raises:
        TeacherStoppedError: too many pages in a row, or all, got no questions; those that came are kept.
    """
    kept = _read(path)
    waiting = iter([page for page in document.labels.candidates if page not in kept])
    failures, reason = 0, ""

    def keep(page: int, found: list[str]) -> None:
        kept[page] = found
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps({"page": page, "questions": found}, ensure_ascii=False) + "\n")

    async def work() -> None:
        nonlocal failures, reason
        for page in waiting:
            picture = await asyncio.to_thread(image, document.page_id(page))
            try:
                found = await teacher.ask(_PROMPT.format(count=count), [picture], lambda text: read_lines(text, count))
            except (
                Exception
            ) as error:  # any callable raises anything: one failure costs one page, many in a row the run
                teacher.totals.failed += 1
                failures += 1
                reason = str(error) or type(error).__name__
                if failures >= teacher.settings.failures_in_a_row:
                    raise TeacherStoppedError(
                        f"{failures} pages in a row got no questions; the last: {reason}"
                    ) from error
            else:
                failures = 0
                keep(page, found)
            on_done()

    workers = [asyncio.create_task(work()) for _ in range(teacher.settings.concurrency)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    if not kept:
        raise TeacherStoppedError(f"No page of {document.name} got questions; the last: {reason}")
    for page in sorted(set(document.labels.candidates) - set(kept)):
        keep(page, [])
    return [Question(text, (page,)) for page, texts in sorted(kept.items()) for text in texts]


def read_lines(text: str, count: int) -> list[str]:
    """Read up to `count` questions, one a line; UnreadableAnswerError when there is none."""
    lines = [" ".join(_NUMBERING.sub("", line.strip(_AROUND)).strip(_AROUND).split()) for line in text.splitlines()]
    questions = [line for line in lines if len(_WORD.findall(line)) >= 3 and line.endswith(_MARKS)]
    if not questions:
        raise UnreadableAnswerError(f"the answer holds no question: {text!r:.200}")
    return questions[:count]


def _read(path: Path) -> dict[int, list[str]]:
    """Read what an earlier run has brought; a last line that was cut off does not count."""
    kept: dict[int, list[str]] = {}
    if not path.is_file():
        return kept
    whole = path.read_bytes().rpartition(b"\n")[0]
    path.write_bytes(whole + b"\n" if whole else b"")
    for line in whole.splitlines():
        row = json.loads(line)
        kept[row["page"]] = row["questions"]
    return kept
