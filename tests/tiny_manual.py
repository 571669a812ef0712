"""A PDF manual of small pages with real text and an outline, written in code."""

from collections.abc import Sequence
from pathlib import Path

from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

CHAPTERS = (
    "Bar graphs",
    "Contour lines",
    "Surface plots",
    "Colour maps",
    "Error bars",
    "Filling areas",
    "Polar grids",
    "Axis labels",
)


def tiny_manual(path: Path) -> Path:
    """A contents page, then one page for each of `CHAPTERS`, each in the outline."""
    contents = ["Contents", *(f"{n} {title} . . . . . . {n + 1}" for n, title in enumerate(CHAPTERS, start=1))]
    pages = [contents, *([f"{n} {title}", f"This page is about {title}."] for n, title in enumerate(CHAPTERS, start=1))]
    outline = [("Contents", 1), *((f"{n} {title}", n + 1) for n, title in enumerate(CHAPTERS, start=1))]
    return write_pdf(path, pages, outline)


def write_pdf(path: Path, pages: Sequence[Sequence[str]], outline: Sequence[tuple[str, int]] = ()) -> Path:
    """Write lines of text as pages of 150 x 200 points; the outline names pages from 1."""
    writer = PdfWriter()
    for lines in pages:
        page = writer.add_blank_page(width=150, height=200)
        font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
        fonts = DictionaryObject({NameObject("/F1"): _names(font)})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        written = "\n".join(f"({line}) Tj T*" for line in lines)
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 9 Tf 11 TL 10 180 Td\n{written}\nET".encode("latin-1"))
        page.replace_contents(stream)
    for title, number in outline:
        writer.add_outline_item(title=title, page_number=number - 1)
    writer.write(path)
    return path


def _names(values: dict[str, str]) -> DictionaryObject:
    return DictionaryObject({NameObject(key): NameObject(value) for key, value in values.items()})
