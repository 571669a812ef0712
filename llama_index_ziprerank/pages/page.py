"""One page of a document and its identity: what the readers make and every other room takes."""

from dataclasses import dataclass

from PIL import Image

MAX_PAGES = 2000
"""A file with more pages is refused, unless whoever reads it is told another limit."""


@dataclass(frozen=True)
class PageId:
    """Identity of a page that survives renaming and re-reading of its file, and ends when the file's bytes change."""

    document: str
    """The first 16 hexadecimal digits of the SHA-256 of the file's bytes."""
    number: int
    """The page's position in the file, from 1."""

    def __str__(self) -> str:
        return f"{self.document}-{self.number:05d}"


@dataclass(frozen=True)
class Page:
    """One page: its picture, the text the file holds for it, and where it came from."""

    id: PageId
    image: Image.Image
    """RGB."""
    text: str
    """The file's own text layer; empty when the page has none (a scan)."""
    label: str
    """The page's name as the PDF gives it ("iv", "A-3"); the number when the PDF names none."""
    number: int
    """The page's position in the file, from 1."""
    file_name: str
    file_path: str


def encodable(text: str) -> str:
    """Return `text` as JSON and databases can hold it: lone surrogates become U+FFFD.

    A file name that is no UTF-8, or a label of a hostile PDF, would otherwise fail only when an index is saved.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # a pair of surrogates is a letter


class PageError(ValueError):
    """A document or a page that cannot be read; the message names the file, and the page where there is one."""


class BrokenPageError(PageError):
    """One page cannot be read; the others of its file may be fine."""


class PasswordError(PageError):
    """The file is encrypted and no password, or a wrong one, was given."""


class PopplerMissingError(PageError, ImportError):
    """The poppler programs are not installed. Also an ImportError, which SimpleDirectoryReader never swallows."""


class PageWarning(UserWarning):
    """A page was left out, or lacks its text; the message names the file and the page."""
