"""Questions and pages for nano: each batch a few pages, mostly of one manual, and questions that one of them answers.

A batch may show whole pages or equal blocks of them, so that training can start with short ones. Vision features are
computed once (the tower is frozen after stage 0).
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from llama_index_ziprerank.reranking.features import PageFeatures
from llama_index_ziprerank.training.nano.queries import (
    PageWords,
    inverse_document_frequency,
    make_query,
    terms_of,
)


@dataclass(frozen=True)
class SeenPage:
    """A page's words and its merged visual tokens. R x C tokens of width D."""

    words: PageWords
    merged: Tensor  # (R, C, D) float16
    number: int = 0
    """Place in its manual, from 0."""

    def cells(self) -> np.ndarray:
        """Row and column of the token under each word: (W, 2)."""
        rows, columns = self.merged.shape[:2]
        return np.clip((self.words.places * (rows, columns)).astype(int), 0, (rows - 1, columns - 1))


@dataclass(frozen=True)
class Block:
    """A rectangle of a page's tokens and the words under it."""

    features: PageFeatures
    page: SeenPage
    within: np.ndarray
    """Places in `page` of the words under it."""


def cut_block(page: SeenPage, corner: tuple[int, int], size: tuple[int, int]) -> Block:
    """Cut a rectangle of rows and columns of tokens out of a page, and the words under it."""
    (top, left), (height, width) = corner, size
    merged = page.merged[top : top + height, left : left + width].float().flatten(0, 1)
    cells, low = page.cells(), np.array(corner)
    within = np.flatnonzero(((cells >= low) & (cells < low + np.array(size))).all(1))
    return Block(PageFeatures(merged, (), (1, 2 * height, 2 * width)), page, within)


def whole_page(page: SeenPage) -> Block:
    """All of a page as one block."""
    rows, columns = page.merged.shape[:2]
    return cut_block(page, (0, 0), (rows, columns))


class PairMaker:
    """Draws pages that were seen once, and questions about them."""

    def __init__(self, pages: list[SeenPage], seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.pages = pages
        self.rarity = inverse_document_frequency([page.words for page in pages])
        self.manuals: dict[str, list[int]] = defaultdict(list)
        self.postings: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for index, page in enumerate(pages):
            self.manuals[page.words.manual].append(index)
            for term in set(page.words.terms):
                self.postings[page.words.manual][term].append(index)

    def pairs(
        self, count: int, size: tuple[int, int] | None, *, manuals: int = 1, hard: float = 0.0
    ) -> list[tuple[str, Block]]:
        """Draw `count` queries with the block that answers each, from a few manuals: each other's negatives.

        With `hard`, about that share of the pages hold a word of the first one's query.
        """
        first = self.rng.randrange(len(self.pages))
        pool = [page for name in self._some_manuals(first, manuals) for page in self.manuals[name]]
        index, query, block = self._ask([first], size, pool)
        if hard:
            others = self._others(index, query, count - 1, hard)
        else:
            others = self.rng.sample([page for page in pool if page != index], min(count, len(pool)) - 1)
        return [(query, block), *(self._ask([page], size, pool)[1:] for page in others)]

    def ask(self, block: Block) -> str | None:
        """Make one more query that a block answers; None when it holds too little."""
        return make_query(block.page.words, block.within, self.rarity, self.rng)

    def _some_manuals(self, page: int, count: int) -> list[str]:
        """The manual of a page and `count` - 1 others."""
        own = self.pages[page].words.manual
        return [own, *self.rng.sample(sorted(set(self.manuals) - {own}), count - 1)]

    def _ask(
        self, indices: Sequence[int], size: tuple[int, int] | None, others: Sequence[int] = ()
    ) -> tuple[int, str, Block]:
        """Make a query from one of the pages `indices`, or from `others` after some pages without a good one."""
        for attempt in range(1000):
            index = self.rng.choice(others if others and attempt > 5 else indices)
            page = self.pages[index]
            if not len(page.words.words):
                continue
            corner, size_here = self._place(page, self.rng.randrange(len(page.words.words)), size)
            block = cut_block(page, corner, size_here)
            if (query := self.ask(block)) is not None:
                return index, query, block
        raise ValueError("None of 1000 sampled places on the pages holds two telling words; is the text layer there?")

    def _others(self, index: int, query: str, count: int, hard: float) -> list[int]:
        """Other pages of the manual, some of them with a word of the query."""
        manual = self.pages[index].words.manual
        matching = [p for term in terms_of(query) for p in self.postings[manual].get(term, [])]
        chosen: list[int] = []
        for _ in range(20 * count):
            pool = matching if matching and self.rng.random() < hard else self.manuals[manual]
            other = self.rng.choice(pool)
            if other != index and other not in chosen:
                chosen.append(other)
            if len(chosen) == count:
                return chosen
        rest = [page for page in range(len(self.pages)) if page not in (index, *chosen)]
        return chosen + self.rng.sample(rest, min(count - len(chosen), len(rest)))

    def _place(
        self, page: SeenPage, anchor: int, size: tuple[int, int] | None
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        rows, columns = page.merged.shape[:2]
        if size is None:
            return (0, 0), (rows, columns)
        height, width = min(size[0], rows), min(size[1], columns)
        row, column = page.cells()[anchor] if len(page.words.words) else (0, 0)
        top = min(max(0, row - self.rng.randrange(height)), rows - height)
        left = min(max(0, column - self.rng.randrange(width)), columns - width)
        return (int(top), int(left)), (height, width)
