"""Ranking lists of real pages for nano: a query made from one page, candidates from the same manual, a lexical teacher.

A list may show whole pages or equal blocks of them, so that training can start with two short candidates and end with
twenty pages. Vision features are computed once (the tower is frozen after stage 0).
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
    relevances,
    terms_of,
)


@dataclass(frozen=True)
class SeenPage:
    """A page's words and its merged visual tokens. R x C tokens of width D."""

    words: PageWords
    merged: Tensor  # (R, C, D) float16

    def cells(self) -> np.ndarray:
        """Row and column of the token under each word: (W, 2)."""
        rows, columns = self.merged.shape[:2]
        return np.clip((self.words.places * (rows, columns)).astype(int), 0, (rows - 1, columns - 1))


@dataclass(frozen=True)
class Block:
    """A rectangle of a page's tokens and the words under it."""

    features: PageFeatures
    placed: list[tuple[str, int]]
    """Each term under it with its token's place in `features`."""
    page: SeenPage
    within: np.ndarray
    """Places in `page` of the words under it."""

    @property
    def terms(self) -> list[str]:
        """The terms that stand on it, each as often as it does."""
        return [term for term, _ in self.placed]


@dataclass(frozen=True)
class RankingList:
    """One training list: candidates in the order shown, the teacher's order, the candidate the query was made from."""

    query: str
    candidates: list[Block]
    order: list[int]
    positive: int


class ListMaker:
    """Draws ranking lists from pages that were seen once."""

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

    def draw(self, count: int, size: tuple[int, int] | None, hard: float = 0.5) -> RankingList:
        """Draw a list of `count` candidates, each a block of `size` (rows, columns) tokens, or whole pages.

        About the share `hard` of the others hold a word of the query, where the manual has such pages.
        """
        index, query, block = self._ask(range(len(self.pages)), size)
        blocks = [block]
        for other in self._others(index, query, count - 1, hard):
            blocks.append(self._around(self.pages[other], query, size, hard))
        shown = list(range(count))
        self.rng.shuffle(shown)
        candidates = [blocks[i] for i in shown]
        scores = relevances(query, [block.terms for block in candidates], self.rarity)
        order = sorted(range(count), key=lambda i: -scores[i])
        return RankingList(query, candidates, order, shown.index(0))

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
            block = self._block(page, corner, size_here)
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
        return chosen + self.rng.sample(
            [p for p in range(len(self.pages)) if p not in (index, *chosen)], count - len(chosen)
        )

    def _around(self, page: SeenPage, query: str, size: tuple[int, int] | None, hard: float) -> Block:
        """A block of a negative page, around one of the query's words as often as `hard` says."""
        terms = set(terms_of(query))
        matching = [i for i, term in enumerate(page.words.terms) if term in terms] if size else []
        anchor = (
            self.rng.choice(matching)
            if matching and self.rng.random() < hard
            else self.rng.randrange(max(1, len(page.words.words)))
        )
        corner, size_here = self._place(page, anchor, size)
        return self._block(page, corner, size_here)

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

    @staticmethod
    def _within(page: SeenPage, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        cells = page.cells()
        low, high = np.array(corner), np.array(corner) + np.array(size)
        return np.flatnonzero(((cells >= low) & (cells < high)).all(1))

    def _block(self, page: SeenPage, corner: tuple[int, int], size: tuple[int, int]) -> Block:
        (top, left), (height, width) = corner, size
        merged = page.merged[top : top + height, left : left + width].float().flatten(0, 1)
        cells, within = page.cells(), self._within(page, corner, size)
        placed = [
            (page.words.terms[i], int((cells[i, 0] - top) * width + cells[i, 1] - left))
            for i in within
            if page.words.terms[i]
        ]
        return Block(PageFeatures(merged, (), (1, 2 * height, 2 * width)), placed, page, within)
