"""A PDF becomes pages, one at a time: pictures and text by poppler, page labels by pypdf."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from warnings import warn

from PIL import Image
from pypdf import PdfReader

from llama_index_ziprerank.pages.images import fit_within
from llama_index_ziprerank.pages.page import BrokenPageError, Page, PageError, PageId, PageWarning
from llama_index_ziprerank.pages.poppler import (
    PdfFile,
    PdfInfo,
    drawing_complaints,
    inspect,
    page_picture,
    page_text,
)

OnError = Literal["raise", "skip"]

_POINTS_AN_INCH = 72
_LEAST_POINTS, _MOST_POINTS = 1, 100_000  # Acrobat stops at 14,400 (200 inches); plotter files go beyond
_MOST_ELONGATED = 100  # times longer than wide; Qwen-VL's image processor refuses 200
_BLANK_WITHIN = 4  # levels of 255; the edge of a white picture is drawn a little off white
_HASH_DIGITS = 16
_HEADER_WITHIN = 1024  # bytes; viewers tolerate junk before "%PDF-" that far


def read_pages(
    path: str | Path,
    *,
    dpi: int = 150,
    max_side: int = 1600,
    max_pages: int = 2000,
    on_error: OnError = "raise",
    password: str | None = None,
    timeout: float = 60.0,
    shown_as: str | None = None,
) -> Iterator[Page]:
    """Open a PDF now, and read its pages one at a time as the iterator advances.

    Args:
        dpi: pixels an inch; the crop box is drawn, as viewers show it.
        max_side: the longer side of a picture in pixels; a larger page is drawn smaller, never drawn large and shrunk.
        max_pages: a file with more pages is refused.
        on_error: what a broken page does: "raise" ends the reading there, "skip" warns (PageWarning) and goes on.
        password: opens an encrypted file. Other users of the machine may see it in the list of processes.
        timeout: seconds that one poppler program may take for one page.
        shown_as: the path that pages and messages carry when `path` is but a temporary copy.

    Raises:
        PageError: missing, no PDF, damaged, without pages, or with more than `max_pages`. The kinds PasswordError,
            PopplerMissingError and, for one page, BrokenPageError (see `_draw`) are its subclasses.
    """
    if dpi < 1 or max_side < 1 or max_pages < 1 or timeout <= 0:
        raise ValueError(
            f"dpi, max_side, max_pages and timeout must be positive, got {(dpi, max_side, max_pages, timeout)}."
        )
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is 'raise' or 'skip', got {on_error!r}.")
    pdf = PdfFile(Path(path).absolute(), shown_as or str(path), password, timeout)
    digest = _checked_digest(pdf)
    info = inspect(pdf, max_pages=max_pages)
    return _pages(pdf, info, digest, dpi=dpi, max_side=max_side, on_error=on_error)


def _pages(pdf: PdfFile, info: PdfInfo, digest: str, *, dpi: int, max_side: int, on_error: OnError) -> Iterator[Page]:
    labels = _labels(pdf, info.page_count)
    broken = 0
    for number in range(1, info.page_count + 1):
        try:
            text, complaints = _text(pdf, number)
            image = _draw(pdf, info, number, complaints, dpi=dpi, max_side=max_side)
        except BrokenPageError as error:
            if on_error == "raise":
                raise
            warn(f"{error} Skipped.", PageWarning, stacklevel=2)
            broken += 1
            continue
        yield Page(
            id=PageId(digest, number),
            image=image,
            text=text,
            label=labels[number - 1] or str(number),
            number=number,
            file_name=Path(pdf.name).name,
            file_path=pdf.name,
        )
    if broken == info.page_count:
        raise PageError(f"{pdf.name}: none of its {broken} pages can be read.")


def _checked_digest(pdf: PdfFile) -> str:
    """Return the first digits of the SHA-256 of the file's bytes, having seen that it may be a PDF."""
    sha256 = hashlib.sha256()
    try:
        with pdf.path.open("rb") as file:
            head = file.read(_HEADER_WITHIN)
            sha256.update(head)
            while chunk := file.read(1 << 20):
                sha256.update(chunk)
    except OSError as error:
        raise PageError(f"{pdf.name}: cannot be read ({error.strerror}). Pass the path of a PDF file.") from error
    if not head:
        raise PageError(f"{pdf.name}: the file is empty (0 bytes). Fetch it again.")
    if b"%PDF-" not in head:
        raise PageError(f"{pdf.name}: not a PDF; it begins with {head[:16]!r}, a PDF with '%PDF-'.")
    return sha256.hexdigest()[:_HASH_DIGITS]


def _labels(pdf: PdfFile, page_count: int) -> list[str]:
    """Return the PDF's own page labels; numbers, with a warning, when pypdf cannot read them."""
    try:
        labels = PdfReader(pdf.path, password=pdf.password).page_labels
        if len(labels) == page_count:
            return labels
        reason = f"pypdf sees {len(labels)} pages, poppler {page_count}"
    except Exception as error:  # on damaged files pypdf raises nearly anything, and labels are a comfort only
        reason = str(error)
    warn(f"{pdf.name}: page labels cannot be read, page numbers stand in ({reason}).", PageWarning, stacklevel=2)
    return [str(number) for number in range(1, page_count + 1)]


def _text(pdf: PdfFile, number: int) -> tuple[str, list[str]]:
    """Read the text layer; where that fails the page keeps its picture, without text and with a warning."""
    try:
        return page_text(pdf, number)
    except BrokenPageError as error:
        warn(f"{error} The page has no text.", PageWarning, stacklevel=2)
        return "", []


def _draw(pdf: PdfFile, info: PdfInfo, number: int, complaints: list[str], *, dpi: int, max_side: int) -> Image.Image:
    """Draw a page at `dpi`, or smaller so that its longer side is `max_side` pixels.

    A page is broken when poppler cannot find it, when its size is absurd, when no picture comes back in time, or when
    the picture is of one colour although poppler complained about this page. A page that shows something is kept: most
    complaints are about trifles that no reader would see. Damage inside a JPEG goes unnoticed, poppler keeps silent.
    """
    longer = _longer_side(pdf, info, number)
    side = max(1, min(max_side, round(longer / _POINTS_AN_INCH * dpi)))
    image = fit_within(page_picture(pdf, number, side), max_side)
    if all(high - low <= _BLANK_WITHIN for low, high in image.getextrema()):  # type: ignore[misc]
        complaints = complaints + drawing_complaints(pdf, number, side)
        own = [complaint for complaint in complaints if complaint not in info.complaints]
        if own:
            raise pdf.broken(number, f"nothing of it can be drawn ({own[0]})")
    return image


def _longer_side(pdf: PdfFile, info: PdfInfo, number: int) -> float:
    """Return the longer side of the page in points, having checked its size."""
    shorter, longer = sorted(info.sizes.get(number, (0.0, 0.0)))
    if longer == 0:
        raise pdf.broken(number, "the page tree announces it, but a page is missing; those after the gap moved up")
    if shorter >= _LEAST_POINTS and longer <= min(_MOST_POINTS, shorter * _MOST_ELONGATED):
        return longer
    raise pdf.broken(
        number,
        f"its size is absurd, {shorter:g} by {longer:g} points; wanted are {_LEAST_POINTS} to {_MOST_POINTS:,} points, "
        f"the longer side at most {_MOST_ELONGATED} times the shorter",
    )
