"""`ColPaliRetriever`: a question becomes the pages whose vectors answer it best, as nodes with their images."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePath
from typing import Any, Protocol

import numpy as np
from llama_index.core import Settings
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import ImageNode, NodeRelationship, NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from llama_index_ziprerank.nodes import FILE_PATH, also_hidden
from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder
from llama_index_ziprerank.retrieval.folder import checked_image_name
from llama_index_ziprerank.retrieval.matching import below, is_kept_as, passes
from llama_index_ziprerank.retrieval.store import (
    AllMatch,
    AnyOf,
    ElementMatch,
    Hit,
    IsEmpty,
    NoneMatch,
    PageFilter,
    PageStore,
    Range,
    SomeMatch,
    StoredPage,
    StoreError,
    json_path,
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
    of the question. It orders the pages of one question; it does not compare questions. What a query transformation
    (HyDE) gives to be embedded is searched for in the question's place; of several texts the scores add up. A blank
    question is a ValueError, an index that is closed a StoreError.

    A page of several copies (the same bytes under several paths) passes `filters` when one copy passes them all; it is
    returned as that copy, and carries nothing of the others.
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
        self._copy_filter = None if filters is None else translate_filters(filters)
        super().__init__(callback_manager=callback_manager or Settings.callback_manager, verbose=verbose)

    @property
    def encoder(self) -> MultiVectorEncoder:
        """The model that made the index's vectors and makes those of questions."""
        return self._index.encoder

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        questions = [text.strip() for text in query_bundle.embedding_strs if text.strip()]
        if not questions:
            raise ValueError(f"A question must contain text, got {query_bundle.query_str!r}.")
        self._index.store.fetch([])  # a store that is closed says so before the model works
        query = np.concatenate(self._index.encoder.encode_queries(questions))  # (T, D)
        page_filter = None if self._copy_filter is None else has_copy(self._copy_filter)
        hits = self._index.store.search(query, self._similarity_top_k, page_filter)
        found = [(PagePayload.of(hit).passing(self._copy_filter), hit.score) for hit in hits]
        images = self._index.image_dir
        return [NodeWithScore(node=page.to_node(images), score=score) for page, score in found if page is not None]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)


@dataclass(frozen=True)
class PagePayload:
    """What a store keeps of a page beside its vectors; the fields are the payload's keys."""

    ref_doc_id: str
    metadata: dict[str, Any]
    """The node's, once more, to find a page by a value; where copies differ in it, the list of what they have."""
    node: str
    """The node as JSON, without its image; of several copies the one that came last."""
    image_name: str | None
    """The page's file inside the index's folder of images, so that an index can move; None for a page of text."""
    digest: str
    """Identifies the content that was encoded."""
    copies: list[dict[str, Any]]
    """The metadata of the page in every file that holds it, the node's own first. One, unless the same bytes lie under
    several paths."""

    @staticmethod
    def of(page: StoredPage | Hit) -> "PagePayload":
        """Read the payload of a page that this library wrote, also in format 1, which knew no copies.

        Raises:
            StoreError: when something else wrote it.
        """
        content = {"copies": [page.payload.get("metadata")], **page.payload}
        if content.keys() != {field.name for field in fields(PagePayload)}:
            raise StoreError(f"The stored page {page.id!r} holds {sorted(page.payload)}; it is no page of an index.")
        if content["image_name"] is not None:
            checked_image_name(content["image_name"])
        own = json.loads(content["node"])["metadata"]  # as text, which stores keep to the last digit
        return PagePayload(**{**content, "copies": [own, *content["copies"][1:]]})

    def with_copy(self, node: TextNode) -> "PagePayload":
        """Return the payload of this page, found once more in the file that `node` comes from.

        What one of several copies keeps from models, the page keeps from them, whichever copy is shown.
        """
        new = page_payload(node, node.ref_doc_id or node.node_id, self.image_name, self.digest)
        [copy], path = new.copies, file_of(new.copies[0])
        if any(is_kept_as(copy, other) for other in self.copies[1:]):
            return self
        others = [one for one in self.copies if path is not None and file_of(one) not in (None, path)]
        if others:
            known = self._parsed()
            hidden = also_hidden(node, known.excluded_llm_metadata_keys, known.excluded_embed_metadata_keys)
            node = node.model_copy(update=hidden)
            new = page_payload(node, new.ref_doc_id, self.image_name, self.digest)._having([copy, *others])
        return self if new._shown() == self._shown() else new

    def without_copies(self, is_gone: Callable[[str | None], bool]) -> "PagePayload | None":
        """Return the payload of this page in the files that are left, None when none is."""
        left = [copy for copy in self.copies if not is_gone(file_of(copy))]
        return self._having(left) if left else None

    def passing(self, copy_filter: PageFilter | None) -> "PagePayload | None":
        """Return the payload of this page as the first of its copies that passes, without the others; else None.

        Of a page with one copy the store has told already that it passes.
        """
        if copy_filter is None or len(self.copies) == 1:
            return self
        copy = next((copy for copy in self.copies if passes(copy, copy_filter)), None)
        return None if copy is None else self._having([copy])

    def _having(self, copies: list[dict[str, Any]]) -> "PagePayload":
        """Return this payload with these copies; the first becomes the node's metadata.

        What else the node says of its document (hash, neighbours) is of the copy it was, and goes with it.
        """
        node = self._parsed()
        if node.metadata != copies[0]:
            source = node.source_node
            changes = {"metadata": copies[0], "hash": None}
            node.metadata = copies[0]
            node.relationships = {} if source is None else {NodeRelationship.SOURCE: source.model_copy(update=changes)}
        return replace(self, metadata=_merged(copies), node=node.model_dump_json(), copies=copies)

    def _parsed(self) -> TextNode:
        kind = TextNode if self.image_name is None else ImageNode
        return kind.model_validate_json(self.node)

    def _shown(self) -> TextNode:
        """Return the node without the hash of its document, which a moved image file changes."""
        node = self._parsed()
        if node.source_node is not None:
            node.source_node.hash = None
        return node

    def to_node(self, image_dir: Path) -> TextNode:
        """Return a new node: an ImageNode whose `image_path` lies in `image_dir`, or a TextNode for a page of text."""
        node = self._parsed()
        if isinstance(node, ImageNode) and self.image_name is not None:
            node.image_path = str(image_dir / self.image_name)
            node.image_mimetype = "image/png"
        return node


def file_of(metadata: Mapping[str, Any]) -> str | None:
    """Return the file that a page is from, as it is stored; None when the metadata names none, or a list of several."""
    path = metadata.get(FILE_PATH)
    return str(path) if isinstance(path, str | PurePath) else None


def page_payload(node: TextNode, ref_doc_id: str, image_name: str | None, digest: str) -> PagePayload:
    """Return the payload of a page that one file holds; `node` stays as it is."""
    bare = node.model_copy(update={"embedding": None})
    if isinstance(bare, ImageNode):
        bare.image = bare.image_path = bare.image_url = None
    content = bare.model_dump_json()
    metadata = json.loads(content)["metadata"]
    return PagePayload(ref_doc_id, metadata, content, image_name, digest, [metadata])


def _merged(copies: list[dict[str, Any]]) -> dict[str, Any]:
    """Join the metadata of copies: a value that one of them has, the page has. Of a whole filter it tells nothing."""
    if len(copies) == 1:
        return copies[0]
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for copy in copies for key in copy):
        values: list[Any] = []
        for value in (copy[key] for copy in copies if key in copy):
            values += [one for one in (value if isinstance(value, list) else [value]) if one not in values]
        merged[key] = values[0] if len(values) == 1 else values
    return merged


def document_is(ref_doc_id: str) -> PageFilter:
    """Filter for the pages of one document."""
    return AnyOf(("ref_doc_id",), (ref_doc_id,))


def metadata_is(key: str, values: Sequence[str | int | float]) -> PageFilter:
    """Filter for the pages whose metadata has one of these values."""
    return AnyOf(("metadata", key), tuple(values))


def has_copy(copy_filter: PageFilter) -> PageFilter:
    """Filter for the pages of which one copy passes `copy_filter`; in format 1 a page was its own only copy."""
    return SomeMatch(
        (
            ElementMatch(("copies",), copy_filter),
            AllMatch((IsEmpty(("copies",)), below("metadata", copy_filter))),
        )
    )


def translate_filters(filters: MetadataFilters) -> PageFilter:
    """Translate LlamaIndex's filters into the store's, as they are asked of the metadata of one copy of a page.

    Without any filter in them every page passes, whatever their condition, as in LlamaIndex's own stores.

    Raises:
        ValueError: for text search, for a value that does not fit its operator, and for a key or a number that no
            store compares.
    """
    parts = tuple(
        translate_filters(part) if isinstance(part, MetadataFilters) else _translate(part) for part in filters.filters
    )
    if parts and filters.condition == FilterCondition.OR:
        return SomeMatch(parts)
    return NoneMatch(parts) if filters.condition == FilterCondition.NOT else AllMatch(parts)


_BOUNDS = {
    FilterOperator.GT: "gt",
    FilterOperator.GTE: "gte",
    FilterOperator.LT: "lt",
    FilterOperator.LTE: "lte",
}


def _translate(part: MetadataFilter) -> PageFilter:
    path, value, operator = (part.key,), part.value, part.operator
    json_path(path)  # a key that no store can express is refused now
    if operator == FilterOperator.IS_EMPTY:
        return IsEmpty(path)
    if operator in _BOUNDS:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:  # NaN
            raise ValueError(f"The filter {part.key!r} {operator.value} needs a number, got {value!r}.")
        return Range(path, **{_BOUNDS[operator]: value})
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
