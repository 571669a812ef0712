"""What a store of page vectors promises; ``edge.py`` and ``qdrant.py`` keep it, and share one test (``points.py``
holds what else they share).

A page is many vectors (late interaction: ColBERT, ColPali). A store ranks pages by MaxSim, exactly: every page that
passes the filter is scored, no approximate index takes part.

    MaxSim(query, page) = sum over query vectors of (max over page vectors of their dot product)

Letters: T query vectors, N page vectors, D width.
"""

import math
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Vectors: TypeAlias = npt.NDArray[np.float32]
Scalar: TypeAlias = str | int | float
PayloadPath: TypeAlias = tuple[str, ...]
"""Where a value lies in a payload: ``("metadata", "file.name")`` is ``payload["metadata"]["file.name"]``."""


_EXACT = 2**53  # every integer below is a float
_LEAST_INTEGER = -(2**63)


class StoreError(RuntimeError):
    """The store cannot do what was asked; the message says why and what to do."""


@dataclass(frozen=True)
class PageRecord:
    """One page to store."""

    id: str
    """Any string; adding a second record with this id replaces the first."""
    document_id: str
    """The document that the page belongs to."""
    vectors: Vectors
    """(N, D) float32."""
    payload: dict[str, Any]
    """JSON values only; comes back with every hit, and filters look into it."""


@dataclass(frozen=True)
class StoredPage:
    """A page as it is listed, without its vectors."""

    id: str
    document_id: str
    payload: dict[str, Any]


@dataclass(frozen=True)
class Hit:
    """A page found by a search; ``score`` is its MaxSim with the query."""

    id: str
    document_id: str
    score: float
    payload: dict[str, Any]


@dataclass(frozen=True)
class AnyOf:
    """The value equals one of ``values``; a list matches when one of its elements does.

    Numbers compare as numbers (3 equals 3.0), and never equal strings or booleans. Fractions compare up to their last
    digit, the 16th or so, which Qdrant does not always keep. An integer of 2**53 or beyond, where floats have gaps,
    equals that integer alone. A missing value matches nothing. Booleans cannot be asked for: Qdrant Edge 0.9 takes True
    for 1.
    """

    path: PayloadPath
    values: tuple[Scalar, ...]

    def __post_init__(self) -> None:
        if any(isinstance(value, bool) for value in self.values):
            raise ValueError(f"Filters compare strings and numbers, got a boolean: {self.values}. Store it as a word.")
        for value in self.values:
            if isinstance(value, int) and not _LEAST_INTEGER <= value < -_LEAST_INTEGER:
                raise ValueError(f"Filters compare integers of 64 bits with a sign, got {value}. Store it as a string.")


@dataclass(frozen=True)
class Range:
    """The value is a number within all bounds that are given; a list matches when one of its elements does.

    Numbers are compared as floats, so that a bound is no integer of 2**53 or beyond. A fraction that equals a bound up
    to its last digit, as in ``AnyOf``, is the bound.
    """

    path: PayloadPath
    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None

    def __post_init__(self) -> None:
        for bound in (self.gt, self.gte, self.lt, self.lte):
            if bound is not None and is_beyond_floats(bound):
                raise ValueError(
                    f"A range compares floats, which are not exact from 2**53 on, got the bound {bound}. "
                    "Ask for single integers of that size, or for smaller bounds."
                )

    def as_kept(self) -> "Range":
        """Return the bounds between which a number lies when Qdrant gives it back."""
        return Range(self.path, gt=_most(self.gt), gte=_least(self.gte), lt=_least(self.lt), lte=_most(self.lte))


@dataclass(frozen=True)
class IsEmpty:
    """The value is missing, null or an empty list."""

    path: PayloadPath


@dataclass(frozen=True)
class AllMatch:
    """Every filter matches; with no filters, every page does."""

    filters: tuple["PageFilter", ...]


@dataclass(frozen=True)
class SomeMatch:
    """At least one filter matches; with no filters, no page does."""

    filters: tuple["PageFilter", ...]


@dataclass(frozen=True)
class NoneMatch:
    """No filter matches; so a page whose value is missing passes the negation of an equality."""

    filters: tuple["PageFilter", ...]


@dataclass(frozen=True)
class ElementMatch:
    """The value is a list of objects, and one of them alone passes the whole ``filter``, whose paths begin there."""

    path: PayloadPath
    filter: "PageFilter"


PageFilter: TypeAlias = AnyOf | Range | IsEmpty | AllMatch | SomeMatch | NoneMatch | ElementMatch


class PageStore(Protocol):
    """The promise. A new store is empty; its width D is set by the first page that is added."""

    def add(self, records: Sequence[PageRecord]) -> None:
        """Store pages, replacing those with the same id. When it returns, the pages survive a crash of the process.

        Raises:
            ValueError: when vectors are not (N, D) finite float32 numbers with N > 0 and the D of the store.
            StoreError: when the store is closed or cannot be written.
        """

    def update(self, pages: Sequence[StoredPage]) -> None:
        """Replace the payload of stored pages; their vectors stay. Survives a crash as ``add`` does.

        Raises:
            StoreError: for an id that is not stored, and as ``add``.
        """

    def delete(self, ids: Sequence[str]) -> None:
        """Remove the pages with these ids; unknown ids are no error."""

    def search(self, query: Vectors, top_k: int, page_filter: PageFilter | None = None) -> list[Hit]:
        """Return the ``top_k`` pages with the highest MaxSim, best first, equal scores in the order of their ids.

        ``query`` is (T, D). Fewer hits come back when fewer pages pass the filter.

        Raises:
            ValueError: for a ``top_k`` below 1, a query of another shape, or one that is not finite.
        """

    def fetch(self, ids: Sequence[str]) -> list[StoredPage]:
        """Return the pages with these ids, in no promised order; unknown ids are left out."""

    def pages(self, page_filter: PageFilter | None = None) -> Iterator[StoredPage]:
        """Yield every page that passes the filter, in no promised order."""

    def count(self, page_filter: PageFilter | None = None) -> int:
        """Number of pages that pass the filter."""

    def close(self) -> None:
        """Release the store; closing twice is fine, anything else raises StoreError from then on."""


_NAMESPACE = uuid.UUID("3a1cf4b4-5f0e-4c26-9d0b-3f3c3c6a8d5e")  # any constant will do; it may never change


def point_id(record_id: str) -> uuid.UUID:
    """Return the UUID under which Qdrant stores a record (Qdrant takes no other strings as ids)."""
    return uuid.uuid5(_NAMESPACE, record_id)


def json_path(path: PayloadPath) -> str:
    """Write a path in Qdrant's notation, every step quoted so that dots in a key stay part of it.

    Raises:
        ValueError: for a key with a double quote or a backslash, which Qdrant cannot express.
    """
    for key in path:
        for sign, name in (('"', "double quote"), ("\\", "backslash")):
            if sign in key:
                raise ValueError(f"A filter's key cannot contain a {name}, got {key!r}. Rename the metadata key.")
    return ".".join(f'"{key}"' for key in path)


def is_beyond_floats(number: Scalar) -> bool:
    """Whether this is an integer so large that a float may be another one."""
    return isinstance(number, int) and abs(number) >= _EXACT


def as_kept(number: float) -> tuple[float, float]:
    """Return between which bounds a number lies when Qdrant gives it back: of fractions the last bits may differ."""
    off = 0.0 if math.isinf(number) or float(number).is_integer() else 2 * math.ulp(number)
    return number - off, number + off


def _least(number: float | None) -> float | None:
    return None if number is None else as_kept(number)[0]


def _most(number: float | None) -> float | None:
    return None if number is None else as_kept(number)[1]


def check_vectors(record_id: str, vectors: Vectors, width: int | None) -> None:
    """Check a page's vectors as ``PageStore.add`` promises.

    Raises:
        ValueError: naming the page.
    """
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise ValueError(f"Page {record_id!r} needs vectors of shape (N, D), N and D > 0, got {vectors.shape}.")
    if not np.isfinite(vectors).all():
        raise ValueError(f"Page {record_id!r} has vectors with NaN or infinity; it was not stored.")
    if width is not None and vectors.shape[1] != width:
        raise ValueError(
            f"Page {record_id!r} has vectors of width {vectors.shape[1]}, the store holds width {width}. "
            "One store holds the pages of one model."
        )


def check_query(query: Vectors, top_k: int, width: int) -> None:
    """Check the arguments of ``PageStore.search``.

    Raises:
        ValueError: saying what came and what was wanted.
    """
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}.")
    if query.ndim != 2 or len(query) == 0 or query.shape[1] != width:
        raise ValueError(f"The query must have shape (T, {width}) with T > 0, got {query.shape}.")
    if not np.isfinite(query).all():
        raise ValueError("The query has vectors with NaN or infinity. Load the model in float32 or bfloat16.")


def by_score(hits: list[Hit]) -> list[Hit]:
    """Sort hits best first, equal scores by id."""
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))
