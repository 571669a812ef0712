"""What the image benchmarks need of a first stage, and how its best candidates are reranked.

The wing does not know where the first stage comes from: a run that somebody made, or an index that the caller builds.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image

from llama_index_ziprerank.reranking import ListwiseReranker, PageFeatures, PruningMode
from llama_index_ziprerank.reranking.pruning import check_pruning

FEATURE_BYTES = 2 << 30
"""Memory for what the vision tower made of pages: 80 pages of 800 tokens at 8B, thousands of nano's."""


class FirstStage(Protocol):
    """Ranks images for queries."""

    def __call__(
        self, images: Iterable[tuple[str, Image.Image]], queries: Mapping[str, str], top_k: int
    ) -> dict[str, list[str]]:
        """Return query id → the ids of its `top_k` images, best first. Images are taken one at a time, in order."""


@dataclass(frozen=True)
class RerankSettings:
    """How the first candidates of a list are reranked."""

    model: str = "nano"
    top_k: int = 20
    keep_ratio: float | None = None
    """The checkpoint's own by default, as for `pruning`."""
    pruning: PruningMode | None = None

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}.")
        check_pruning(self.keep_ratio, self.pruning)


@dataclass
class HeadReranker:
    """Reranks the first candidates of lists; the rest keep their places behind them.

    Candidates that several queries share are read by the vision tower once, while memory lasts.
    """

    settings: RerankSettings
    feature_bytes: int = FEATURE_BYTES
    _model: ListwiseReranker | None = field(default=None, init=False)
    _shelf: "OrderedDict[str, PageFeatures]" = field(default_factory=OrderedDict, init=False)
    _held: int = field(default=0, init=False)

    def __call__(self, query: str, ranking: Sequence[str], image: Callable[[str], Image.Image]) -> list[str]:
        """Return the new order of candidate ids; `image` opens one."""
        if self._model is None:
            self._model = ListwiseReranker.from_pretrained(self.settings.model)
        head, tail = list(ranking[: self.settings.top_k]), list(ranking[self.settings.top_k :])
        if not head:
            return []
        pages = [self._features(self._model, name, image) for name in head]
        found = self._model.rerank(query, pages, self.settings.keep_ratio, self.settings.pruning)
        return [head[i] for i in found.order] + tail

    def _features(self, model: ListwiseReranker, name: str, image: Callable[[str], Image.Image]) -> PageFeatures:
        if name in self._shelf:
            self._shelf.move_to_end(name)
            return self._shelf[name]
        [features] = model.encode_pages([image(name)])
        self._shelf[name] = features
        self._held += _size(features)
        while self._held > self.feature_bytes and len(self._shelf) > 1:
            _, oldest = self._shelf.popitem(last=False)
            self._held -= _size(oldest)
        return features


def _size(features: PageFeatures) -> int:
    return sum(part.numel() * part.element_size() for part in (features.merged, *features.deepstack))
