"""What the page works on: an index of the PDFs that were dropped, and a reranker that remembers pages it has seen."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llama_index_ziprerank.indices import ColPaliIndex
from llama_index_ziprerank.postprocessors import ZipRerankPostprocessor
from llama_index_ziprerank.readers import PDFPageReader
from llama_index_ziprerank.reranking import ListwiseReranker
from llama_index_ziprerank.reranking.explanation import Explanation
from llama_index_ziprerank.reranking.feature_cache import FeatureCache

CANDIDATES = 20  # pages of the first stage that the reranker sees: one window

Progress = Callable[[int], None]
"""Called with the number of pages done."""


@dataclass(frozen=True)
class Shelved:
    """A PDF on the desk."""

    name: str
    pages: int


class Desk:
    """Documents, first stage and reranker of one running page; calls take turns, so tabs may share it.

    Pages keep their vision features in memory, so that asking again with another keep ratio runs no vision tower.
    """

    def __init__(self, model: str = "nano", retriever: str = "nano") -> None:
        """Load both models; errors as `ListwiseReranker.from_pretrained` and `ColPaliIndex.from_documents`."""
        self._reranker = ListwiseReranker.from_pretrained(model, cache=FeatureCache())
        self._index = ColPaliIndex.from_documents([], model=retriever)
        self._shelf: dict[str, Shelved] = {}
        self._turn = threading.Lock()

    @property
    def keep_ratio(self) -> float:
        """The part of each page that the model reads by its own choice."""
        return self._reranker.options().keep_ratio

    @property
    def shelf(self) -> list[Shelved]:
        """The PDFs, in the order they came."""
        return list(self._shelf.values())

    def add(self, file: Path, progress: Progress = lambda done: None) -> None:
        """Index a PDF; one that is there already is left alone.

        Raises:
            PageError: when the file is no PDF that can be read; pages before a broken one stay indexed.
        """
        with self._turn:
            if str(file) in self._shelf:
                return
            for done, document in enumerate(PDFPageReader().lazy_load_data(file), start=1):
                self._index.insert(document)
                self._shelf[str(file)] = Shelved(file.name, done)
                progress(done)

    def ask(self, question: str, keep_ratio: float, top_n: int) -> Explanation:
        """Find and rerank pages, with reasons.

        Raises:
            ValueError: when there is no document, or no question.
        """
        if not question.strip():
            raise ValueError("There is no question yet. Type one.")
        with self._turn:
            if not self._shelf:
                raise ValueError("There is no PDF to search yet. Drop one first.")
            nodes = self._index.as_retriever(CANDIDATES).retrieve(question)
            reranker = ZipRerankPostprocessor.from_reranker(self._reranker, top_n=top_n, keep_ratio=keep_ratio)
            return reranker.explain(question, nodes, self._index)

    def clear(self) -> None:
        """Forget all PDFs."""
        with self._turn:
            for file in list(self._shelf):
                self._index.delete_file(file)
                del self._shelf[file]

    def close(self) -> None:
        """Remove the index's temporary folder."""
        self._index.close()
