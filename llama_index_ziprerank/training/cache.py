"""Vision features of pages that were seen before, kept in memory: with a frozen tower a page is looked at once.

Epochs come back to the same pages, and so do the queries of one document. The cache lies in the host's memory, is
bounded in bytes, and forgets the page that was used longest ago.
"""

from collections import OrderedDict

import torch

from llama_index_ziprerank.reranking.features import PageFeatures


class FeatureCache:
    """Page features by page key (see `sources.page_key`), up to `limit` bytes; 0 keeps nothing."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self.hits = self.misses = 0
        self._pages: OrderedDict[str, PageFeatures] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pages)

    def __reduce__(self) -> tuple[type["FeatureCache"], tuple[int]]:
        """Go to another process empty: of tensors that are sent each would take an open file and shared memory."""
        return FeatureCache, (self.limit,)

    def get(self, key: str) -> PageFeatures | None:
        """Return the features of a page on the CPU, if they are there."""
        features = self._pages.get(key)
        if features is None:
            self.misses += 1
            return None
        self.hits += 1
        self._pages.move_to_end(key)
        return features

    def put(self, key: str, features: PageFeatures) -> None:
        """Keep the features of a page; others are forgotten to make room. A page that is there already stays."""
        size = _bytes(features)
        if key in self._pages or size > self.limit:
            return
        while self.size + size > self.limit:
            _, forgotten = self._pages.popitem(last=False)
            self.size -= _bytes(forgotten)
        self._pages[key] = _apart(moved(features, "cpu"))
        self.size += size


def moved(features: PageFeatures, device: torch.device | str) -> PageFeatures:
    """Return the features on `device`."""
    layers = tuple(layer.to(device) for layer in features.deepstack)
    return PageFeatures(features.merged.to(device), layers, features.grid)


def _apart(features: PageFeatures) -> PageFeatures:
    """Copy what is but a view of a whole batch: it would hold the memory of all its pages."""
    merged, *layers = (
        part.clone() if part.untyped_storage().nbytes() > part.nbytes else part
        for part in (features.merged, *features.deepstack)
    )
    return PageFeatures(merged, tuple(layers), features.grid)


def _bytes(features: PageFeatures) -> int:
    return sum(tensor.nbytes for tensor in (features.merged, *features.deepstack))
