"""A small PDF of three pages, and what tests change in it before it is written."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from PIL import Image
from pypdf import PageObject, PdfReader, PdfWriter
from pypdf.generic import DictionaryObject, NameObject, StreamObject

DPI = 20  # small pictures: these tests look at sizes and colours, not at letters
LETTER = (170, 220)  # 8.5 x 11 inches at DPI


def pdf_bytes(pages: int = 3) -> bytes:
    """A PDF of US Letter pages that say "Page 1 speaks", "Page 2 speaks" and so on."""
    writer = PdfWriter()
    font = DictionaryObject({NameObject("/Type"): NameObject("/Font"), NameObject("/Subtype"): NameObject("/Type1")})
    font[NameObject("/BaseFont")] = NameObject("/Helvetica")
    fonts = DictionaryObject({NameObject("/F1"): writer._add_object(font)})
    for number in range(1, pages + 1):
        page = writer.add_blank_page(612, 792)
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        set_contents(writer, page, f"BT /F1 24 Tf 72 700 Td (Page {number} speaks) Tj ET".encode())
    return saved(writer.write)


def scan_bytes(*colours: str) -> bytes:
    """A PDF whose pages hold nothing but a JPEG picture in one colour each."""
    first, *others = (Image.new("RGB", (61, 79), colour) for colour in colours)
    return saved(lambda buffer: first.save(buffer, format="PDF", save_all=True, append_images=others))


def saved(save: Callable[[BytesIO], object]) -> bytes:
    buffer = BytesIO()
    save(buffer)
    return buffer.getvalue()


def write(path: Path, change: Callable[[PdfWriter], object] = lambda writer: None, source: bytes | None = None) -> Path:
    """Write the three-page PDF after `change` had its way with it."""
    writer = PdfWriter(clone_from=PdfReader(BytesIO(source or pdf_bytes())))
    change(writer)
    writer.write(path)
    return path


def set_contents(writer: PdfWriter, page: PageObject, content: bytes, encoding: str | None = None) -> None:
    stream = StreamObject()
    stream._data = content
    if encoding:
        stream[NameObject("/Filter")] = NameObject(encoding)
    page[NameObject("/Contents")] = writer._add_object(stream)
