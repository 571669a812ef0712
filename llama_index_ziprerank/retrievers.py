"""`ColPaliRetriever`: a question becomes the pages whose vectors answer it best, as nodes with their images."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from llama_index.core import Settings
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import ImageNode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder
from llama_index_ziprerank.retrieval.store import (
    AllMatch,
    AnyOf,
    Hit,
    IsEmpty,
    NoneMatch,
    PageFilter,
    PageStore,
    Range,
    SomeMatch,
    StoredPage,
)


class PageIndex(Protocol):
    """What the retriever needs of an index; `ColPaliIndex` is one."""

    @property
    def encoder(self) -> MultiVectorEncoder:
        """The model that made the index's vectors."""

    @property
    def store(self) -> PageStore:
        """The vectors."""

    @property
    def image_dir(self) -> Path:
        """The folder of the page images."""


class ColPaliRetriever(BaseRetriever):
    """Finds the `similarity_top_k` pages with the highest MaxSim, best first.

    `NodeWithScore.score` is the plain MaxSim sum (ColPali, arXiv:2407.01449): one term of at most 1 for every vector
    of the question. It orders the pages of one question; it does not compare questions.
    """

    def __init__(
        self,
        index: PageIndex,
        similarity_top_k: int = 20,
        filters: MetadataFilters | None = None,
        callback_manager: CallbackManager | None = None,
        verbose: bool = False,
    ) -> None:
        """Search `index`; usually made by `ColPaliIndex.as_retriever`.

        Raises:
            ValueError: for a `similarity_top_k` below 1, or filters that the store cannot express.
        """
        if similarity_top_k < 1:
            raise ValueError(f"similarity_top_k must be at least 1, got {similarity_top_k}.")
        self._index = index
        self._similarity_top_k = similarity_top_k
        self._filter = None if filters is None else translate_filters(filters)
        super().__init__(callback_manager=callback_manager or Settings.callback_manager, verbose=verbose)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        question = query_bundle.query_str.strip()
        if not question:
            raise ValueError(f"A question must contain text, got {query_bundle.query_str!r}.")
        query = self._index.encoder.encode_queries([question])[0]  # (T, D)
        hits = self._index.store.search(query, self._similarity_top_k, self._filter)
        images = self._index.image_dir
        return [NodeWithScore(node=PagePayload.of(hit).to_node(images), score=hit.score) for hit in hits]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)


@dataclass(frozen=True)
class PagePayload:
    """What a store keeps of a page beside its vectors; the fields are the payload's keys."""

    ref_doc_id: str
    metadata: dict[str, Any]
    """The node's, once more, for filters."""
    node: str
    """The node as JSON, without its image."""
    image_name: str | None
    """The page's file inside the index's folder of images, so that an index can move; None for a page of text."""
    digest: str
    """Identifies the content that was encoded."""

    @staticmethod
    def of(page: StoredPage | Hit) -> "PagePayload":
        """Read the payload of a page that `page_payload` wrote."""
        return PagePayload(**page.payload)

    def to_node(self, image_dir: Path) -> TextNode:
        """Return a new node: an ImageNode whose `image_path` lies in `image_dir`, or a TextNode for a page of text."""
        if self.image_name is None:
            return TextNode.model_validate_json(self.node)
        node = ImageNode.model_validate_json(self.node)
        node.image_path = str(image_dir / self.image_name)
        node.image_mimetype = "image/png"
        return node


def page_payload(node: TextNode, ref_doc_id: str, image_name: str | None, digest: str) -> dict[str, Any]:
    """Return the payload of a page; `node` stays as it is."""
    bare = node.model_copy(update={"embedding": None})
    if isinstance(bare, ImageNode):
        bare.image = bare.image_path = bare.image_url = None
    content = bare.model_dump_json()
    return asdict(PagePayload(ref_doc_id, json.loads(content)["metadata"], content, image_name, digest))


def document_is(ref_doc_id: str) -> PageFilter:
    """Filter for the pages of one document."""
    return AnyOf(("ref_doc_id",), (ref_doc_id,))


def metadata_is(key: str, values: Sequence[str | int | float]) -> PageFilter:
    """Filter for the pages whose metadata has one of these values."""
    return AnyOf(("metadata", key), tuple(values))


def translate_filters(filters: MetadataFilters) -> PageFilter:
    """Translate LlamaIndex's filters into the store's.

    Raises:
        ValueError: for text search and for a value that does not fit its operator.
    """
    parts = tuple(
        translate_filters(part) if isinstance(part, MetadataFilters) else _translate(part) for part in filters.filters
    )
    if filters.condition == FilterCondition.OR:
        return SomeMatch(parts)
    return NoneMatch(parts) if filters.condition == FilterCondition.NOT else AllMatch(parts)


_BOUNDS = {
    FilterOperator.GT: "gt",
    FilterOperator.GTE: "gte",
    FilterOperator.LT: "lt",
    FilterOperator.LTE: "lte",
}


def _translate(part: MetadataFilter) -> PageFilter:
    path, value, operator = ("metadata", part.key), part.value, part.operator
    if operator == FilterOperator.IS_EMPTY:
        return IsEmpty(path)
    if operator in _BOUNDS:
        if not isinstance(value, int | float):
            raise ValueError(f"The filter {part.key!r} {operator.value} needs a number, got {value!r}.")
        return Range(path, **{_BOUNDS[operator]: float(value)})
    if operator in (FilterOperator.EQ, FilterOperator.NE, FilterOperator.CONTAINS):
        if value is None or isinstance(value, list):
            raise ValueError(f"The filter {part.key!r} {operator.value} needs one string or number, got {value!r}.")
        equal = AnyOf(path, (value,))
        return NoneMatch((equal,)) if operator == FilterOperator.NE else equal
    if operator in (FilterOperator.IN, FilterOperator.NIN, FilterOperator.ANY, FilterOperator.ALL):
        if not isinstance(value, list):
            raise ValueError(f"The filter {part.key!r} {operator.value} needs a list, got {value!r}.")
        if operator == FilterOperator.ALL:
            return AllMatch(tuple(AnyOf(path, (one,)) for one in value))
        some = AnyOf(path, tuple(value))
        return NoneMatch((some,)) if operator == FilterOperator.NIN else some
    raise ValueError(f"The filter {part.key!r} {operator.value} is not supported: page stores do not search text.")
