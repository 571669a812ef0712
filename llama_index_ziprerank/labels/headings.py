"""Heading queries: labels that a PDF carries itself, in its outline.

An outline entry names a heading and the page it stands on, so "which page does this heading belong to" has an answer
that nobody had to label. What makes a heading a query, and a page a candidate:

1. Chapter and section numbers are cut off ("4.2 Bar Graphs" asks for "Bar Graphs"), white space is normalised.
2. A heading has at least two words, else it asks for nothing in particular.
3. A heading is verified: all its words are found in the text of the page that the outline names.
4. A heading that names different pages of one manual ("Example Usage") is dropped, every occurrence of it.
5. Contents pages, lists of figures and index pages are no candidates: they hold every heading. A page is one of
   them when its first line says so (`LISTING_TITLES`), or when at least `LISTED_LINES` lines and `LISTED_SHARE` of all
   are dot leaders or headings of other pages, or when at least as many end in page numbers after a comma, as the lines
   of an index do (`INDEX_LINES`, `INDEX_SHARE`). A heading on such a page is dropped.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pypdf import PdfReader
from pypdf.errors import PyPdfError

from llama_index_ziprerank.pages.page import PageError

LISTING_TITLES = {"contents", "table of contents", "list of figures", "list of tables", "index"}
LISTED_LINES = 5
LISTED_SHARE = 0.25
INDEX_LINES = 12
INDEX_SHARE = 0.4

_NUMBERING = re.compile(
    r"^(?:(?:chapter|appendix|part|section)\s+(?:\d+|[A-Z]|[IVXLC]+)(?:\.\d+)*|\d+(?:\.\d+)*|[A-Z](?:\.\d+)+)[.:)]?\s+",
    re.IGNORECASE,
)
_DOT_LEADER = re.compile(r"(?:\.\s?){4,}\s*[\divxlc]+\s*$", re.IGNORECASE)
_LISTED_PAGE = re.compile(r"[\s.]*[\divxlc]*\s*$", re.IGNORECASE)
_INDEX_LINE = re.compile(r",\s*\d+(?:[–-]\d+)?\s*,?$")


@dataclass(frozen=True)
class Heading:
    """An outline entry: its title as it stands, and its page (from 1)."""

    title: str
    page: int


def read_outline(path: Path) -> list[Heading]:
    """Return a PDF's outline, flattened, in its own order; entries that lead nowhere are left out.

    Raises:
        PageError: when the outline is damaged.
    """

    def walk(entries: list[Any]) -> Iterator[Heading]:
        for entry in entries:
            if isinstance(entry, list):
                yield from walk(entry)
            elif (index := reader.get_destination_page_number(entry)) is not None and index >= 0:
                yield Heading(str(entry.title), index + 1)

    try:
        reader = PdfReader(path)
        return list(walk(reader.outline))
    except (PyPdfError, AttributeError, RecursionError) as error:  # pypdf follows what a damaged file says
        raise PageError(f"{path}: its outline cannot be read ({error}). Save the PDF anew, or leave it out.") from error


def verified_headings(outline: Sequence[Heading], texts: Sequence[str], listings: Set[int]) -> list[Heading]:
    """Return the headings that ask for one certain page, by the rules above, without their numbers.

    `texts[i]` is the text of page i + 1, of pages behind the last one none is known; `listings` are the pages that are
    no candidates.
    """
    pages_of: dict[str, set[int]] = defaultdict(set)
    spelled: dict[str, str] = {}
    for heading in outline:
        title = clean_title(heading.title)
        pages_of[title.casefold()].add(heading.page)
        spelled.setdefault(title.casefold(), title)
    return [
        Heading(spelled[key], page)
        for key, pages in pages_of.items()
        if len(pages) == 1
        for page in pages
        if page <= len(texts) and page not in listings and is_a_question(key) and stands_on(key, texts[page - 1])
    ]


def clean_title(title: str) -> str:
    """Cut the chapter or section number off a heading: "A.5  Font Tables" gives "Font Tables"."""
    title = " ".join(unicodedata.normalize("NFKC", title).split())
    return _NUMBERING.sub("", title)


def find_listings(outline: Sequence[Heading], texts: Sequence[str]) -> set[int]:
    """Return the pages (from 1) that list headings or terms: contents, lists of figures, the index."""
    pages_of: dict[str, set[int]] = defaultdict(set)
    for heading in outline:
        pages_of[clean_title(heading.title).casefold()].add(heading.page)
    return {page for page, text in enumerate(texts, start=1) if _is_listing(page, text, pages_of)}


def _is_listing(page: int, text: str, pages_of: dict[str, set[int]]) -> bool:
    lines = [line for line in (line.strip() for line in text.splitlines()) if line]
    keys = [_LISTED_PAGE.sub("", clean_title(line)).casefold() for line in lines]
    if lines and {keys[0], clean_title(lines[0]).casefold()} & LISTING_TITLES:  # "Index" ends like a page number, x
        return True
    listed = sum(
        bool(_DOT_LEADER.search(line)) or (is_a_question(key) and key in pages_of and page not in pages_of[key])
        for line, key in zip(lines, keys, strict=True)
    )
    indexed = sum(bool(_INDEX_LINE.search(line)) for line in lines)
    return (listed >= LISTED_LINES and listed >= LISTED_SHARE * len(lines)) or (
        indexed >= INDEX_LINES and indexed >= INDEX_SHARE * len(lines)
    )


def words(text: str) -> list[str]:
    """Return the words of a text, folded, as they are compared."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def is_a_question(title: str) -> bool:
    """Say whether a title has at least two words, else it asks for nothing in particular."""
    return sum(bool(re.search(r"[^\W\d_]{2}", word)) for word in title.split()) >= 2


def stands_on(title: str, text: str) -> bool:
    """Say whether all words of `title` are found in `text`."""
    return set(words(title)) <= set(words(text))
