"""The queries of a manual, of four kinds, all with pages that somebody else named or that can be looked up.

- heading: an outline entry; its page is where the outline leads (`headings`).
- term: an entry of the back-of-book index; its pages are those that the index gives (`index_terms`).
- caption: the words under a figure or a table, without its number; its page is where they stand (`captions`).
- question: a heading put as "How do I …?" or "What is …?" by fixed rules (`questions`).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from llama_index_ziprerank.labels.captions import find_captions
from llama_index_ziprerank.labels.headings import Heading, find_listings, verified_headings
from llama_index_ziprerank.labels.index_terms import find_index_terms
from llama_index_ziprerank.labels.questions import as_question

KINDS = ("heading", "term", "caption", "question")


@dataclass(frozen=True)
class ManualQuery:
    """A query of one kind, and the pages (from 1) that answer it."""

    kind: str
    text: str
    pages: tuple[int, ...]


@dataclass(frozen=True)
class LabelledManual:
    """The queries of one manual, and the pages (from 1) that compete for them."""

    queries: tuple[ManualQuery, ...]
    candidates: tuple[int, ...]


def label_manual(
    outline: Sequence[Heading], texts: Sequence[str], printed: Sequence[str], kinds: Sequence[str] = KINDS
) -> LabelledManual:
    """Make the queries of these kinds, and the candidates: all pages but contents, lists and index.

    `texts[i]` is the text of page i + 1, `printed[i]` its number or name as the PDF gives it.
    """
    listings = find_listings(outline, texts)
    headings = verified_headings(outline, texts, listings)
    found = {
        "heading": [ManualQuery("heading", heading.title, (heading.page,)) for heading in headings],
        "term": [ManualQuery("term", term, pages) for term, pages in find_index_terms(texts, printed, listings)],
        "caption": [ManualQuery("caption", caption, (page,)) for caption, page in find_captions(texts, listings)],
        "question": [
            ManualQuery("question", question, (heading.page,))
            for heading in headings
            if (question := as_question(heading.title)) is not None
        ],
    }
    candidates = tuple(page for page in range(1, len(texts) + 1) if page not in listings)
    return LabelledManual(tuple(query for kind in kinds for query in found[kind]), candidates)


def draw(manual: str, queries: Sequence[ManualQuery], count: int | None, seed: int) -> dict[str, ManualQuery]:
    """Name the queries, and draw up to `count` of each kind (all when None), in the manual's order."""
    named: dict[str, ManualQuery] = {}
    for kind in dict.fromkeys(query.kind for query in queries):
        of_kind = [query for query in queries if query.kind == kind]
        ids = [f"{manual}:{kind}:{number:04d}" for number in range(1, len(of_kind) + 1)]
        drawn = set(ids)
        if count is not None and count < len(ids):
            drawn = set(random.Random(f"{seed} {manual} {kind}").sample(ids, count))
        named |= {query_id: query for query_id, query in zip(ids, of_kind, strict=True) if query_id in drawn}
    return named
