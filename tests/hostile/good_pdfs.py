"""PDFs with nothing wrong with them, written by code: what the mutations start from."""

from collections.abc import Callable
from io import BytesIO

from PIL import Image
from pypdf import PageObject, PdfWriter
from pypdf.constants import PageLabelStyle
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

HELVETICA = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}


def text_pdf() -> bytes:
    """Three pages of text, with labels and an outline, everything uncompressed."""
    return _saved(_write_text)


def compressed_pdf() -> bytes:
    """The same with compressed page contents."""

    def change(writer: PdfWriter) -> None:
        _write_text(writer)
        for page in writer.pages:
            page.compress_content_streams()

    return _saved(change)


def encrypted_pdf() -> bytes:
    """The same, locked for its owner only, so that it opens without a password."""

    def change(writer: PdfWriter) -> None:
        _write_text(writer)
        writer.encrypt("", "owner", algorithm="RC4-128")

    return _saved(change)


def scan_pdf() -> bytes:
    """Two pages that hold a JPEG each."""
    buffer = BytesIO()
    first, second = (Image.linear_gradient("L").resize((85, 110)).convert("RGB").rotate(turn) for turn in (0, 180))
    first.save(buffer, "PDF", save_all=True, append_images=[second], resolution=10)
    return buffer.getvalue()


GOOD: dict[str, Callable[[], bytes]] = {
    "text": text_pdf,
    "compressed": compressed_pdf,
    "encrypted": encrypted_pdf,
    "scan": scan_pdf,
}


def _write_text(writer: PdfWriter) -> None:
    font = DictionaryObject({NameObject(key): NameObject(value) for key, value in HELVETICA.items()})
    fonts = DictionaryObject({NameObject("/F1"): font})
    for number in range(1, 4):
        page: PageObject = writer.add_blank_page(150, 200)
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        stream = DecodedStreamObject()
        lines = " ".join(f"(Page {number}, line {line}) Tj T*" for line in range(12))
        stream.set_data(f"BT /F1 9 Tf 11 TL 10 180 Td {lines} ET 0 0 1 RG 2 w 10 10 m 140 30 l S".encode())
        page.replace_contents(stream)
        writer.add_outline_item(title=f"Chapter {number}", page_number=number - 1)
    writer.set_page_label(0, 1, style=PageLabelStyle.LOWERCASE_ROMAN)
    writer.set_page_label(2, 2, style=PageLabelStyle.DECIMAL, prefix="A-", start=7)


def _saved(change: Callable[[PdfWriter], None]) -> bytes:
    writer = PdfWriter()
    change(writer)
    buffer = BytesIO()
    writer.write(buffer)
    return buffer.getvalue()
