"""A PDF becomes pages, one at a time: pictures and text by poppler, page labels by pypdf.

All three run as other programs within bounds (`bounded.py`): no file can crash, hang or fill this process.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import inf
from pathlib import Path
from time import monotonic
from typing import Literal
from warnings import warn

from PIL import Image

from llama_index_ziprerank.pages.bounded import Bounds
from llama_index_ziprerank.pages.first_look import FirstLook, first_look
from llama_index_ziprerank.pages.images import MOST_ELONGATED, fit_within
from llama_index_ziprerank.pages.labels import LabelError, read_labels
from llama_index_ziprerank.pages.page import (
    MAX_PAGES,
    BrokenPageError,
    Page,
    PageError,
    PageId,
    PageWarning,
    encodable,
)
from llama_index_ziprerank.pages.poppler import PdfFile, PdfInfo, page_picture, page_text, unlocked

OnError = Literal["raise", "skip"]

_POINTS_AN_INCH = 72
_LEAST_POINTS, _MOST_POINTS = 1, 100_000  # Acrobat stops at 14,400 (200 inches); plotter files go beyond
LEAST_MEMORY = 128  # MiB; poppler and its libraries take about 50, Python with pypdf as much
_BOUNDS = Bounds(timeout=60.0, max_memory=2048)
_BLANK_WITHIN = 4  # levels of 255; the edge of a white picture is drawn a little off white


@dataclass(frozen=True)
class _Choices:
    dpi: int
    max_side: int
    on_error: OnError
    file_timeout: float


def read_pages(
    path: str | Path,
    *,
    dpi: int = 150,
    max_side: int = 1600,
    max_pages: int = MAX_PAGES,
    on_error: OnError = "raise",
    password: str | None = None,
    timeout: float = _BOUNDS.timeout,
    file_timeout: float = 3600.0,
    max_memory: int = _BOUNDS.max_memory,
    shown_as: str | None = None,
) -> Iterator[Page]:
    """Open a PDF now, and read its pages one at a time as the iterator advances.

    Args:
        dpi: pixels an inch; the crop box is drawn, as viewers show it, and the whole sheet where it shows nothing.
        max_side: the longer side of a picture in pixels; a larger page is drawn smaller, never drawn large and shrunk.
        max_pages: a file with more pages is refused.
        on_error: what a broken page does: "raise" ends the reading there, "skip" warns (PageWarning) and goes on.
        password: opens an encrypted file. Other users of the machine may see it in the list of processes.
        timeout: seconds that one program may take for one page.
        file_timeout: seconds that reading all pages may take; what the caller does between two pages does not count.
        max_memory: MiB of address space that one program may take (not on macOS and Windows).
        shown_as: the path that pages and messages carry when `path` is but a temporary copy.

    Raises:
        PageError: missing, no PDF, damaged, without pages, with more than `max_pages`, or slower than `file_timeout`.
            The kinds PasswordError, PopplerMissingError and, for one page, BrokenPageError (see `_draw`) are its
            subclasses.
    """
    _check_choices(
        on_error, dpi=dpi, max_side=max_side, max_pages=max_pages, timeout=timeout, file_timeout=file_timeout
    )
    if max_memory < LEAST_MEMORY:
        raise ValueError(f"max_memory is at least {LEAST_MEMORY} MiB, which poppler needs to start, got {max_memory}.")
    name = encodable(shown_as or str(path))
    pdf = PdfFile(Path(path).absolute(), name, password, Bounds(timeout, max_memory))
    look = first_look(pdf)
    pdf, info = unlocked(pdf, max_pages=max_pages)
    return _pages(pdf, info, look, _Choices(dpi, max_side, on_error, file_timeout))


def count_pages(path: str | Path, *, max_pages: int = MAX_PAGES, password: str | None = None) -> int:
    """Open a PDF as `read_pages` does, and return how many pages it has; arguments and errors as there."""
    pdf = PdfFile(Path(path).absolute(), encodable(str(path)), password, _BOUNDS)
    first_look(pdf)
    _, info = unlocked(pdf, max_pages=max_pages)
    return info.page_count


def _check_choices(on_error: OnError, **numbers: float) -> None:
    for name, number in numbers.items():
        if not 0 < number < inf:
            raise ValueError(f"{name} must be positive and finite, got {number}.")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is 'raise' or 'skip', got {on_error!r}.")


def _pages(pdf: PdfFile, info: PdfInfo, look: FirstLook, choices: _Choices) -> Iterator[Page]:
    labels: list[str] = []
    failures: list[BrokenPageError] = []
    spent = 0.0
    with ThreadPoolExecutor(1) as beside:
        # beside the drawing of the first page
        reading_labels = beside.submit(read_labels, pdf, info.page_count) if look.may_hold_labels else None
        for number in range(1, info.page_count + 1):
            if spent > choices.file_timeout:
                raise PageError(
                    f"{pdf.name}: reading {number - 1} of its {info.page_count} pages took longer than "
                    f"{choices.file_timeout:g} s in all. Split it, or raise `file_timeout`."
                )
            start = monotonic()
            page = _text_and_picture(pdf, info, number, choices)
            labels = labels or _labels(pdf, info.page_count, reading_labels)
            spent += monotonic() - start
            if isinstance(page, BrokenPageError):
                failures.append(page)
                continue
            text, image = page
            yield Page(
                id=PageId(look.digest, number),
                image=image,
                text=text,
                label=labels[number - 1] or str(number),
                number=number,
                file_name=Path(pdf.name).name,
                file_path=pdf.name,
            )
    if len(failures) == info.page_count:
        raise PageError(f"{pdf.name}: none of its {info.page_count} pages can be read; the first: {failures[0]}")


def _text_and_picture(
    pdf: PdfFile, info: PdfInfo, number: int, choices: _Choices
) -> tuple[str, Image.Image] | BrokenPageError:
    """Read a page; return the error of a broken one, with a warning, when those are to be skipped."""
    try:
        text, complaints = _text(pdf, number)
        return text, _draw(pdf, info, number, complaints, dpi=choices.dpi, max_side=choices.max_side)
    except BrokenPageError as error:
        if choices.on_error == "raise":
            raise
        warn(f"{error} Skipped.", PageWarning, stacklevel=3)
        return error


def _labels(pdf: PdfFile, page_count: int, reading: "Future[list[str]] | None") -> list[str]:
    """Return the PDF's own page labels; numbers when it has none, and with a warning when they cannot be read."""
    try:
        if reading is not None:
            return reading.result()
    except LabelError as error:
        warn(f"{pdf.name}: page labels cannot be read, page numbers stand in ({error}).", PageWarning, stacklevel=3)
    return [str(number) for number in range(1, page_count + 1)]


def _text(pdf: PdfFile, number: int) -> tuple[str, list[str]]:
    """Read the text layer; where that fails the page keeps its picture, without text and with a warning."""
    try:
        return page_text(pdf, number)
    except BrokenPageError as error:
        warn(f"{error} The page has no text.", PageWarning, stacklevel=4)
        return "", []


def _draw(pdf: PdfFile, info: PdfInfo, number: int, complaints: list[str], *, dpi: int, max_side: int) -> Image.Image:
    """Draw a page at `dpi`, or smaller so that its longer side is `max_side` pixels.

    A page is broken when poppler cannot find it, when its size is absurd, when no picture comes back in time, or when
    the picture is of one colour although poppler complained about this page. A page that shows something is kept: most
    complaints are about trifles that no reader would see. Damage inside a JPEG goes unnoticed, poppler keeps silent.
    """
    longer = _longer_side(pdf, info, number)
    side = max(1, min(max_side, round(longer / _POINTS_AN_INCH * dpi)))
    picture, more_complaints = page_picture(pdf, number, side, cropped=number not in info.uncropped)
    image = fit_within(picture, max_side)
    if all(high - low <= _BLANK_WITHIN for low, high in image.getextrema()):  # type: ignore[misc]
        own = [complaint for complaint in [*complaints, *more_complaints] if complaint not in info.complaints]
        if own:
            raise pdf.broken(number, f"nothing of it can be drawn ({own[0]})")
    return image


def _longer_side(pdf: PdfFile, info: PdfInfo, number: int) -> float:
    """Return the longer side of the page in points, having checked its size."""
    if number not in info.sizes:
        raise pdf.broken(number, "the page tree announces it, but a page is missing; those after the gap moved up")
    shorter, longer = sorted(info.sizes[number])
    if shorter >= _LEAST_POINTS and longer <= min(_MOST_POINTS, shorter * MOST_ELONGATED):
        return longer
    raise pdf.broken(
        number,
        f"its size is absurd, {shorter:g} by {longer:g} points; wanted are {_LEAST_POINTS} to {_MOST_POINTS:,} points, "
        f"the longer side at most {MOST_ELONGATED} times the shorter",
    )
