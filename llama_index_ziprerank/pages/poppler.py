"""The poppler programs: what a PDF holds, the text and the picture of one page; each call ends within a time limit.

Pictures come through pdf2image. poppler draws what it can of a damaged page, reports the rest on stderr and still exits
with 0; so text and pictures come with its complaints, and `pdf.py` judges them.
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pdf2image import convert_from_path
from pdf2image.exceptions import PDFPageCountError, PDFPopplerTimeoutError, PDFSyntaxError
from PIL import Image

from llama_index_ziprerank.pages.images import to_rgb
from llama_index_ziprerank.pages.page import BrokenPageError, PageError, PasswordError, PopplerMissingError

_COUNT_LINE = re.compile(r"^Pages:\s+(\d+)$", re.MULTILINE)
_SIZE_LINE = re.compile(r"^Page\s+(\d+) size:\s+(\S+) x (\S+) pts", re.MULTILINE)
_HARMLESS = ("Syntax Warning", "Config Error")


@dataclass(frozen=True)
class PdfFile:
    """Where a PDF lies, what messages call it, and how it is opened."""

    path: Path
    name: str
    password: str | None
    timeout: float
    """Seconds that one poppler program may take."""

    def broken(self, number: int, reason: str) -> BrokenPageError:
        """Make the error that says why page `number` is of no use."""
        return BrokenPageError(f"{self.name}, page {number}: {reason}.")


@dataclass(frozen=True)
class PdfInfo:
    """What pdfinfo says about a file."""

    page_count: int
    sizes: dict[int, tuple[float, float]]
    """Width and height of the crop box in points, before rotation, by page number. A page that poppler cannot find has
    no entry, or 0 x 0; an unreadable box counts as US Letter."""
    complaints: frozenset[str]
    """About the file as a whole; poppler repeats them for every page."""


def inspect(pdf: PdfFile, *, max_pages: int) -> PdfInfo:
    """Open the file and list its pages.

    Raises:
        PasswordError: the file is encrypted, and the password does not open it.
        PageError: no readable PDF, no pages or more than `max_pages`, or the time ran out.
        PopplerMissingError: poppler is not installed.
    """
    try:
        done = _run(pdf, "pdfinfo", "-f", "1", "-l", str(max_pages), str(pdf.path))
    except subprocess.TimeoutExpired:
        raise PageError(f"{pdf.name}: opening it took longer than {pdf.timeout:g} s. Raise `timeout`.") from None
    found = _COUNT_LINE.search(done.stdout)
    if found is None:
        raise _unreadable(pdf, done.stderr)
    count = int(found[1])
    if count > max_pages:
        raise PageError(f"{pdf.name}: has {count:,} pages, the limit is {max_pages:,}. Split it, or raise `max_pages`.")
    sizes = {int(number): (float(width), float(height)) for number, width, height in _SIZE_LINE.findall(done.stdout)}
    return PdfInfo(count, sizes, frozenset(_complaints(done.stderr)))


def page_text(pdf: PdfFile, number: int) -> tuple[str, list[str]]:
    """Return the text layer of a page in reading order, and poppler's complaints.

    Raises:
        BrokenPageError: pdftotext failed or took too long.
    """
    page = str(number)
    try:
        done = _run(pdf, "pdftotext", "-enc", "UTF-8", "-f", page, "-l", page, str(pdf.path), "-")
    except subprocess.TimeoutExpired:
        raise pdf.broken(number, f"pdftotext took longer than {pdf.timeout:g} s") from None
    if done.returncode != 0:
        raise pdf.broken(number, f"pdftotext failed ({done.stderr.strip()})")
    return done.stdout.replace("\f", "").replace("\0", "").strip(), _complaints(done.stderr)


def page_picture(pdf: PdfFile, number: int, side: int) -> Image.Image:
    """Draw the crop box of a page, RGB, its longer side `side` pixels.

    Raises:
        BrokenPageError: no picture comes back, or it took too long.
        PopplerMissingError: poppler is not installed.
    """
    return _converted(pdf, number, side, strict=False)


def drawing_complaints(pdf: PdfFile, number: int, side: int) -> list[str]:
    """Draw a page once more for what poppler complains of: pdf2image tells only when it is strict."""
    try:
        _converted(pdf, number, side, strict=True)
    except PDFSyntaxError as error:
        return _complaints(str(error))
    return []


def _converted(pdf: PdfFile, number: int, side: int, *, strict: bool) -> Image.Image:
    try:
        images = convert_from_path(
            pdf.path,
            first_page=number,
            last_page=number,
            size=side,
            use_cropbox=True,
            userpw=pdf.password,  # type: ignore[arg-type]
            ownerpw=pdf.password,  # type: ignore[arg-type]
            timeout=pdf.timeout,  # type: ignore[arg-type]
            strict=strict,
        )
        pictures = [to_rgb(image.copy()) for image in images]
    except PDFPopplerTimeoutError:
        raise pdf.broken(number, f"drawing it took longer than {pdf.timeout:g} s") from None
    except FileNotFoundError:
        raise _poppler_missing(pdf) from None
    except (PDFPageCountError, OSError, ValueError) as error:  # the last two: a picture that is cut off
        raise pdf.broken(number, f"it cannot be drawn ({error})") from error
    if not pictures:
        raise pdf.broken(number, "it cannot be drawn (poppler returned no picture)")
    return pictures[0]


def _run(pdf: PdfFile, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    passwords = ("-upw", pdf.password, "-opw", pdf.password) if pdf.password else ()
    command = [program, *passwords, *arguments]
    try:
        return subprocess.run(command, capture_output=True, timeout=pdf.timeout, encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise _poppler_missing(pdf) from None


def _complaints(stderr: str) -> list[str]:
    return [line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith(_HARMLESS)]


def _unreadable(pdf: PdfFile, stderr: str) -> PageError:
    if "Incorrect password" in stderr:
        given = "the password given does not open it" if pdf.password else "no password was given"
        return PasswordError(f"{pdf.name}: the PDF is encrypted, and {given}. Pass the right `password`.")
    if "Wrong page range" in stderr:
        return PageError(f"{pdf.name}: the PDF holds no pages ({'; '.join(_complaints(stderr)[:1])}).")
    return PageError(
        f"{pdf.name}: the PDF is damaged or cut off ({'; '.join(dict.fromkeys(_complaints(stderr)))}). Fetch it again."
    )


def _poppler_missing(pdf: PdfFile) -> PopplerMissingError:
    return PopplerMissingError(
        f"{pdf.name}: reading PDFs needs the poppler programs (pdfinfo, pdftotext, pdftoppm), and they are not on the "
        "PATH. Install poppler: `apt-get install poppler-utils`, `brew install poppler` or `conda install poppler`."
    )
