"""A page store on a Qdrant server or cluster, with the semantics of the embedded one.

``QdrantStore(url="http://localhost:6333", collection="manuals")``. Several processes may use one collection.
"""

import warnings
from collections.abc import Iterator, Sequence
from itertools import islice

from qdrant_client import QdrantClient, models

from llama_index_ziprerank.retrieval.store import (
    DOCUMENT_ID,
    AllMatch,
    AnyOf,
    Hit,
    IsEmpty,
    PageFilter,
    PageRecord,
    Range,
    Scalar,
    SomeMatch,
    StoredPage,
    StoreError,
    Vectors,
    by_score,
    check_query,
    check_vectors,
    json_path,
    point_id,
)

_UPSERT = 8  # pages a request: a page of 1,024 vectors is about 2 MB of JSON, a server takes 32 MB
_SCROLL = 256  # pages listed at a time


class QdrantStore:
    """``PageStore`` over one collection, which is created when the first page is added."""

    def __init__(
        self,
        url: str | None = None,
        *,
        collection: str = "ziprerank",
        api_key: str | None = None,
        client: QdrantClient | None = None,
    ) -> None:
        """Connect to ``url``, or use ``client``, which then stays the caller's to close.

        Raises:
            ValueError: unless exactly one of ``url`` and ``client`` is given.
            StoreError: when ``collection`` exists and does not hold pages as this store writes them.
        """
        if (url is None) == (client is None):
            raise ValueError("Pass either url=... or client=... to QdrantStore, and not both.")
        self.collection = collection
        self._owned = client is None
        self._client = client if client is not None else QdrantClient(url=url, api_key=api_key)
        self._closed = False
        self._width = self._stored_width()

    def add(self, records: Sequence[PageRecord]) -> None:
        """See ``PageStore.add``."""
        self._check_open()
        width = self._width
        for record in records:
            check_vectors(record.id, record.vectors, width)
            width = record.vectors.shape[1]
        if width is None:
            return
        if self._width is None:
            self._create(width)
        remaining = iter(records)
        while batch := list(islice(remaining, _UPSERT)):
            self._client.upsert(self.collection, [_point(record) for record in batch], wait=True)

    def delete(self, document_ids: Sequence[str]) -> None:
        """See ``PageStore.delete``."""
        self._check_open()
        if self._width is None or not document_ids:
            return
        condition = models.FieldCondition(key=json_path(DOCUMENT_ID), match=models.MatchAny(any=list(document_ids)))
        self._client.delete(self.collection, models.FilterSelector(filter=models.Filter(must=[condition])), wait=True)

    def search(self, query: Vectors, top_k: int, page_filter: PageFilter | None = None) -> list[Hit]:
        """See ``PageStore.search``."""
        self._check_open()
        if self._width is None:
            return []
        check_query(query, top_k, self._width)
        found = self._client.query_points(
            self.collection,
            query=query.tolist(),
            limit=top_k,
            query_filter=_translate(page_filter),
            search_params=models.SearchParams(exact=True),
        ).points
        return by_score(
            [Hit(p.payload["id"], p.payload["document_id"], p.score, p.payload["payload"]) for p in found if p.payload]
        )

    def fetch(self, ids: Sequence[str]) -> list[StoredPage]:
        """See ``PageStore.fetch``."""
        self._check_open()
        if self._width is None:
            return []
        points = [str(point_id(name)) for name in ids]
        return _stored(self._client.retrieve(self.collection, points, with_payload=True))

    def pages(self, page_filter: PageFilter | None = None) -> Iterator[StoredPage]:
        """See ``PageStore.pages``."""
        self._check_open()
        where, offset = _translate(page_filter), None
        while self._width is not None:
            records, offset = self._client.scroll(
                self.collection, scroll_filter=where, limit=_SCROLL, offset=offset, with_payload=True
            )
            yield from _stored(records)
            if offset is None:
                return

    def count(self, page_filter: PageFilter | None = None) -> int:
        """See ``PageStore.count``."""
        self._check_open()
        if self._width is None:
            return 0
        return self._client.count(self.collection, count_filter=_translate(page_filter), exact=True).count

    def close(self) -> None:
        """See ``PageStore.close``."""
        if self._owned and not self._closed:
            self._client.close()
        self._closed = True

    def _stored_width(self) -> int | None:
        if not self._client.collection_exists(self.collection):
            return None
        vectors = self._client.get_collection(self.collection).config.params.vectors
        if (
            not isinstance(vectors, models.VectorParams)
            or vectors.multivector_config is None
            or vectors.distance != models.Distance.DOT
        ):
            raise StoreError(
                f"The collection {self.collection!r} holds other data (its vectors are {vectors!r}); pages need one "
                "unnamed multi-vector with MAX_SIM over dot products. Choose another collection name."
            )
        return vectors.size

    def _create(self, width: int) -> None:
        vectors = models.VectorParams(
            size=width,
            distance=models.Distance.DOT,
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            hnsw_config=models.HnswConfigDiff(m=0),  # searches are exact, so no graph is built
        )
        self._client.create_collection(self.collection, vectors_config=vectors)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the client's in-memory mode warns that it needs no payload index
            self._client.create_payload_index(self.collection, json_path(DOCUMENT_ID), models.PayloadSchemaType.KEYWORD)
        self._width = width

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"The store of collection {self.collection!r} is closed. Make a new QdrantStore.")


def _point(record: PageRecord) -> models.PointStruct:
    return models.PointStruct(
        id=str(point_id(record.id)),
        vector=record.vectors.tolist(),
        payload={"id": record.id, "document_id": record.document_id, "payload": record.payload},
    )


def _stored(records: Sequence[models.Record]) -> list[StoredPage]:
    return [StoredPage(r.payload["id"], r.payload["document_id"], r.payload["payload"]) for r in records if r.payload]


def _translate(page_filter: PageFilter | None) -> models.Filter | None:
    return None if page_filter is None else models.Filter(must=[_condition(page_filter)])


def _condition(page_filter: PageFilter) -> models.Condition:
    if isinstance(page_filter, AnyOf):
        path = _payload_path(page_filter)
        return models.Filter(should=[_equals(path, value) for value in page_filter.values] or [_nothing()])
    if isinstance(page_filter, Range):
        bounds = models.Range(gt=page_filter.gt, gte=page_filter.gte, lt=page_filter.lt, lte=page_filter.lte)
        return models.FieldCondition(key=_payload_path(page_filter), range=bounds)
    if isinstance(page_filter, IsEmpty):
        return models.IsEmptyCondition(is_empty=models.PayloadField(key=_payload_path(page_filter)))
    conditions = [_condition(part) for part in page_filter.filters]
    if isinstance(page_filter, AllMatch):
        return models.Filter(must=conditions)
    if isinstance(page_filter, SomeMatch):
        return models.Filter(should=conditions or [_nothing()])
    return models.Filter(must_not=conditions)


def _nothing() -> models.HasIdCondition:
    return models.HasIdCondition(has_id=[])


def _equals(path: str, value: Scalar) -> models.FieldCondition:
    if isinstance(value, str):
        return models.FieldCondition(key=path, match=models.MatchValue(value=value))
    return models.FieldCondition(key=path, range=models.Range(gte=value, lte=value))


def _payload_path(page_filter: AnyOf | Range | IsEmpty) -> str:
    return json_path(("payload", *page_filter.path))
