"""A page store in a folder: Qdrant Edge, in this process, nothing to install or start (the default).

One process may have the folder open at a time; a process that is forked off refuses to use it, since the threads of
Qdrant Edge stay behind, and a search would wait for them. Writes go through Qdrant's write-ahead log, so what was added
survives a crash of the process. Vectors lie in memory-mapped files.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as qdrant

from llama_index_ziprerank.retrieval.disk import check_room, disk_errors
from llama_index_ziprerank.retrieval.points import PAGES_A_LISTING, Condition, PointStore, point_payload
from llama_index_ziprerank.retrieval.store import PageRecord, Range, StoredPage, StoreError, Vectors, point_id

_SETTINGS = "edge_config.json"
_LOCKED = "WouldBlock"  # how Qdrant Edge reports that somebody else holds the write-ahead log
_NOT_READY = "Shard is not initialized"  # how it reports that another thread has closed the store meanwhile
_CHANGES_A_FLUSH = 256  # of one page each: the log stays below some 200 MB, and a flush takes 30 ms
_ROOM_TO_OPEN = 16_000_000  # bytes, beside the files' holes: the log is written again where it was not flushed
_ROOM_TO_DELETE = 8_000_000  # little, so that a full disk can still be emptied
_ROOM_TO_ADD = 96_000_000  # beside pages and holes: two files of 32 MB may be begun, and opening again takes the rest


class EdgeStore(PointStore):
    """``PageStore`` over the folder ``path``, which is created when the first page is added."""

    def __init__(self, path: str | Path) -> None:
        """Open the folder, if it holds a store.

        Raises:
            StoreError: when another process (or another store of this one) has it open, it is damaged, cannot be
                written, or its disk is full.
        """
        super().__init__()
        self.path = Path(path).absolute()
        self._process = os.getpid()
        self.words = _EdgeWords()
        self._shard: qdrant.EdgeShard | None = None
        self._has_garbage = False
        self._unflushed = 0
        settings = self.path / _SETTINGS
        if holds_store(self.path):
            check_room(self.path, _ROOM_TO_OPEN + _holes(self.path))
            with self._errors():
                self._shard = qdrant.EdgeShard.load(str(self.path))
                self._width = json.loads(settings.read_text())["vectors"][""]["size"]

    def copy_to(self, path: str | Path) -> None:
        """Write a copy of the store to the folder ``path``, which must not exist or be empty."""
        self._check_open()
        if self._shard is None:
            return
        with self._errors():
            self._shard.flush()  # afterwards everything is in the segments, and the log can stay behind
        with disk_errors(Path(path)):
            shutil.copytree(
                self.path, path, copy_function=_copy_sparse, ignore=shutil.ignore_patterns("wal"), dirs_exist_ok=True
            )

    def close(self) -> None:
        """See ``PageStore.close``."""
        self._closed = True
        if self._is_inherited:
            return
        shard, self._shard = self._shard, None
        if shard is None:
            return
        with self._errors():
            try:
                shard.flush()
                if self._has_garbage and shutil.disk_usage(self.path).free > _ROOM_TO_ADD + _size_on_disk(self.path):
                    shard.optimize()  # reclaims the room of deleted pages once there are many
            finally:
                shard.close()

    def _name(self) -> str:
        return f"The store {self.path}"

    @property
    def _is_inherited(self) -> bool:
        """Whether this process was forked off the one that opened the store."""
        return os.getpid() != self._process

    def _check_open(self) -> None:
        if self._is_inherited:
            raise StoreError(
                f"{self._name()} was opened before this process was forked, and belongs to the process that opened it. "
                "Open the index after the fork, in one process alone, or keep the vectors on a Qdrant server "
                "(QdrantStore), which serves several processes."
            )
        super()._check_open()

    def _open_shard(self) -> qdrant.EdgeShard:
        shard = self._shard
        if shard is None:
            self._check_open()
            raise StoreError(f"{self._name()} is empty.")
        return shard

    def _upsert(self, records: Sequence[PageRecord], width: int) -> None:
        size = sum(record.vectors.nbytes for record in records)
        check_room(self.path, _ROOM_TO_ADD + _holes(self.path) + 3 * size)
        if self._shard is None:
            self._create(width)
        points = [
            qdrant.Point(point_id(record.id), _as_vectors(record.vectors), point_payload(record)) for record in records
        ]
        self._change(qdrant.UpdateOperation.upsert_points(points))

    def _overwrite(self, page: StoredPage) -> None:
        check_room(self.path, _ROOM_TO_DELETE)
        self._change(qdrant.UpdateOperation.overwrite_payload([point_id(page.id)], point_payload(page)))

    def _delete(self, ids: Sequence[str]) -> None:
        check_room(self.path, _ROOM_TO_DELETE)
        self._change(qdrant.UpdateOperation.delete_points([point_id(name) for name in ids]))
        self._has_garbage = True

    def _change(self, operation: qdrant.UpdateOperation) -> None:
        """Write an operation; the log forgets it at a flush, else it would come to hold all vectors once more."""
        shard = self._open_shard()
        shard.update(operation)
        self._unflushed += 1
        if self._unflushed >= _CHANGES_A_FLUSH:
            shard.flush()
            self._unflushed = 0

    def _query(self, query: Vectors, top_k: int, where: Condition | None) -> Sequence[qdrant.ScoredPoint]:
        request = qdrant.QueryRequest(
            limit=top_k,
            query=qdrant.Query.Nearest(_as_vectors(query)),
            filter=where,
            params=qdrant.SearchParams(exact=True),
            with_payload=True,
        )
        return self._open_shard().query(request)

    def _retrieve(self, ids: Sequence[str]) -> Sequence[qdrant.Record]:
        return self._open_shard().retrieve([point_id(name) for name in ids], with_payload=True, with_vector=False)

    def _scroll(self, where: Condition | None, offset: Any) -> tuple[Sequence[qdrant.Record], Any]:
        request = qdrant.ScrollRequest(offset=offset, limit=PAGES_A_LISTING, filter=where, with_payload=True)
        return self._open_shard().scroll(request)

    def _count(self, where: Condition | None) -> int:
        return self._open_shard().count(qdrant.CountRequest(exact=True, filter=where))

    def _create(self, width: int) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        vectors = qdrant.EdgeVectorParams(
            size=width,
            distance=qdrant.Distance.Dot,
            multivector_config=qdrant.MultiVectorConfig(qdrant.MultiVectorComparator.MaxSim),
            hnsw_config=qdrant.HnswIndexConfig(m=0, ef_construct=4, full_scan_threshold=0),  # m=0: no graph is built
        )
        self._shard = qdrant.EdgeShard.create(str(self.path), qdrant.EdgeConfig(vectors=vectors))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Qdrant Edge raises bare ``Exception``; say which folder it is about, and name the usual cause."""
        try:
            with disk_errors(self.path):
                yield
        except StoreError:
            raise
        except Exception as error:
            if _NOT_READY in str(error):
                self._check_open()
            if _LOCKED in str(error):
                raise StoreError(
                    f"The store {self.path} is open elsewhere (in another process or another index object). "
                    "Close it there, or serve several processes from a Qdrant server (QdrantStore)."
                ) from error
            raise StoreError(f"The store {self.path} failed: {error}") from error


def holds_store(path: Path) -> bool:
    """Whether pages were ever stored in this folder, and its settings are still there."""
    return (path / _SETTINGS).exists()


class _EdgeWords:
    """See ``Words``."""

    def every(self, conditions: list[Condition]) -> Condition:
        return qdrant.Filter(must=conditions)

    def some(self, conditions: list[Condition]) -> Condition:
        return qdrant.Filter(should=conditions)

    def none(self, conditions: list[Condition]) -> Condition:
        return qdrant.Filter(must_not=conditions)

    def any_of(self, path: str, values: list[str]) -> Condition:
        return qdrant.FieldCondition(path, match=qdrant.MatchAny(values))

    def equals(self, path: str, value: int) -> Condition:
        return qdrant.FieldCondition(path, match=qdrant.MatchValue(value))

    def within(self, path: str, bounds: Range) -> Condition:
        limits = qdrant.RangeFloat(gt=bounds.gt, gte=bounds.gte, lt=bounds.lt, lte=bounds.lte)
        return qdrant.FieldCondition(path, range=limits)

    def empty(self, path: str) -> Condition:
        return qdrant.IsEmptyCondition(path)

    def element(self, path: str, condition: Condition) -> Condition:
        return qdrant.NestedCondition(path, qdrant.Filter(must=[condition]))


def _as_vectors(vectors: Vectors) -> Any:
    """Qdrant Edge takes float32 arrays, though its type stubs speak of lists only."""
    return np.ascontiguousarray(vectors, dtype=np.float32)


def _holes(folder: Path) -> int:
    """Bytes that vector files reserve and that were never written: opening the store takes them all from the disk."""
    files = [file.stat() for file in folder.glob("segments/*/vector_storage/**/*.mmap")]
    return sum(max(0, file.st_size - file.st_blocks * 512) for file in files)


def _size_on_disk(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*"))


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
