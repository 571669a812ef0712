"""What both Qdrant stores have in common: pages are points, filters are conditions, and a closed store says so.

``EdgeStore`` and ``QdrantStore`` add their client's way of calling the same operations.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias

from llama_index_ziprerank.retrieval.store import (
    AllMatch,
    AnyOf,
    Hit,
    IsEmpty,
    NoneMatch,
    PageFilter,
    PageRecord,
    PayloadPath,
    Range,
    Scalar,
    SomeMatch,
    StoredPage,
    StoreError,
    Vectors,
    as_kept,
    by_score,
    check_query,
    check_vectors,
    is_beyond_floats,
    json_path,
)

PAGES_A_LISTING = 256
_DEEPEST = 100  # levels of a payload; Qdrant reads JSON of 128, its own included

Condition: TypeAlias = Any
"""A condition or a filter in the client's own classes."""


class Words(Protocol):
    """How a client says a condition."""

    def every(self, conditions: list[Condition]) -> Condition:
        """All of them hold."""

    def some(self, conditions: list[Condition]) -> Condition:
        """At least one holds; never called with none."""

    def none(self, conditions: list[Condition]) -> Condition:
        """None of them holds."""

    def any_of(self, path: str, values: list[str]) -> Condition:
        """The value is one of these strings; looked up in a set, however many they are."""

    def equals(self, path: str, value: int) -> Condition:
        """The value is this integer, as an integer."""

    def within(self, path: str, bounds: Range) -> Condition:
        """The value is a number within the bounds."""

    def empty(self, path: str) -> Condition:
        """The value is missing, null or an empty list."""

    def element(self, path: str, condition: Condition) -> Condition:
        """The value is a list, and for one of its elements the condition holds; its paths begin there."""


class PointStore(ABC):
    """``PageStore`` over points; see there for what the methods promise."""

    words: Words

    def __init__(self) -> None:
        self._width: int | None = None
        """None until the first page is there; read it by ``_known_width``."""
        self._closed = False

    def _known_width(self) -> int | None:
        """Width of the stored vectors, None while there are none."""
        return self._width

    def add(self, records: Sequence[PageRecord]) -> None:
        """See ``PageStore.add``."""
        self._check_open()
        width = self._known_width()
        for record in records:
            check_vectors(record.id, record.vectors, width)
            width = record.vectors.shape[1]
        if width is None or not records:
            return
        with self._errors():
            self._upsert(records, width)
        self._width = width

    def update(self, pages: Sequence[StoredPage]) -> None:
        """See ``PageStore.update``."""
        self._check_open()
        with self._errors():
            for page in pages:
                self._overwrite(page)

    def delete(self, ids: Sequence[str]) -> None:
        """See ``PageStore.delete``."""
        self._check_open()
        if not ids or self._known_width() is None:
            return
        with self._errors():
            self._delete(ids)

    def search(self, query: Vectors, top_k: int, page_filter: PageFilter | None = None) -> list[Hit]:
        """See ``PageStore.search``."""
        self._check_open()
        width = self._known_width()
        if width is None:
            return []
        check_query(query, top_k, width)
        where = self._where(page_filter)
        with self._errors():
            found = self._query(query, top_k, where)
        return by_score([Hit(*_fields(point)[:2], point.score, point.payload["payload"]) for point in found])

    def fetch(self, ids: Sequence[str]) -> list[StoredPage]:
        """See ``PageStore.fetch``."""
        self._check_open()
        if not ids or self._known_width() is None:
            return []
        with self._errors():
            return [StoredPage(*_fields(point)) for point in self._retrieve(ids)]

    def pages(self, page_filter: PageFilter | None = None) -> Iterator[StoredPage]:
        """See ``PageStore.pages``."""
        where, offset = self._where(page_filter), None
        while True:
            self._check_open()
            if self._known_width() is None:
                return
            with self._errors():
                points, offset = self._scroll(where, offset)
            yield from [StoredPage(*_fields(point)) for point in points]
            if offset is None:
                return

    def count(self, page_filter: PageFilter | None = None) -> int:
        """See ``PageStore.count``."""
        self._check_open()
        where = self._where(page_filter)
        if self._known_width() is None:
            return 0
        with self._errors():
            return self._count(where)

    def _where(self, page_filter: PageFilter | None) -> Condition | None:
        return None if page_filter is None else self.words.every([_translate(page_filter, self.words)])

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self._name()} is closed. Open it again.")

    @abstractmethod
    def close(self) -> None:
        """See ``PageStore.close``."""

    @abstractmethod
    def _name(self) -> str:
        """What messages call this store; never with a password or a key."""

    @abstractmethod
    def _errors(self) -> AbstractContextManager[None]:
        """Turn the client's errors into StoreError."""

    @abstractmethod
    def _upsert(self, records: Sequence[PageRecord], width: int) -> None: ...

    @abstractmethod
    def _overwrite(self, page: StoredPage) -> None: ...

    @abstractmethod
    def _delete(self, ids: Sequence[str]) -> None: ...

    @abstractmethod
    def _query(self, query: Vectors, top_k: int, where: Condition | None) -> Sequence[Any]: ...

    @abstractmethod
    def _retrieve(self, ids: Sequence[str]) -> Sequence[Any]: ...

    @abstractmethod
    def _scroll(self, where: Condition | None, offset: Any) -> tuple[Sequence[Any], Any]: ...

    @abstractmethod
    def _count(self, where: Condition | None) -> int: ...


def point_payload(page: PageRecord | StoredPage) -> dict[str, Any]:
    """What a point carries beside its vectors.

    Raises:
        StoreError: for a payload so deep that Qdrant would write it and never read it again, nor any other page.
    """
    if _depth(page.payload) > _DEEPEST:
        raise StoreError(
            f"The page {page.id!r} has metadata that are nested too deep ({_DEEPEST} levels are stored). "
            "Store them as a string."
        )
    return {"id": page.id, "document_id": page.document_id, "payload": page.payload}


def _depth(value: Any) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, parts), default=0)


def _fields(point: Any) -> tuple[str, str, dict[str, Any]]:
    """Read what ``point_payload`` wrote."""
    payload = point.payload or {}
    if payload.keys() != {"id", "document_id", "payload"}:
        raise StoreError(
            f"The store holds a point with {sorted(payload)}, not the page of an index. "
            "It belongs to something else: take another folder or collection."
        )
    return payload["id"], payload["document_id"], payload["payload"]


def _translate(page_filter: PageFilter, words: Words, under: PayloadPath = ("payload",)) -> Condition:
    """Say a filter in the client's words; its paths begin ``under`` this one."""
    if isinstance(page_filter, AllMatch | SomeMatch | NoneMatch):
        conditions = [_translate(part, words, under) for part in page_filter.filters]
        if isinstance(page_filter, AllMatch):
            return words.every(conditions)
        return _some(conditions, words) if isinstance(page_filter, SomeMatch) else words.none(conditions)
    path = json_path((*under, *page_filter.path))
    if isinstance(page_filter, AnyOf):
        return _any_of(path, page_filter.values, words)
    if isinstance(page_filter, Range):
        return words.within(path, page_filter.as_kept())
    if isinstance(page_filter, IsEmpty):
        return words.empty(path)
    return words.element(path, _translate(page_filter.filter, words, under=()))


def _any_of(path: str, values: Sequence[Scalar], words: Words) -> Condition:
    strings = [value for value in values if isinstance(value, str)]
    numbers = [_equals(path, value, words) for value in values if not isinstance(value, str)]
    return _some([*numbers, words.any_of(path, strings)] if strings else numbers, words)


def _equals(path: str, value: int | float, words: Words) -> Condition:
    if isinstance(value, int) and is_beyond_floats(value):
        return words.equals(path, value)
    least, most = as_kept(value)
    return words.within(path, Range((), gte=least, lte=most))  # so that 3 equals 3.0


def _some(conditions: list[Condition], words: Words) -> Condition:
    return words.some(conditions) if conditions else words.within("nothing", Range((), gt=0.0, lt=0.0))
