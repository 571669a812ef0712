"""The poppler programs: what a PDF holds, the text and the picture of one page; each call runs within bounds.

poppler draws what it can of a damaged page, reports the rest on stderr and still exits with 0; so text and pictures
come with its complaints, and `pdf.py` judges them. pdftoppm is called here and not through pdf2image, which limits
neither its memory nor the time of the pdfinfo that it runs before each page.
"""

import os
import re
import shutil
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from llama_index_ziprerank.pages.bounded import MIB, Bounds, Finished, run_bounded
from llama_index_ziprerank.pages.page import BrokenPageError, PageError, PasswordError, PopplerMissingError

_COUNT_LINE = re.compile(r"^Pages:\s+(\d+)$", re.MULTILINE)
_SIZE_LINE = re.compile(r"^Page\s+(\d+) size:\s+(\S+) x (\S+) pts", re.MULTILINE)
_MEDIA_BOX_LINE = re.compile(r"^Page\s+(\d+) MediaBox:\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)$", re.MULTILINE)
_HARMLESS = ("Syntax Warning", "Config Error")
_QUOTED = 200  # letters of a complaint
_REASONS = 3  # complaints in one message
_PPM_HEADER = re.compile(rb"P6\n(\d+) (\d+)\n255\n")
_LIGATURES = {number: unicodedata.normalize("NFKC", chr(number)) for number in range(0xFB00, 0xFB07)}
"""One sign in some text layers, where a search would look for two or three letters: ff, fi, fl, ffi, ffl, st."""
_MOST_OUTPUT = 16 * MIB  # of pdfinfo and pdftotext: a page of text has some KiB


@dataclass(frozen=True)
class PdfFile:
    """Where a PDF lies, what messages call it, and how it is opened."""

    path: Path
    name: str
    password: str | None
    bounds: Bounds
    """What one program may take for one page."""
    encoding: str = "utf-8"
    """Of the password: UTF-8 by PDF 2.0, Latin-1 (nearly) before."""

    def broken(self, number: int, reason: str) -> BrokenPageError:
        """Make the error that says why page `number` is of no use."""
        return BrokenPageError(f"{self.name}, page {number}: {reason}.")


@dataclass(frozen=True)
class PdfInfo:
    """What pdfinfo says about a file."""

    page_count: int
    sizes: dict[int, tuple[float, float]]
    """Width and height of the crop box in points, before rotation, by page number. A page that poppler cannot find has
    no entry; an unreadable box counts as US Letter."""
    uncropped: frozenset[int]
    """Pages whose crop box lies outside of the sheet, or is empty: their size is that of the sheet, the media box."""
    complaints: frozenset[str]
    """About the file as a whole; poppler repeats them for every page."""


def unlocked(pdf: PdfFile, *, max_pages: int) -> tuple[PdfFile, PdfInfo]:
    """Open the file as `inspect` does; return it with the password in the encoding that opens it, or without.

    A PDF that anyone may read, and its owner alone may change, is opened by no password as well as by the owner's.
    """
    try:
        return pdf, inspect(pdf, max_pages=max_pages)
    except PasswordError as error:
        for other in _other_ways(pdf):
            try:
                return other, inspect(other, max_pages=max_pages)
            except PasswordError:
                continue
        raise error


def _other_ways(pdf: PdfFile) -> list[PdfFile]:
    if not pdf.password:
        return []
    ways = [replace(pdf, password=None)]
    if not pdf.password.isascii() and all(ord(letter) < 256 for letter in pdf.password):
        ways.append(replace(pdf, encoding="latin-1"))
    return ways


def inspect(pdf: PdfFile, *, max_pages: int) -> PdfInfo:
    """Open the file and list its pages.

    Raises:
        PasswordError: the file is encrypted, and the password does not open it.
        PageError: no readable PDF, no pages or more than `max_pages`, or the time ran out.
        PopplerMissingError: poppler is not installed.
    """
    done = _run(pdf, "pdfinfo", "-box", "-f", "1", "-l", str(max_pages), str(pdf.path))
    if done.failure:
        raise PageError(f"{pdf.name}: opening it {done.failure}.")
    listing = done.output.decode("utf-8", errors="replace")
    counts = list(_COUNT_LINE.finditer(listing))
    if not counts:
        raise _unreadable(pdf, done.messages)
    own = counts[-1]  # what comes before it quotes the file: a title of several lines may look like any of pdfinfo's
    count = int(own[1])
    if count > max_pages:
        raise PageError(f"{pdf.name}: has {count:,} pages, the limit is {max_pages:,}. Split it, or raise `max_pages`.")
    sizes = {
        int(number): (float(width), float(height)) for number, width, height in _SIZE_LINE.findall(listing, own.end())
    }
    sheets = {
        int(number): (float(right) - float(left), float(top) - float(bottom))
        for number, left, bottom, right, top in _MEDIA_BOX_LINE.findall(listing, own.end())
        if 0 in sizes.get(int(number), ())
    }
    seen = {number: size for number, size in sizes.items() if 0 not in size}
    return PdfInfo(count, seen | sheets, frozenset(sheets), frozenset(_complaints(done.messages)))


def page_text(pdf: PdfFile, number: int) -> tuple[str, list[str]]:
    """Return the text layer of a page in reading order, ligatures as letters, and poppler's complaints.

    Raises:
        BrokenPageError: pdftotext failed or exceeded its bounds.
    """
    page = str(number)
    done = _run(pdf, "pdftotext", "-enc", "UTF-8", "-f", page, "-l", page, str(pdf.path), "-")
    if done.failure:
        raise pdf.broken(number, f"reading its text {done.failure}")
    if done.status != 0:
        raise pdf.broken(number, f"its text cannot be read ({_first(_complaints(done.messages))})")
    text = done.output.decode("utf-8", errors="replace")
    return text.replace("\f", "").replace("\0", "").translate(_LIGATURES).strip(), _complaints(done.messages)


def page_picture(pdf: PdfFile, number: int, side: int, *, cropped: bool) -> tuple[Image.Image, list[str]]:
    """Draw a page, RGB, its longer side `side` pixels; return it with poppler's complaints.

    `cropped`: the crop box of it, else the whole sheet.

    Raises:
        BrokenPageError: no whole picture comes back, or drawing it exceeded its bounds.
        PopplerMissingError: poppler is not installed.
    """
    page = str(number)
    most_output = 3 * (side + 1) ** 2 + MIB  # the picture, or what is said about it
    options = ("-f", page, "-l", page, "-scale-to", str(side), *(("-cropbox",) if cropped else ()))
    done = _run(pdf, "pdftoppm", *options, str(pdf.path), most_output=most_output)
    if done.failure:
        raise pdf.broken(number, f"drawing it {done.failure}")
    complaints = _complaints(done.messages)
    header = _PPM_HEADER.match(done.output)
    if header is None:
        raise pdf.broken(number, f"it cannot be drawn ({_first(complaints)})")
    width, height = int(header[1]), int(header[2])
    pixels = memoryview(done.output)[header.end() :]
    if len(pixels) != width * height * 3 or not pixels:
        raise pdf.broken(number, f"its picture is cut off: {len(pixels):,} bytes for {width} x {height} pixels")
    return Image.frombytes("RGB", (width, height), pixels), complaints


def _run(pdf: PdfFile, program: str, *arguments: str, most_output: int = _MOST_OUTPUT) -> Finished:
    found = shutil.which(program)
    if found is None:
        raise _poppler_missing(pdf)
    password = os.fsdecode(pdf.password.encode(pdf.encoding, "surrogateescape")) if pdf.password else None
    passwords = ("-upw", password, "-opw", password) if password else ()
    return run_bounded([found, *passwords, *arguments], pdf.bounds, most_output=most_output)


def _complaints(stderr: str) -> list[str]:
    """Return the lines that matter, each in one printable piece: they quote the file."""
    lines = (line for line in stderr.splitlines() if line.strip() and not line.startswith(_HARMLESS))
    return ["".join(letter if letter.isprintable() else "?" for letter in line.strip()[:_QUOTED]) for line in lines]


def _first(complaints: list[str]) -> str:
    return complaints[0] if complaints else "poppler does not say why"


def _unreadable(pdf: PdfFile, stderr: str) -> PageError:
    if "Incorrect password" in stderr:
        given = "the password given does not open it" if pdf.password else "no password was given"
        return PasswordError(f"{pdf.name}: the PDF is encrypted, and {given}. Pass the right `password`.")
    if "Wrong page range" in stderr:
        return PageError(f"{pdf.name}: the PDF holds no pages ({_first(_complaints(stderr))}).")
    reasons = list(dict.fromkeys(_complaints(stderr)))[:_REASONS]
    return PageError(f"{pdf.name}: the PDF is damaged or cut off ({'; '.join(reasons)}). Fetch it again.")


def _poppler_missing(pdf: PdfFile) -> PopplerMissingError:
    return PopplerMissingError(
        f"{pdf.name}: reading PDFs needs the poppler programs (pdfinfo, pdftotext, pdftoppm), and they are not on the "
        "PATH. Install poppler: `apt-get install poppler-utils`, `brew install poppler` or `conda install poppler`."
    )
