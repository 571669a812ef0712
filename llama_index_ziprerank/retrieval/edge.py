"""A page store in a folder: Qdrant Edge, in this process, nothing to install or start (the default).

One process may have the folder open at a time. Writes go through Qdrant's write-ahead log, so what was added
survives a crash. Vectors lie in memory-mapped files.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as qdrant

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

_SCROLL = 256  # pages listed at a time
_LOCKED = "WouldBlock"  # how Qdrant Edge reports that somebody else holds the write-ahead log


class EdgeStore:
    """``PageStore`` over the folder ``path``, which is created when the first page is added."""

    def __init__(self, path: str | Path) -> None:
        """Open the folder, if it holds a store.

        Raises:
            StoreError: when another process (or another store of this one) has it open, or it is damaged.
        """
        self.path = Path(path)
        self._shard: qdrant.EdgeShard | None = None
        self._width: int | None = None
        self._closed = False
        self._has_garbage = False
        settings = self.path / "edge_config.json"
        if settings.exists():
            with _store_errors(self.path):
                self._shard = qdrant.EdgeShard.load(str(self.path))
            self._width = json.loads(settings.read_text())["vectors"][""]["size"]

    def add(self, records: Sequence[PageRecord]) -> None:
        """See ``PageStore.add``."""
        self._check_open()
        width = self._width
        for record in records:
            check_vectors(record.id, record.vectors, width)
            width = record.vectors.shape[1]
        if not records:
            return
        shard = self._shard or self._create(records[0].vectors.shape[1])
        points = [
            qdrant.Point(
                point_id(record.id),
                _as_vectors(record.vectors),
                {"id": record.id, "document_id": record.document_id, "payload": record.payload},
            )
            for record in records
        ]
        with _store_errors(self.path):
            shard.update(qdrant.UpdateOperation.upsert_points(points))

    def delete(self, document_ids: Sequence[str]) -> None:
        """See ``PageStore.delete``."""
        self._check_open()
        if self._shard is None or not document_ids:
            return
        where = qdrant.Filter(must=[_any_of(json_path(DOCUMENT_ID), tuple(document_ids))])
        with _store_errors(self.path):
            self._shard.update(qdrant.UpdateOperation.delete_points_by_filter(where))
        self._has_garbage = True

    def search(self, query: Vectors, top_k: int, page_filter: PageFilter | None = None) -> list[Hit]:
        """See ``PageStore.search``."""
        self._check_open()
        if self._shard is None or self._width is None:
            return []
        check_query(query, top_k, self._width)
        found = self._shard.query(
            qdrant.QueryRequest(
                limit=top_k,
                query=qdrant.Query.Nearest(_as_vectors(query)),
                filter=_translate(page_filter),
                params=qdrant.SearchParams(exact=True),
                with_payload=True,
            )
        )
        return by_score(
            [Hit(p.payload["id"], p.payload["document_id"], p.score, p.payload["payload"]) for p in found if p.payload]
        )

    def fetch(self, ids: Sequence[str]) -> list[StoredPage]:
        """See ``PageStore.fetch``."""
        self._check_open()
        if self._shard is None:
            return []
        return _stored(self._shard.retrieve([point_id(name) for name in ids], with_payload=True, with_vector=False))

    def pages(self, page_filter: PageFilter | None = None) -> Iterator[StoredPage]:
        """See ``PageStore.pages``."""
        self._check_open()
        where, offset = _translate(page_filter), None
        while self._shard is not None:
            records, offset = self._shard.scroll(
                qdrant.ScrollRequest(offset=offset, limit=_SCROLL, filter=where, with_payload=True)
            )
            yield from _stored(records)
            if offset is None:
                return

    def count(self, page_filter: PageFilter | None = None) -> int:
        """See ``PageStore.count``."""
        self._check_open()
        if self._shard is None:
            return 0
        return self._shard.count(qdrant.CountRequest(exact=True, filter=_translate(page_filter)))

    def copy_to(self, path: str | Path) -> None:
        """Write a copy of the store to the folder ``path``, which must not exist or be empty."""
        self._check_open()
        if self._shard is None:
            return
        self._shard.flush()  # afterwards everything is in the segments, and the log can stay behind
        shutil.copytree(
            self.path, path, copy_function=_copy_sparse, ignore=shutil.ignore_patterns("wal"), dirs_exist_ok=True
        )

    def close(self) -> None:
        """See ``PageStore.close``."""
        if self._shard is not None:
            self._shard.flush()
            if self._has_garbage:
                self._shard.optimize()  # reclaims the room of deleted pages once there are many
            self._shard.close()
        self._shard, self._closed = None, True

    def _create(self, width: int) -> qdrant.EdgeShard:
        self.path.mkdir(parents=True, exist_ok=True)
        vectors = qdrant.EdgeVectorParams(
            size=width,
            distance=qdrant.Distance.Dot,
            multivector_config=qdrant.MultiVectorConfig(qdrant.MultiVectorComparator.MaxSim),
            hnsw_config=qdrant.HnswIndexConfig(m=0, ef_construct=4, full_scan_threshold=0),  # m=0: no graph is built
        )
        with _store_errors(self.path):
            self._shard = qdrant.EdgeShard.create(str(self.path), qdrant.EdgeConfig(vectors=vectors))
        self._width = width
        return self._shard

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"The store {self.path} is closed. Open it again with EdgeStore({str(self.path)!r}).")


def _as_vectors(vectors: Vectors) -> Any:
    """Qdrant Edge takes float32 arrays, though its type stubs speak of lists only."""
    return np.ascontiguousarray(vectors, dtype=np.float32)


def _stored(records: "Sequence[qdrant.Record]") -> list[StoredPage]:
    return [StoredPage(r.payload["id"], r.payload["document_id"], r.payload["payload"]) for r in records if r.payload]


@contextmanager
def _store_errors(path: Path) -> Iterator[None]:
    """Qdrant Edge raises bare ``Exception``; say which folder it is about, and name the usual cause."""
    try:
        yield
    except Exception as error:
        if _LOCKED in str(error):
            raise StoreError(
                f"The store {path} is open elsewhere (in another process or another index object). "
                "Close it there, or serve several processes from a Qdrant server (QdrantStore)."
            ) from error
        raise StoreError(f"The store {path} failed: {error}") from error


def _copy_sparse(source: str, target: str) -> str:
    """Copy a file, leaving holes where it is zero: Qdrant reserves tens of megabytes that it has not used yet."""
    block_size = 1 << 16
    with open(source, "rb") as reader, open(target, "wb") as writer:
        while block := reader.read(block_size):
            if block.count(0) == len(block):
                writer.seek(len(block), 1)
            else:
                writer.write(block)
        writer.truncate(reader.tell())
    return target


def _translate(page_filter: PageFilter | None) -> qdrant.Filter | None:
    return None if page_filter is None else qdrant.Filter(must=[_condition(page_filter)])


def _condition(page_filter: PageFilter) -> "qdrant.ConditionType":
    if isinstance(page_filter, AnyOf):
        return _any_of(_payload_path(page_filter), page_filter.values)
    if isinstance(page_filter, Range):
        bounds = qdrant.RangeFloat(gt=page_filter.gt, gte=page_filter.gte, lt=page_filter.lt, lte=page_filter.lte)
        return qdrant.FieldCondition(_payload_path(page_filter), range=bounds)
    if isinstance(page_filter, IsEmpty):
        return qdrant.IsEmptyCondition(_payload_path(page_filter))
    conditions = [_condition(part) for part in page_filter.filters]
    if isinstance(page_filter, AllMatch):
        return qdrant.Filter(must=conditions)
    if isinstance(page_filter, SomeMatch):
        return qdrant.Filter(should=conditions or [qdrant.HasIdCondition(set())])
    return qdrant.Filter(must_not=conditions)


def _any_of(path: str, values: Sequence[Scalar]) -> "qdrant.ConditionType":
    return qdrant.Filter(should=[_equals(path, value) for value in values] or [qdrant.HasIdCondition(set())])


def _equals(path: str, value: Scalar) -> qdrant.FieldCondition:
    if isinstance(value, str):
        return qdrant.FieldCondition(path, match=qdrant.MatchValue(value))
    return qdrant.FieldCondition(path, range=qdrant.RangeFloat(gte=value, lte=value))


def _payload_path(page_filter: AnyOf | Range | IsEmpty) -> str:
    return json_path(("payload", *page_filter.path))
