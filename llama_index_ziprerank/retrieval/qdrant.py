"""A page store on a Qdrant server or cluster, with the semantics of the embedded one.

``QdrantStore(url="http://localhost:6333", collection="manuals")``. Several processes may use one collection.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from json import JSONDecodeError
from typing import Any

from grpc import RpcError  # type: ignore[import-untyped]
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException

from llama_index_ziprerank.retrieval.points import (
    PAGES_A_LISTING,
    Condition,
    PointStore,
    point_payload,
)
from llama_index_ziprerank.retrieval.store import (
    PageRecord,
    Range,
    StoredPage,
    StoreError,
    Vectors,
    check_vectors,
    point_id,
)

_FAILURES = (ApiException, QdrantException, RpcError, AssertionError)
"""What the client raises: of HTTP, for an answer of 429 that says when to come again, of gRPC, and for an answer that
has no result."""


class QdrantStore(PointStore):
    """``PageStore`` over one collection, which is created when the first page is added."""

    def __init__(
        self,
        url: str | None = None,
        *,
        collection: str = "ziprerank",
        api_key: str | None = None,
        client: QdrantClient | None = None,
        timeout: int = 60,
    ) -> None:
        """Connect to ``url``, or use ``client``, which then stays the caller's to close.

        ``api_key`` is handed to the client and kept nowhere else. ``timeout``: seconds that one request to ``url`` may
        take; a question looks at every page, and the client's own 5 s are few for many thousands.

        Raises:
            ValueError: unless exactly one of ``url`` and ``client`` is given, and for a user or password in ``url``,
                which Qdrant does not know.
            StoreError: when the server cannot be reached or refuses, and when ``collection`` exists and does not hold
                pages as this store writes them.
        """
        if (url is None) == (client is None):
            raise ValueError("Pass either url=... or client=... to QdrantStore, and not both.")
        if url is not None and "@" in url:
            raise ValueError("Qdrant takes no user and password in its URL. Pass api_key=... instead.")
        super().__init__()
        self.collection = collection
        self.words = _ServerWords()
        self._place = "" if url is None else f" at {url}"
        self._owned = client is None
        with self._errors():
            self._client = client or QdrantClient(url=url, api_key=api_key, timeout=timeout, check_compatibility=False)
            self._width = self._stored_width()

    def close(self) -> None:
        """See ``PageStore.close``."""
        if self._owned and not self._closed:
            self._client.close()
        self._closed = True

    def _known_width(self) -> int | None:
        """Another process may have made the collection since: as long as there is none, ask again."""
        if self._width is None:
            with self._errors():
                self._width = self._stored_width()
        return self._width

    def _name(self) -> str:
        return f"The store of collection {self.collection!r}{self._place}"

    def _upsert(self, records: Sequence[PageRecord], width: int) -> None:
        if self._width is None:
            self._create(records[0], width)
        for record in records:  # one a request: a page of 1,280 vectors of 320 numbers is 9 MB, a server takes 32
            self._client.upsert(self.collection, [_point(record)], wait=True)

    def _overwrite(self, page: StoredPage) -> None:
        points: list[Any] = [str(point_id(page.id))]
        self._client.overwrite_payload(self.collection, payload=point_payload(page), points=points, wait=True)

    def _delete(self, ids: Sequence[str]) -> None:
        self._client.delete(self.collection, [str(point_id(name)) for name in ids], wait=True)

    def _query(self, query: Vectors, top_k: int, where: Condition | None) -> Sequence[models.ScoredPoint]:
        exact = models.SearchParams(exact=True)
        return self._client.query_points(
            self.collection, query=query.tolist(), limit=top_k, query_filter=where, search_params=exact
        ).points

    def _retrieve(self, ids: Sequence[str]) -> Sequence[models.Record]:
        return self._client.retrieve(self.collection, [str(point_id(name)) for name in ids], with_payload=True)

    def _scroll(self, where: Condition | None, offset: Any) -> tuple[Sequence[models.Record], Any]:
        return self._client.scroll(
            self.collection, scroll_filter=where, limit=PAGES_A_LISTING, offset=offset, with_payload=True
        )

    def _count(self, where: Condition | None) -> int:
        return self._client.count(self.collection, count_filter=where, exact=True).count

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

    def _create(self, first: PageRecord, width: int) -> None:
        vectors = models.VectorParams(
            size=width,
            distance=models.Distance.DOT,
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            hnsw_config=models.HnswConfigDiff(m=0),  # searches are exact, so no graph is built
        )
        lenient = models.StrictModeConfig(unindexed_filtering_retrieve=True)  # Qdrant Cloud's default refuses filters
        try:
            self._client.create_collection(self.collection, vectors_config=vectors, strict_mode_config=lenient)
        except (ApiException, RpcError):
            stored = self._stored_width()
            if stored is None:
                raise
            check_vectors(first.id, first.vectors, stored)  # another process made it just now

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except JSONDecodeError as error:
            raise StoreError(f"{self._name()} failed: the answer is no JSON, but perhaps a proxy's page.") from error
        except _FAILURES as error:
            raise StoreError(f"{self._name()} failed: {error}") from error


class _ServerWords:
    """See ``Words``."""

    def every(self, conditions: list[Condition]) -> Condition:
        return models.Filter(must=conditions)

    def some(self, conditions: list[Condition]) -> Condition:
        return models.Filter(should=conditions)

    def none(self, conditions: list[Condition]) -> Condition:
        return models.Filter(must_not=conditions)

    def any_of(self, path: str, values: list[str]) -> Condition:
        return models.FieldCondition(key=path, match=models.MatchAny(any=values))

    def equals(self, path: str, value: int) -> Condition:
        return models.FieldCondition(key=path, match=models.MatchValue(value=value))

    def within(self, path: str, bounds: Range) -> Condition:
        if math.inf in (bounds.gt, bounds.gte) or -math.inf in (bounds.lt, bounds.lte):
            bounds = Range((), gt=sys.float_info.max)  # no number; JSON would make infinity null, which is no bound
        limits = models.Range(gt=bounds.gt, gte=bounds.gte, lt=bounds.lt, lte=bounds.lte)
        return models.FieldCondition(key=path, range=limits)

    def empty(self, path: str) -> Condition:
        return models.IsEmptyCondition(is_empty=models.PayloadField(key=path))

    def element(self, path: str, condition: Condition) -> Condition:
        nested = models.Nested(key=path, filter=models.Filter(must=[condition]))
        return models.NestedCondition(nested=nested)


def _point(record: PageRecord) -> models.PointStruct:
    return models.PointStruct(
        id=str(point_id(record.id)), vector=record.vectors.tolist(), payload=point_payload(record)
    )
