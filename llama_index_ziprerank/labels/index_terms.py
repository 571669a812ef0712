"""Index terms: labels that a manual's author made, in the index at its back.

An entry such as "contour, 73" or "aes_encrypt . . . . 23" names the printed numbers of the pages about a term. What
makes a term a query:

1. Printed numbers become pages of the PDF by its page labels, or by the constant offset, whichever puts the words of
   more terms on the pages that the index gives. With fewer than `LEAST_VERIFIED` of them there, or fewer than
   `LEAST_REFERENCES`, the index is left out.
2. A term is verified: its words stand on every page that the index gives, and there are at most `MOST_PAGES` of these.
3. A term that stands on more than `MOST_SHARE` of all pages but listings asks for nothing in particular, and so does
   one without a word of four letters, or with a "see" that sends the reader elsewhere.
4. A term with two entries of different pages (once a term, once below another) is dropped.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence, Set

from llama_index_ziprerank.labels.headings import words

LEAST_VERIFIED = 0.6
LEAST_REFERENCES = 5
MOST_PAGES = 3
MOST_SHARE = 0.1
OFFSETS = range(-5, 60)
"""Pages that may stand before page 1; negative where the file lacks the first ones."""

_NUMBERS = r"\d+(?:\s*[–-]\s*\d+)?(?:\s*,\s*\d+(?:\s*[–-]\s*\d+)?)*"
_ENTRY = re.compile(rf"^(?P<term>\S.*?)(?:,\s*|\s*(?:\.\s?){{3,}}\s*)(?P<numbers>{_NUMBERS})\s*,?$")

IndexTerm = tuple[str, tuple[int, ...]]
"""A term and its pages."""


def find_index_terms(texts: Sequence[str], printed: Sequence[str], listings: Set[int]) -> list[IndexTerm]:
    """Return the terms that ask for certain pages (from 1), by the rules above.

    `texts[i]` is the text of page i + 1, `printed[i]` its printed number; the index is among the `listings`.
    """
    entries = _entries(texts, listings)
    vocabulary = {page: set(words(text)) for page, text in enumerate(texts, start=1) if page not in listings}

    def verified(term: str, page: int | None) -> bool:
        return page in vocabulary and _on(term, vocabulary[page])

    to_page = _best_numbering(entries, printed, verified)
    if to_page is None:
        return []
    terms = []
    for term, numbers in entries.items():
        pages = [to_page(number) for number in numbers]
        common = sum(_on(term, found) for found in vocabulary.values()) > max(MOST_PAGES, MOST_SHARE * len(vocabulary))
        if 1 <= len(pages) <= MOST_PAGES and not common and all(verified(term, page) for page in pages):
            terms.append((term, tuple(sorted(page for page in pages if page is not None))))
    return terms


def _entries(texts: Sequence[str], listings: Set[int]) -> dict[str, list[int]]:
    """Term → printed numbers, from the listings in the manual's second half."""
    numbers_of: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    for page in sorted(listings):
        if page > len(texts) / 2:
            for line in _whole_lines(texts[page - 1]):
                entry = _ENTRY.match(line)
                if entry and re.search(r"[^\W\d_]{4}", entry["term"]) and not re.search(r"\bsee\b", entry["term"]):
                    term = " ".join(entry["term"].split()).strip(" .,:;")
                    numbers_of[term].add(tuple(sorted(set(_expanded(entry["numbers"])))))
    return {term: list(*numbers) for term, numbers in numbers_of.items() if len(numbers) == 1}


def _whole_lines(text: str) -> Iterator[str]:
    """The lines of an index; one that ends with a comma goes on in the next."""
    begun = ""
    for line in (line.strip() for line in text.splitlines()):
        if line.endswith(","):
            begun += f"{line} "
        elif line or begun:
            yield f"{begun}{line}".strip()
            begun = ""


def _expanded(numbers: str) -> Iterator[int]:
    for part in numbers.split(","):
        first, _, last = re.sub(r"\s", "", part).replace("–", "-").partition("-")
        last = first[: max(0, len(first) - len(last))] + last  # 123–5 means 123–125, and 123 alone 123–123
        yield from range(int(first), min(int(last), int(first) + MOST_PAGES) + 1)


def _best_numbering(
    entries: dict[str, list[int]], printed: Sequence[str], verified: Callable[[str, int | None], bool]
) -> Callable[[int], int | None] | None:
    """How printed numbers become pages (from 1): the way by which most terms stand where the index says."""
    references = [(term, number) for term, numbers in entries.items() for number in numbers]
    if len(references) < LEAST_REFERENCES:
        return None
    labelled = {label: page for page, label in enumerate(printed, start=1)}
    ways: list[Callable[[int], int | None]] = [lambda number: labelled.get(str(number))]
    ways += [lambda number, offset=offset: number + offset for offset in OFFSETS]  # type: ignore[misc]
    hits = [sum(verified(term, way(number)) for term, number in references) for way in ways]
    best = max(range(len(ways)), key=hits.__getitem__)
    return ways[best] if hits[best] >= LEAST_VERIFIED * len(references) else None


def _on(term: str, vocabulary: Set[str]) -> bool:
    return set(words(term)) <= vocabulary
