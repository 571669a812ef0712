"""How a benchmark shows where it is, without knowing where it is shown."""

from collections.abc import Iterable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Track(Protocol):
    """Shows progress over items, of which there are `total` if that is known, and gives them back."""

    def __call__(self, items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]: ...


def silently(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """Show nothing."""
    return items
