"""One contract for both stores: what is added is found exactly as a loop over all pages would find it."""

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from httpx import Headers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from llama_index_ziprerank.retrieval.edge import EdgeStore
from llama_index_ziprerank.retrieval.matching import passes
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

WIDTH = 4
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


def _vectors(seed: int, rows: int = 3) -> Vectors:
    return np.random.default_rng(seed).normal(size=(rows, WIDTH)).astype(np.float32)


def _record(number: int, document: str = "a", **payload: Any) -> PageRecord:
    return PageRecord(f"page {number}", document, _vectors(number), payload)


def _maxsim(query: Vectors, page: Vectors) -> float:
    return float((query.astype(np.float64) @ page.astype(np.float64).T).max(axis=1).sum())


def _ids(store: PageStore, page_filter: PageFilter | None = None) -> list[str]:
    return sorted(page.id for page in store.pages(page_filter))


def test_a_new_store_is_empty_and_answers_everything(new_store: NewStore) -> None:
    store = new_store()
    assert store.search(_vectors(0), 5) == []
    assert store.count() == 0
    assert list(store.pages()) == []
    store.delete(["nobody"])
    store.add([])
    assert store.count() == 0


def test_every_page_is_scored_by_maxsim_and_comes_back_with_its_payload(new_store: NewStore) -> None:
    store, query = new_store(), _vectors(99, rows=2)
    records = [_record(n, f"document {n}", name=f"ü {n}", nested={"list": [1, None, {"deep": True}]}) for n in range(9)]
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
    store.add([PageRecord(name, "d", _vectors(1), {}) for name in ("c", "a", "b")])
    assert [hit.id for hit in store.search(_vectors(2), 3)] == ["a", "b", "c"]


def test_adding_an_id_again_replaces_its_page(new_store: NewStore) -> None:
    store = new_store()
    store.add([_record(1, "old", kind="old"), _record(2)])
    store.add([PageRecord("page 1", "new", _vectors(7), {"kind": "new"})])
    assert store.count() == 2
    hit = next(hit for hit in store.search(_vectors(3), 2) if hit.id == "page 1")
    assert (hit.document_id, hit.payload) == ("new", {"kind": "new"})
    assert hit.score == pytest.approx(_maxsim(_vectors(3), _vectors(7)), rel=1e-5)
    store.delete(["old"])
    assert store.count() == 2


def test_updating_a_page_changes_what_it_carries_and_not_its_vectors(new_store: NewStore) -> None:
    store, query = new_store(), _vectors(3)
    store.update([])
    store.add([_record(1, kind="old", more=1), _record(2)])
    before = {hit.id: hit.score for hit in store.search(query, 2)}
    store.update([StoredPage("page 1", "b", {"kind": "new"})])
    assert {hit.id: hit.score for hit in store.search(query, 2)} == before
    [page] = store.pages(AnyOf(("kind",), ("new",)))
    assert page == StoredPage("page 1", "b", {"kind": "new"})
    assert store.count(AnyOf(("kind",), ("old",))) == 0
    store.delete(["b"])
    assert _ids(store) == ["page 2"]


def test_deleting_documents_removes_all_their_pages_and_no_other(new_store: NewStore) -> None:
    store = new_store()
    store.add([_record(number, "abc"[number % 3]) for number in range(9)])
    store.delete(["a", "c", "unknown"])
    assert _ids(store) == ["page 1", "page 4", "page 7"]
    assert {hit.document_id for hit in store.search(_vectors(0), 9)} == {"b"}
    store.delete([])
    assert store.count() == 3


def test_pages_are_fetched_by_their_ids(new_store: NewStore) -> None:
    store = new_store()
    assert store.fetch(["page 1"]) == []
    store.add([_record(number, f"document {number}", n=number) for number in range(3)])
    found = sorted(store.fetch(["page 2", "page 0", "unknown"]), key=lambda page: page.id)
    assert [(page.id, page.document_id, page.payload) for page in found] == [
        ("page 0", "document 0", {"n": 0}),
        ("page 2", "document 2", {"n": 2}),
    ]


def test_more_pages_than_one_listing_holds_are_all_listed(new_store: NewStore) -> None:
    store = new_store()
    store.add([_record(number, size="big" if number >= 300 else "small") for number in range(601)])
    assert len(_ids(store)) == len(set(_ids(store))) == 601
    assert len(_ids(store, AnyOf(("size",), ("big",)))) == store.count(AnyOf(("size",), ("big",))) == 301


def test_many_deletions_leave_the_search_exact(new_store: NewStore) -> None:
    store, query = new_store(), _vectors(0)
    store.add([_record(number, "even" if number % 2 == 0 else "odd") for number in range(2400)])
    store.delete(["even"])
    scores = {f"page {number}": _maxsim(query, _vectors(number)) for number in range(1, 2400, 2)}
    best = sorted(scores, key=lambda name: -scores[name])[:10]
    assert [hit.id for hit in store.search(query, 10)] == best


@pytest.mark.parametrize(
    "vectors", [np.zeros((0, WIDTH)), np.zeros((2, 0)), np.zeros(WIDTH), np.full((2, WIDTH), np.nan), np.ones((2, 5))]
)
def test_bad_vectors_are_refused_by_the_name_of_their_page_and_nothing_is_stored(
    new_store: NewStore, vectors: Vectors
) -> None:
    store = new_store()
    store.add([_record(1)])
    with pytest.raises(ValueError, match="Page 'bad' "):
        store.add([_record(2), PageRecord("bad", "d", vectors.astype(np.float32), {})])
    assert store.count() == 1


@pytest.mark.parametrize(("query", "top_k"), [(np.ones((1, 5)), 1), (np.ones((0, WIDTH)), 1), (np.ones((1, WIDTH)), 0)])
def test_a_query_of_another_shape_is_refused(new_store: NewStore, query: Vectors, top_k: int) -> None:
    store = new_store()
    store.add([_record(1)])
    with pytest.raises(ValueError, match=r"shape \(T, 4\)|top_k must be at least 1"):
        store.search(query.astype(np.float32), top_k)


def test_a_closed_store_says_so(new_store: NewStore) -> None:
    store = new_store()
    store.add([_record(1)])
    store.close()
    store.close()
    for use in (
        store.count,
        lambda: store.search(_vectors(0), 1),
        lambda: store.add([_record(2)]),
        lambda: _ids(store),
    ):
        with pytest.raises(StoreError, match="is closed"):
            use()


def test_concurrent_searches_give_the_serial_answers(new_store: NewStore) -> None:
    store = new_store()
    store.add([_record(number) for number in range(50)])
    queries = [_vectors(number) for number in range(64)]
    serial = [store.search(query, 5) for query in queries]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda query: store.search(query, 5), queries)) == serial


def test_a_boolean_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match="got a boolean"):
        AnyOf(("a",), (True,))


def test_a_key_with_a_double_quote_is_refused(new_store: NewStore) -> None:
    store = new_store()
    store.add([_record(1)])
    with pytest.raises(ValueError, match="cannot contain a double quote"):
        store.count(IsEmpty(('a"b',)))


def test_a_key_with_a_backslash_is_refused(new_store: NewStore) -> None:
    store = new_store()
    store.add([_record(1)])
    with pytest.raises(ValueError, match="cannot contain a backslash"):
        store.count(IsEmpty(("a\\b",)))


@pytest.mark.parametrize("size", [2**53, -(2**53), 2**63 - 2])
def test_neighbouring_integers_are_told_apart_whatever_their_size(new_store: NewStore, size: int) -> None:
    store = new_store()
    store.add([_record(0, big=size), _record(1, big=size + 1)])
    assert _ids(store, AnyOf(("big",), (size,))) == ["page 0"]
    assert _ids(store, AnyOf(("big",), (size + 1,))) == ["page 1"]


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
    store.add([_record(0, copies=[{"t": "A", "x": 1}, {"t": "B", "x": 2}]), _record(1, copies=[{}]), _record(2)])
    a, two = AnyOf(("t",), ("A",)), AnyOf(("x",), (2,))
    assert _ids(store, ElementMatch(("copies",), AllMatch((a, two)))) == []
    assert _ids(store, ElementMatch(("copies",), NoneMatch((a,)))) == ["page 0", "page 1"]
    assert _ids(store, ElementMatch(("copies",), AllMatch(()))) == ["page 0", "page 1"]


# Filters and search against a plain loop over all pages.

_KEYS = ("plain", "with.dot", "with space", "[0]")
_WANTED = st.one_of(
    st.integers(-3, 3), st.sampled_from([-1.0, 0.5, 2.0, 1e9]), st.sampled_from(["", "a", "b", "3", "ü"])
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
    assert _ids(store, page_filter) == sorted(passing)
    assert store.count(page_filter) == len(passing)
    scores = sorted((_maxsim(query, record.vectors) for record in passing.values()), reverse=True)[:top_k]
    np.testing.assert_allclose([hit.score for hit in hits], scores, atol=1e-4)
    for hit in hits:
        assert hit.score == pytest.approx(_maxsim(query, passing[hit.id].vectors), abs=1e-4)
    store.close()


# The folder.


def test_an_edge_store_survives_closing(tmp_path: Path) -> None:
    store = EdgeStore(tmp_path / "store")
    store.add([_record(number, n=number) for number in range(5)])
    before = store.search(_vectors(0), 5)
    store.close()
    again = EdgeStore(tmp_path / "store")
    assert again.search(_vectors(0), 5) == before
    with pytest.raises(ValueError, match="width 5, the store holds width 4"):
        again.add([PageRecord("x", "d", np.ones((1, 5), np.float32), {})])
    again.close()


def test_an_edge_store_survives_a_killed_process(tmp_path: Path) -> None:
    code = (
        "import os, sys, numpy as np\n"
        "from llama_index_ziprerank.retrieval.edge import EdgeStore\n"
        "from llama_index_ziprerank.retrieval.store import PageRecord\n"
        "store = EdgeStore(sys.argv[1])\n"
        "store.add([PageRecord('kept', 'd', np.ones((2, 4), np.float32), {'a': 1})])\n"
        "os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "store")], env=os.environ, check=False)
    assert done.returncode == 9
    store = EdgeStore(tmp_path / "store")
    assert [page.payload for page in store.pages()] == [{"a": 1}]
    store.close()


def test_a_second_opening_of_an_edge_store_is_one_clear_error(tmp_path: Path) -> None:
    store = EdgeStore(tmp_path / "store")
    store.add([_record(1)])
    with pytest.raises(StoreError, match="is open elsewhere .*Qdrant server"):
        EdgeStore(tmp_path / "store")
    store.close()
    EdgeStore(tmp_path / "store").close()


def test_a_copy_of_an_edge_store_is_equal_independent_and_small(tmp_path: Path) -> None:
    store = EdgeStore(tmp_path / "store")
    store.add([_record(number) for number in range(5)])
    store.copy_to(tmp_path / "copy")
    store.delete(["a"])
    copy = EdgeStore(tmp_path / "copy")
    assert (store.count(), copy.count()) == (0, 5)
    assert len(copy.search(_vectors(3), 9)) == 5
    used = sum(file.stat().st_blocks * 512 for file in (tmp_path / "copy").rglob("*"))
    assert used < 1_000_000
    store.close()
    copy.close()


def test_a_damaged_edge_store_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "edge_config.json").write_text("{")
    with pytest.raises(StoreError, match="failed"):
        EdgeStore(tmp_path)


# The server.


def test_a_qdrant_store_finds_its_collection_again() -> None:
    client = QdrantClient(":memory:")
    QdrantStore(client=client, collection="pages").add([_record(1)])
    again = QdrantStore(client=client, collection="pages")
    assert again.count() == 1
    with pytest.raises(ValueError, match="width 5, the store holds width 4"):
        again.add([PageRecord("x", "d", np.ones((1, 5), np.float32), {})])
    client.close()


def test_a_qdrant_store_that_was_opened_first_sees_what_another_adds_later() -> None:
    client = QdrantClient(":memory:")
    early, other = QdrantStore(client=client), QdrantStore(client=client)
    assert early.count() == 0
    other.add([_record(1), _record(2, "b")])
    assert early.count() == len(early.search(_vectors(0), 5)) == len(early.fetch(["page 1", "page 2"])) == 2
    assert _ids(early) == ["page 1", "page 2"]
    early.delete(["a"])
    assert _ids(other) == ["page 2"]
    early = QdrantStore(client=client, collection="more")
    QdrantStore(client=client, collection="more").add([_record(1)])
    with pytest.raises(ValueError, match="width 5, the store holds width 4"):
        early.add([PageRecord("x", "d", np.ones((1, 5), np.float32), {})])
    client.close()


class _OvertakenClient(QdrantClient):
    """Somebody else makes the collection, of this width, between the look and the creation."""

    width = WIDTH

    def create_collection(self, collection_name: str, **options: Any) -> bool:
        vectors = options["vectors_config"].model_copy(update={"size": self.width})
        super().create_collection(collection_name, vectors_config=vectors)
        raise UnexpectedResponse(409, "Conflict", b"already exists", Headers())


@pytest.mark.parametrize("width", [WIDTH, 5])
def test_a_collection_that_another_process_makes_at_the_same_time_is_used_if_it_fits(width: int) -> None:
    client = _OvertakenClient(":memory:")
    client.width = width
    store = QdrantStore(client=client)
    if width == WIDTH:
        store.add([_record(1)])
    else:
        with pytest.raises(ValueError, match="'page 1' has vectors of width 4, the store holds width 5"):
            store.add([_record(1)])
    assert store.count() == (width == WIDTH)
    client.close()


def test_a_collection_that_holds_other_data_is_refused() -> None:
    client = QdrantClient(":memory:")
    client.create_collection("other", models.VectorParams(size=4, distance=models.Distance.COSINE))
    with pytest.raises(StoreError, match="The collection 'other' holds other data"):
        QdrantStore(client=client, collection="other")
    client.close()


def test_a_point_that_is_no_page_is_one_clear_error() -> None:
    client = QdrantClient(":memory:")
    store = QdrantStore(client=client, collection="pages")
    store.add([_record(1)])
    client.upsert("pages", [models.PointStruct(id=1, vector=[[1.0] * WIDTH], payload={"else": 1})])
    for use in (lambda: _ids(store), lambda: store.search(_vectors(0), 5)):
        with pytest.raises(StoreError, match="a point with \\['else'\\], not the page of an index"):
            use()
    client.close()


def test_a_server_that_cannot_be_reached_is_one_clear_error() -> None:
    with pytest.raises(StoreError, match="at http://127.0.0.1:1 failed"):
        QdrantStore("http://127.0.0.1:1")


def test_a_qdrant_store_takes_a_url_or_a_client() -> None:
    with pytest.raises(ValueError, match="either url=... or client=..."):
        QdrantStore()
