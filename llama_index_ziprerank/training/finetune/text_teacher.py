"""A teacher that reads the text layer: BM25, and sentence embeddings where there is a model of them.

Its orders are fused by reciprocal rank (Cormack, Clarke and Büttcher, 2009). It sees no picture, so what only a figure
shows it cannot order; a configured LLM can.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import bm25s
import numpy as np

from llama_index_ziprerank.training.finetune.documents import Document

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG

Embed: TypeAlias = Callable[[Sequence[str]], np.ndarray]
"""Texts to vectors of length 1: (texts, D)."""

_FUSION = 60  # the constant of reciprocal rank fusion, as in its paper
_WORDS: dict[str, Any] = {"stopwords": "en", "show_progress": False, "return_ids": False}


class TextTeacher:
    """Orders pages of one document by their texts."""

    def __init__(self, document: Document, embed: Embed | None = None) -> None:
        """Read the document's candidate pages; ValueError when they have no text."""
        self._place = {page: place for place, page in enumerate(document.labels.candidates)}
        words = candidate_words(document)
        if not any(words):
            raise ValueError(
                f"{document.name!r} has no text layer that could teach. Name an LLM that sees pages (--llm), or add a "
                "text layer with an OCR program."
            )
        self._words = bm25s.BM25()
        self._words.index(words, show_progress=False)
        self._embed = embed
        self._vectors = embed(_candidate_texts(document)) if embed else None  # (pages, D)

    def by_words(self, question: str, pages: Sequence[int]) -> list[int]:
        """Return the pages in the order of BM25; equal ones keep their order."""
        [asked] = bm25s.tokenize([question], **_WORDS)
        if not asked:  # stop words only
            return list(pages)
        return self._sorted(pages, self._words.get_scores(asked))

    def order(self, question: str, pages: Sequence[int]) -> list[int]:
        """Return the pages, best first."""
        orders = [self.by_words(question, pages)]
        if self._embed is not None and self._vectors is not None:
            [asked] = self._embed([question])
            orders.append(self._sorted(pages, self._vectors @ asked))
        fused = {page: sum(1 / (_FUSION + order.index(page)) for order in orders) for page in orders[0]}
        return sorted(orders[0], key=lambda page: -fused[page])

    def _sorted(self, pages: Sequence[int], scores: np.ndarray) -> list[int]:
        return sorted(pages, key=lambda page: -float(scores[self._place[page]]))


def candidate_words(document: Document) -> list[list[str]]:
    """Return the words by which BM25 knows each candidate page; none on pages without a text layer."""
    words: list[list[str]] = bm25s.tokenize(_candidate_texts(document), **_WORDS)
    return words


def _candidate_texts(document: Document) -> list[str]:
    return [document.texts[page - 1] for page in document.labels.candidates]


def sentence_embedder(name: str) -> Embed:
    """Load a model of sentence-transformers.

    Raises:
        ImportError: when sentence-transformers is not installed.
        OSError: when the model cannot be found.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{error}. Install it with: pip install 'llama-index-ziprerank[sentence-embeddings]'"
        ) from error
    model = SentenceTransformer(name, trust_remote_code=False)

    def embed(texts: Sequence[str]) -> np.ndarray:
        return model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)

    return embed
