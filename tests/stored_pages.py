"""Made-up pages for stores, and what a store holds."""

from typing import Any

import numpy as np

from llama_index_ziprerank.retrieval.store import PageFilter, PageRecord, PageStore, Vectors

WIDTH = 4


def vectors(seed: int, rows: int = 3) -> Vectors:
    return np.random.default_rng(seed).normal(size=(rows, WIDTH)).astype(np.float32)


def record(number: int, document: str = "a", **payload: Any) -> PageRecord:
    return PageRecord(f"page {number}", document, vectors(number), payload)


def ids(store: PageStore, page_filter: PageFilter | None = None) -> list[str]:
    return sorted(page.id for page in store.pages(page_filter))
