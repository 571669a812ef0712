"""What a ``PageFilter`` means, in plain Python: both stores agree with it, and a copy of a page is chosen by it.

Also what a store may give back for a value, since Qdrant does not keep the last digit of every fraction.
"""

from dataclasses import replace
from typing import Any

from llama_index_ziprerank.retrieval.store import (
    AllMatch,
    AnyOf,
    ElementMatch,
    IsEmpty,
    NoneMatch,
    PageFilter,
    PayloadPath,
    Range,
    Scalar,
    SomeMatch,
    as_kept,
    is_beyond_floats,
)


def passes(content: dict[str, Any], page_filter: PageFilter) -> bool:
    """Whether a payload, or the part of one where the filter's paths begin, passes the filter."""
    if isinstance(page_filter, AllMatch):
        return all(passes(content, part) for part in page_filter.filters)
    if isinstance(page_filter, SomeMatch):
        return any(passes(content, part) for part in page_filter.filters)
    if isinstance(page_filter, NoneMatch):
        return not any(passes(content, part) for part in page_filter.filters)
    value = _value(content, page_filter.path)
    values = value if isinstance(value, list) else [value]
    if isinstance(page_filter, IsEmpty):
        return value is None or value == []
    if isinstance(page_filter, AnyOf):
        return any(_equals(one, wanted) for one in values for wanted in page_filter.values)
    if isinstance(page_filter, ElementMatch):
        return isinstance(value, list) and any(
            isinstance(one, dict) and passes(one, page_filter.filter) for one in value
        )
    bounds = page_filter.as_kept()
    return any(_is_number(one) and _is_within(float(one), bounds) for one in values)


def is_kept_as(value: Any, kept: Any) -> bool:
    """Whether a store may give ``kept`` back for the JSON value ``value``."""
    if isinstance(value, dict) and isinstance(kept, dict):
        return value.keys() == kept.keys() and all(is_kept_as(value[key], kept[key]) for key in value)
    if isinstance(value, list) and isinstance(kept, list):
        return len(value) == len(kept) and all(map(is_kept_as, value, kept))
    if isinstance(kept, float) and _is_number(value):
        least, most = as_kept(value)
        return least <= kept <= most
    return _is_number(value) == _is_number(kept) and bool(value == kept)


def below(step: str, page_filter: PageFilter) -> PageFilter:
    """Return a filter that asks the value at ``step`` what ``page_filter`` asks the payload."""
    if isinstance(page_filter, AllMatch | SomeMatch | NoneMatch):
        return replace(page_filter, filters=tuple(below(step, part) for part in page_filter.filters))
    return replace(page_filter, path=(step, *page_filter.path))


def _value(content: Any, path: PayloadPath) -> Any:
    for step in path:
        content = content.get(step) if isinstance(content, dict) else None
    return content


def _equals(value: Any, wanted: Scalar) -> bool:
    if isinstance(wanted, str) or not _is_number(value):
        return isinstance(value, str) and value == wanted
    if is_beyond_floats(wanted):
        return isinstance(value, int) and value == wanted
    least, most = as_kept(wanted)
    return least <= float(value) <= most


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_within(number: float, bounds: Range) -> bool:
    return (
        (bounds.gt is None or number > bounds.gt)
        and (bounds.gte is None or number >= bounds.gte)
        and (bounds.lt is None or number < bounds.lt)
        and (bounds.lte is None or number <= bounds.lte)
    )
