"""Caption queries: the words under a figure or over a table, asked without "Figure 3.2:".

A caption is a line that begins with "Figure" (or "Fig.", "Table", "Listing") and a number, on a page that is no list of
figures. In a manual that sets a colon behind its numbers, a line without one is a reference in the text ("Figure 3.2
shows …"). What makes a caption a query:

1. It is the first sentence, over at most `MOST_LINES` lines, and has at least two words. A line goes on in the next
   when it has at least `FULL_LINE` characters: a shorter one was not broken for want of room.
2. Its number is claimed by one line alone, and its words by one caption alone.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise, takewhile

from llama_index_ziprerank.labels.headings import is_a_question

MOST_LINES = 3
FULL_LINE = 60

_CAPTION = re.compile(
    r"^(?P<number>(?:Figure|Fig\.|Table|Listing)\s+(?:[A-Z][.\-]?)?\d+(?:[.\-–]\d+)*)\s*(?P<colon>:)?\s+(?P<words>[^\s:].*)$"
)
_SENTENCE_END = re.compile(r"(?<=[\w)\]”’\"'])\.(?:\s|$)")


@dataclass(frozen=True)
class _Caption:
    number: str
    has_colon: bool
    text: str
    page: int


def find_captions(texts: Sequence[str], listings: Set[int]) -> list[tuple[str, int]]:
    """Return captions and their pages (from 1), by the rules above. `texts[i]` is the text of page i + 1."""
    found = [
        caption for page, text in enumerate(texts, start=1) if page not in listings for caption in _on_page(text, page)
    ]
    if any(caption.has_colon for caption in found):
        found = [caption for caption in found if caption.has_colon]
    numbers = Counter(caption.number for caption in found)
    texts_of = Counter(caption.text.casefold() for caption in found)
    return [
        (caption.text, caption.page)
        for caption in found
        if numbers[caption.number] == texts_of[caption.text.casefold()] == 1 and is_a_question(caption.text)
    ]


def _on_page(text: str, page: int) -> Iterator[_Caption]:
    lines = [line.strip() for line in unicodedata.normalize("NFKC", text).splitlines()]
    for position, line in enumerate(lines):
        match = _CAPTION.match(line)
        if match and (match["colon"] or match["words"][0].isupper()):
            following = takewhile(lambda pair: len(pair[0]) >= FULL_LINE, pairwise(lines[position:][:MOST_LINES]))
            joined = " ".join([match["words"], *(line for _, line in following)])
            [sentence, *_] = _SENTENCE_END.split(joined, maxsplit=1)
            yield _Caption(
                " ".join(match["number"].split()), match["colon"] is not None, " ".join(sentence.split()), page
            )
