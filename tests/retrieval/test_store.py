"""One contract for both stores: what is added is found exactly as a loop over all pages would find it."""

import math
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from qdrant_client import QdrantClient
from stored_pages import WIDTH, ids, record, vectors

from llama_index_ziprerank.retrieval.edge import EdgeStore
from llama_index_ziprerank.retrieval.matching import is_kept_as, passes
from llama_index_ziprerank.retrieval.qdrant import QdrantStore
from llama_index_ziprerank.retrieval.store import (
    AllMatch,
    AnyOf,
    ElementMatch,
    IsEmpty,
    NoneMatch,
    PageFilter,
    PageRecord,
    PageStore,
    Range,
    SomeMatch,
    StoredPage,
    StoreError,
    Vectors,
)

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning")  # exact=True is for servers

NewStore = Callable[[], PageStore]


@pytest.fixture(params=["edge", "qdrant"])
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NewStore]:
    """Make fresh stores, closed at the end."""
    client = QdrantClient(":memory:")
    made: list[PageStore] = []

    def make() -> PageStore:
        name = uuid.uuid4().hex
        made.append(
            EdgeStore(tmp_path / name) if request.param == "edge" else QdrantStore(client=client, collection=name)
        )
        return made[-1]

    yield make
    for store in made:
        store.close()
    client.close()


def _maxsim(query: Vectors, page: Vectors) -> float:
    return float((query.astype(np.float64) @ page.astype(np.float64).T).max(axis=1).sum())


def test_a_new_store_is_empty_and_answers_everything(new_store: NewStore) -> None:
    store = new_store()
    assert store.search(vectors(0), 5) == []
    assert store.count() == 0
    assert list(store.pages()) == []
    store.delete(["nobody"])
    store.add([])
    assert store.count() == 0


def test_every_page_is_scored_by_maxsim_and_comes_back_with_its_payload(new_store: NewStore) -> None:
    store, query = new_store(), vectors(99, rows=2)
    records = [record(n, f"document {n}", name=f"ü {n}", nested={"list": [1, None, {"deep": True}]}) for n in range(9)]
    store.add(records)
    hits = store.search(query, 20)
    expected = sorted(records, key=lambda record: -_maxsim(query, record.vectors))
    assert [hit.id for hit in hits] == [record.id for record in expected]
    assert [hit.payload for hit in hits] == [record.payload for record in expected]
    assert [hit.document_id for hit in hits] == [record.document_id for record in expected]
    np.testing.assert_allclose([hit.score for hit in hits], [_maxsim(query, r.vectors) for r in expected], rtol=1e-5)
    assert store.search(query, 3) == hits[:3]


def test_equal_scores_come_in_the_order_of_their_ids(new_store: NewStore) -> None:
    store = new_store()
    store.add([PageRecord(name, "d", vectors(1), {}) for name in ("c", "a", "b")])
    assert [hit.id for hit in store.search(vectors(2), 3)] == ["a", "b", "c"]


def test_adding_an_id_again_replaces_its_page(new_store: NewStore) -> None:
    store = new_store()
    store.add([record(1, "old", kind="old"), record(2)])
    store.add([PageRecord("page 1", "new", vectors(7), {"kind": "new"})])
    assert store.count() == 2
    hit = next(hit for hit in store.search(vectors(3), 2) if hit.id == "page 1")
    assert (hit.document_id, hit.payload) == ("new", {"kind": "new"})
    assert hit.score == pytest.approx(_maxsim(vectors(3), vectors(7)), rel=1e-5)


def test_updating_a_page_changes_what_it_carries_and_not_its_vectors(new_store: NewStore) -> None:
    store, query = new_store(), vectors(3)
    store.update([])
    store.add([record(1, kind="old", more=1), record(2)])
    before = {hit.id: hit.score for hit in store.search(query, 2)}
    store.update([StoredPage("page 1", "b", {"kind": "new"})])
    assert {hit.id: hit.score for hit in store.search(query, 2)} == before
    [page] = store.pages(AnyOf(("kind",), ("new",)))
    assert page == StoredPage("page 1", "b", {"kind": "new"})
    assert store.count(AnyOf(("kind",), ("old",))) == 0


def test_deleting_pages_removes_them_and_no_other_of_their_document(new_store: NewStore) -> None:
    store = new_store()
    store.add([record(number) for number in range(4)])
    store.delete(["page 0", "page 2", "unknown", "a"])
    assert ids(store) == ["page 1", "page 3"]
    assert {hit.id for hit in store.search(vectors(0), 9)} == {"page 1", "page 3"}
    store.delete([])
    assert store.count() == 2


def test_pages_are_fetched_by_their_ids(new_store: NewStore) -> None:
    store = new_store()
    assert store.fetch(["page 1"]) == []
    store.add([record(number, f"document {number}", n=number) for number in range(3)])
    found = sorted(store.fetch(["page 2", "page 0", "unknown"]), key=lambda page: page.id)
    assert [(page.id, page.document_id, page.payload) for page in found] == [
        ("page 0", "document 0", {"n": 0}),
        ("page 2", "document 2", {"n": 2}),
    ]


def test_more_pages_than_one_listing_holds_are_all_listed(new_store: NewStore) -> None:
    store = new_store()
    store.add([record(number, size="big" if number >= 300 else "small") for number in range(601)])
    assert len(ids(store)) == len(set(ids(store))) == 601
    assert len(ids(store, AnyOf(("size",), ("big",)))) == store.count(AnyOf(("size",), ("big",))) == 301


def test_many_deletions_leave_the_search_exact(new_store: NewStore) -> None:
    store, query = new_store(), vectors(0)
    store.add([record(number) for number in range(2400)])
    store.delete([f"page {number}" for number in range(0, 2400, 2)])
    scores = {f"page {number}": _maxsim(query, vectors(number)) for number in range(1, 2400, 2)}
    best = sorted(scores, key=lambda name: -scores[name])[:10]
    assert [hit.id for hit in store.search(query, 10)] == best


@pytest.mark.parametrize(
    "vectors", [np.zeros((0, WIDTH)), np.zeros((2, 0)), np.zeros(WIDTH), np.full((2, WIDTH), np.nan), np.ones((2, 5))]
)
def test_bad_vectors_are_refused_by_the_name_of_their_page_and_nothing_is_stored(
    new_store: NewStore, vectors: Vectors
) -> None:
    store = new_store()
    store.add([record(1)])
    with pytest.raises(ValueError, match="Page 'bad' "):
        store.add([record(2), PageRecord("bad", "d", vectors.astype(np.float32), {})])
    assert store.count() == 1


@pytest.mark.parametrize(("query", "top_k"), [(np.ones((1, 5)), 1), (np.ones((0, WIDTH)), 1), (np.ones((1, WIDTH)), 0)])
def test_a_query_of_another_shape_is_refused(new_store: NewStore, query: Vectors, top_k: int) -> None:
    store = new_store()
    store.add([record(1)])
    with pytest.raises(ValueError, match=r"shape \(T, 4\)|top_k must be at least 1"):
        store.search(query.astype(np.float32), top_k)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_query_that_is_not_finite_is_refused(new_store: NewStore, value: float) -> None:
    store = new_store()
    store.add([record(1)])
    with pytest.raises(ValueError, match="query has vectors with NaN or infinity"):
        store.search(np.full((1, WIDTH), value, np.float32), 1)


def test_a_closed_store_says_so(new_store: NewStore) -> None:
    store = new_store()
    store.add([record(1)])
    store.close()
    store.close()
    for use in (
        store.count,
        lambda: store.search(vectors(0), 1),
        lambda: store.add([record(2)]),
        lambda: ids(store),
        lambda: store.fetch([]),
    ):
        with pytest.raises(StoreError, match="is closed"):
            use()


def test_a_payload_too_deep_to_be_read_again_is_refused_and_spoils_nothing(new_store: NewStore) -> None:
    store = new_store()
    store.add([record(1)])
    deep: dict[str, Any] = {}
    for _ in range(150):
        deep = {"deeper": [deep]}
    with pytest.raises(StoreError, match="'deep' has metadata that are nested too deep"):
        store.add([PageRecord("deep", "deep", vectors(3), deep)])
    [page] = store.pages()
    with pytest.raises(StoreError, match="nested too deep"):
        store.update([replace(page, payload=deep)])
    assert list(store.pages()) == [page]
    assert [hit.id for hit in store.search(vectors(0), 5)] == [page.id]


def test_concurrent_searches_give_the_serial_answers(new_store: NewStore) -> None:
    store = new_store()
    store.add([record(number) for number in range(50)])
    queries = [vectors(number) for number in range(64)]
    serial = [store.search(query, 5) for query in queries]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda query: store.search(query, 5), queries)) == serial


def test_a_boolean_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match="got a boolean"):
        AnyOf(("a",), (True,))


def test_a_key_with_a_double_quote_is_refused(new_store: NewStore) -> None:
    store = new_store()
    store.add([record(1)])
    with pytest.raises(ValueError, match="cannot contain a double quote"):
        store.count(IsEmpty(('a"b',)))


def test_a_key_with_a_backslash_is_refused(new_store: NewStore) -> None:
    store = new_store()
    store.add([record(1)])
    with pytest.raises(ValueError, match="cannot contain a backslash"):
        store.count(IsEmpty(("a\\b",)))


@pytest.mark.parametrize("time", [1700000000.4254441, 1700000000.5444763, 9.385958677423489e-12, -0.1 - 0.2])
def test_a_fraction_is_found_though_a_store_may_keep_it_a_bit_less_exactly(new_store: NewStore, time: float) -> None:
    store = new_store()
    store.add([record(1, time=time), record(2, time=time * (1 + 1e-14))])
    assert ids(store, AnyOf(("time",), (time,))) == ["page 1"]


@pytest.mark.parametrize("time", [1700000000.4254441, 1700000000.5444763, 123456789.123456789])
def test_a_fraction_lies_within_its_own_bounds_though_a_store_may_keep_it_a_bit_less_exactly(
    new_store: NewStore, time: float
) -> None:
    store, path = new_store(), ("time",)
    store.add([record(1, time=time)])
    bounds = [Range(path, gte=time), Range(path, lte=time), Range(path, gt=time), Range(path, lt=time)]
    assert [ids(store, one) for one in bounds] == [["page 1"], ["page 1"], [], []]
    assert [passes({"time": time}, one) for one in bounds] == [True, True, False, False]
    assert ids(store, Range(path, gt=-math.inf, lt=math.inf)) == ["page 1"]


def test_what_a_store_may_give_back_is_told_from_other_values(new_store: NewStore) -> None:
    values = [None, True, 1, 3.0, "1", 1700000000.4254441, 2**60, 2**60 + 1, [], [1, [0.1 + 0.2]], {}, {"a": 1 / 3}]
    store = new_store()
    store.add([record(1, values=values)])
    [page] = store.fetch(["page 1"])
    for place, value in enumerate(values):
        matching = [is_kept_as(value, kept) for kept in page.payload["values"]]
        assert matching == [other == place for other in range(len(values))]


@pytest.mark.parametrize("size", [2**53, -(2**53), 2**63 - 2])
def test_neighbouring_integers_are_told_apart_whatever_their_size(new_store: NewStore, size: int) -> None:
    store = new_store()
    store.add([record(0, big=size), record(1, big=size + 1)])
    assert ids(store, AnyOf(("big",), (size,))) == ["page 0"]
    assert ids(store, AnyOf(("big",), (size + 1,))) == ["page 1"]


@pytest.mark.parametrize("size", [2**63, -(2**63) - 1])
def test_an_integer_that_no_store_holds_cannot_be_asked_for(size: int) -> None:
    with pytest.raises(ValueError, match="integers of 64 bits.*Store it as a string"):
        AnyOf(("big",), (size,))


def test_a_bound_that_is_no_exact_float_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not exact from 2\*\*53 on, got the bound 9007199254740992"):
        Range(("big",), gt=2**53)
    Range(("big",), gt=2**53 - 1, lt=1e300)


def test_one_element_must_pass_a_whole_filter(new_store: NewStore) -> None:
    store = new_store()
    store.add([record(0, copies=[{"t": "A", "x": 1}, {"t": "B", "x": 2}]), record(1, copies=[{}]), record(2)])
    a, two = AnyOf(("t",), ("A",)), AnyOf(("x",), (2,))
    assert ids(store, ElementMatch(("copies",), AllMatch((a, two)))) == []
    assert ids(store, ElementMatch(("copies",), NoneMatch((a,)))) == ["page 0", "page 1"]
    assert ids(store, ElementMatch(("copies",), AllMatch(()))) == ["page 0", "page 1"]


# Filters and search against a plain loop over all pages.

_KEYS = ("plain", "with.dot", "with space", "[0]")
_WANTED = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([-1.0, 0.5, 2.0, 1e9, 1700000000.4254441]),
    st.sampled_from(["", "a", "b", "3", "ü"]),
)
_SCALARS = st.one_of(st.booleans(), _WANTED)
_PAYLOADS = st.dictionaries(st.sampled_from(_KEYS), st.one_of(st.none(), _SCALARS, st.lists(_SCALARS, max_size=3)))
_PATHS = st.sampled_from(_KEYS).map(lambda key: ("metadata", key))
_BOUNDS = st.one_of(st.none(), st.sampled_from([-2.0, 0.0, 0.5, 2.0]))
_FILTERS: st.SearchStrategy[PageFilter] = st.recursive(
    st.one_of(
        st.builds(AnyOf, _PATHS, st.lists(_WANTED, max_size=3).map(tuple)),
        st.builds(Range, _PATHS, _BOUNDS, _BOUNDS, _BOUNDS, _BOUNDS).filter(
            lambda f: any(bound is not None for bound in (f.gt, f.gte, f.lt, f.lte))
        ),
        st.builds(IsEmpty, _PATHS),
    ),
    lambda inner: st.one_of(
        st.builds(ElementMatch, st.just(("copies",)), inner),
        *(st.builds(kind, st.lists(inner, max_size=3).map(tuple)) for kind in (AllMatch, SomeMatch, NoneMatch)),
    ),
    max_leaves=5,
)


_PAGE_VECTORS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 3), st.just(WIDTH)), elements=st.floats(-2, 2, width=32, allow_subnormal=False)
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pages=st.lists(st.tuples(_PAGE_VECTORS, _PAYLOADS, st.lists(_PAYLOADS, max_size=2)), min_size=1, max_size=8),
    query=_PAGE_VECTORS,
    top_k=st.integers(1, 10),
    page_filter=st.one_of(st.none(), _FILTERS),
)
def test_a_filtered_search_is_a_loop_over_all_pages(
    new_store: NewStore,
    pages: list[tuple[Vectors, dict[str, Any], list[dict[str, Any]]]],
    query: Vectors,
    top_k: int,
    page_filter: PageFilter | None,
) -> None:
    store = new_store()
    records = [
        PageRecord(str(number), "d", vectors, {"metadata": metadata, "copies": [{"metadata": c} for c in copies]})
        for number, (vectors, metadata, copies) in enumerate(pages)
    ]
    store.add(records)
    passing = {r.id: r for r in records if page_filter is None or passes(r.payload, page_filter)}
    hits = store.search(query, top_k, page_filter)
    assert ids(store, page_filter) == sorted(passing)
    assert store.count(page_filter) == len(passing)
    scores = sorted((_maxsim(query, record.vectors) for record in passing.values()), reverse=True)[:top_k]
    np.testing.assert_allclose([hit.score for hit in hits], scores, atol=1e-4)
    for hit in hits:
        assert hit.score == pytest.approx(_maxsim(query, passing[hit.id].vectors), abs=1e-4)
    store.close()
