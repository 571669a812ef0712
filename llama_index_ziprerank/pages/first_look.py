"""A first look at the bytes of a file: may it be a PDF, its hash, are page labels worth a search."""

import hashlib
from dataclasses import dataclass

from llama_index_ziprerank.pages.page import PageError
from llama_index_ziprerank.pages.poppler import PdfFile

_HASH_DIGITS = 16
_HEADER_WITHIN = 1024  # bytes; viewers tolerate junk before "%PDF-" that far
_LABEL_MARKS = (b"/PageLabels", b"/ObjStm")  # the second: compressed objects, which may hold the first
_LONGEST_MARK = max(map(len, _LABEL_MARKS))


@dataclass(frozen=True)
class FirstLook:
    """What a first look at the bytes of a file tells."""

    digest: str
    """The first digits of their SHA-256."""
    may_hold_labels: bool
    """Whether they name page labels, or hold compressed objects that may; most files do neither."""


def first_look(pdf: PdfFile) -> FirstLook:
    """Hash the file's bytes, having seen that it may be a PDF.

    Raises:
        PageError: the file is missing, cannot be read, is empty, no file at all or no PDF.
    """
    if pdf.path.exists() and not (pdf.path.is_file() or pdf.path.is_dir()):
        raise PageError(f"{pdf.name}: a pipe or a device, which may never end. Pass the path of a PDF file.")
    sha256 = hashlib.sha256()
    head = end = b""
    labelled = False
    try:
        with pdf.path.open("rb") as file:
            while chunk := file.read(1 << 20):
                sha256.update(chunk)
                head = head or chunk[:_HEADER_WITHIN]
                labelled = labelled or any(mark in end + chunk for mark in _LABEL_MARKS)
                end = chunk[-_LONGEST_MARK:]  # a mark may lie across two chunks
    except OSError as error:
        raise PageError(f"{pdf.name}: cannot be read ({error.strerror}). Pass the path of a PDF file.") from error
    except ValueError as error:  # such as a zero byte in the path
        raise PageError(f"{pdf.name!r}: no path ({error}). Pass the path of a PDF file.") from error
    if not head:
        raise PageError(f"{pdf.name}: the file is empty (0 bytes). Fetch it again.")
    if b"%PDF-" not in head:
        raise PageError(f"{pdf.name}: not a PDF; it begins with {head[:16]!r}, a PDF with '%PDF-'.")
    return FirstLook(sha256.hexdigest()[:_HASH_DIGITS], labelled)
