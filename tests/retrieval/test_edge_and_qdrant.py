"""What each store does in its own way: a folder that survives, a server that others share."""

import json
import math
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from httpx import Headers
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse
from stored_pages import WIDTH, ids, record, vectors

from llama_index_ziprerank.retrieval import edge
from llama_index_ziprerank.retrieval.edge import EdgeStore
from llama_index_ziprerank.retrieval.qdrant import QdrantStore
from llama_index_ziprerank.retrieval.store import AnyOf, PageRecord, Range, StoreError

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning")  # exact=True is for servers


# The folder.


def test_an_edge_store_survives_closing(tmp_path: Path) -> None:
    store = EdgeStore(tmp_path / "store")
    store.add([record(number, n=number) for number in range(5)])
    before = store.search(vectors(0), 5)
    store.close()
    again = EdgeStore(tmp_path / "store")
    assert again.search(vectors(0), 5) == before
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
    store.add([record(1)])
    with pytest.raises(StoreError, match="is open elsewhere .*Qdrant server"):
        EdgeStore(tmp_path / "store")
    store.close()
    EdgeStore(tmp_path / "store").close()


def test_a_copy_of_an_edge_store_is_equal_independent_and_small(tmp_path: Path) -> None:
    store = EdgeStore(tmp_path / "store")
    store.add([record(number) for number in range(5)])
    store.copy_to(tmp_path / "copy")
    store.delete(ids(store))
    copy = EdgeStore(tmp_path / "copy")
    assert (store.count(), copy.count()) == (0, 5)
    assert len(copy.search(vectors(3), 9)) == 5
    used = sum(file.stat().st_blocks * 512 for file in (tmp_path / "copy").rglob("*"))
    assert used < 1_000_000
    store.close()
    copy.close()


def test_a_damaged_edge_store_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "edge_config.json").write_text("{")
    with pytest.raises(StoreError, match="failed"):
        EdgeStore(tmp_path)


def test_many_pages_are_found_and_deleted_in_one_pass(tmp_path: Path) -> None:
    store, names = EdgeStore(tmp_path / "store"), [str(number) for number in range(3000)]
    store.add([record(number, name=name) for number, name in enumerate(names)])
    started = time.monotonic()
    store.delete(ids(store, AnyOf(("name",), tuple(names[1:]))))
    assert ids(store) == ["page 0"]
    assert time.monotonic() - started < 20  # a busy machine; condition by condition it would be minutes
    store.close()


def test_the_log_of_an_edge_store_does_not_come_to_hold_all_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "_CHANGES_A_FLUSH", 16)
    store = EdgeStore(tmp_path / "store")
    for number in range(150):
        store.add([PageRecord(str(number), "d", np.ones((2048, 128), np.float32), {})])  # 1 MB
    used = sum(file.stat().st_blocks * 512 for file in (tmp_path / "store" / "wal").rglob("*"))
    assert used < 120_000_000  # else 190 million
    assert store.count() == 150
    store.close()


def test_an_edge_store_whose_folder_was_moved_is_closed_with_one_error_and_opened_there(tmp_path: Path) -> None:
    store = EdgeStore(tmp_path / "store")
    store.add([record(number) for number in range(3)])
    (tmp_path / "store").rename(tmp_path / "moved")
    with pytest.raises(StoreError, match="The store .*store failed"):
        store.close()
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.count()
    again = EdgeStore(tmp_path / "moved")
    assert again.count() == 3
    again.close()


def test_an_edge_store_stays_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    store = EdgeStore("store")
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.add([record(1)])
    store.copy_to(tmp_path / "copy")
    store.close()
    assert not any((tmp_path / "elsewhere").iterdir())
    for path in (tmp_path / "store", tmp_path / "copy"):
        again = EdgeStore(path)
        assert again.count() == 1
        again.close()


def test_a_copy_of_an_edge_store_whose_folder_was_moved_is_one_clear_error(tmp_path: Path) -> None:
    store = EdgeStore(tmp_path / "store")
    store.add([record(1)])
    (tmp_path / "store").rename(tmp_path / "moved")
    for fails in (lambda: store.copy_to(tmp_path / "copy"), store.close):
        with pytest.raises(StoreError, match="The store .*store failed"):
            fails()


def test_who_asks_while_an_edge_store_is_closed_is_told_that_it_is(tmp_path: Path) -> None:
    said: list[str] = []

    def ask(store: EdgeStore) -> None:
        try:
            while True:
                ids(store)
        except StoreError as error:
            said.append(str(error))

    for number in range(8):
        store = EdgeStore(tmp_path / str(number))
        store.add([record(page) for page in range(300)])
        store.delete(["page 1"])
        threads = [Thread(target=ask, args=(store,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        store.close()
        for thread in threads:
            thread.join()
    assert len(said) == 32
    assert all("is closed. Open it again" in message for message in said), set(said)


# The server.


def test_a_qdrant_store_finds_its_collection_again() -> None:
    client = QdrantClient(":memory:")
    QdrantStore(client=client, collection="pages").add([record(1)])
    again = QdrantStore(client=client, collection="pages")
    assert again.count() == 1
    with pytest.raises(ValueError, match="width 5, the store holds width 4"):
        again.add([PageRecord("x", "d", np.ones((1, 5), np.float32), {})])
    client.close()


def test_a_qdrant_store_that_was_opened_first_sees_what_another_adds_later() -> None:
    client = QdrantClient(":memory:")
    early, other = QdrantStore(client=client), QdrantStore(client=client)
    assert early.count() == 0
    other.add([record(1), record(2, "b")])
    assert early.count() == len(early.search(vectors(0), 5)) == len(early.fetch(["page 1", "page 2"])) == 2
    assert ids(early) == ["page 1", "page 2"]
    early.delete(["page 1"])
    assert ids(other) == ["page 2"]
    early = QdrantStore(client=client, collection="more")
    QdrantStore(client=client, collection="more").add([record(1)])
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
        store.add([record(1)])
    else:
        with pytest.raises(ValueError, match="'page 1' has vectors of width 4, the store holds width 5"):
            store.add([record(1)])
    assert store.count() == (width == WIDTH)
    client.close()


class _Created(BaseHTTPRequestHandler):
    """A server without collections; keeps the body of what is to make one."""

    asked: dict[str, Any]

    def do_GET(self) -> None:
        self._answer({"result": {"exists": False}})

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked[self.path] = body
        self._answer({"result": True if "vectors" in body else {"operation_id": 1, "status": "completed"}})

    def _answer(self, content: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: Any) -> None:
        pass


def test_a_collection_allows_filters_on_metadata_where_the_server_is_strict_by_default() -> None:
    _Created.asked = {}
    server = HTTPServer(("127.0.0.1", 0), _Created)
    thread = Thread(target=server.serve_forever)
    thread.start()
    store = QdrantStore(f"http://127.0.0.1:{server.server_port}", collection="pages")
    store.add([record(1)])
    store.close()
    server.shutdown()
    thread.join()
    server.server_close()
    assert _Created.asked["/collections/pages"]["strict_mode_config"] == {"unindexed_filtering_retrieve": True}


@pytest.mark.parametrize(
    "impossible",
    [
        Range((), gt=math.inf), Range((), gte=math.inf), Range((), lt=-math.inf), Range((), lte=-math.inf),
        Range((), gte=math.inf, lte=math.inf), Range((), gt=0.0, lte=-math.inf),
    ],
)  # fmt: skip
def test_a_bound_that_no_number_passes_is_no_missing_bound_to_a_server(impossible: Range) -> None:
    condition = json.loads(QdrantStore(client=QdrantClient(":memory:")).words.within("n", impossible).model_dump_json())
    assert {name: bound for name, bound in condition["range"].items() if bound is not None} == {
        "gt": sys.float_info.max
    }


def test_a_collection_that_holds_other_data_is_refused() -> None:
    client = QdrantClient(":memory:")
    client.create_collection("other", models.VectorParams(size=4, distance=models.Distance.COSINE))
    with pytest.raises(StoreError, match="The collection 'other' holds other data"):
        QdrantStore(client=client, collection="other")
    client.close()


def test_a_point_that_is_no_page_is_one_clear_error() -> None:
    client = QdrantClient(":memory:")
    store = QdrantStore(client=client, collection="pages")
    store.add([record(1)])
    client.upsert("pages", [models.PointStruct(id=1, vector=[[1.0] * WIDTH], payload={"else": 1})])
    for use in (lambda: ids(store), lambda: store.search(vectors(0), 5)):
        with pytest.raises(StoreError, match="a point with \\['else'\\], not the page of an index"):
            use()
    client.close()


class _CountingClient(QdrantClient):
    """Counts the pages of each request."""

    sent: list[int]

    def upsert(self, collection_name: str, points: Any, **options: Any) -> Any:
        self.sent.append(len(points))
        return super().upsert(collection_name, points, **options)


def test_a_request_holds_one_page_since_a_server_limits_its_size() -> None:
    client = _CountingClient(":memory:")
    client.sent = []
    store = QdrantStore(client=client)
    store.add([record(number) for number in range(3)])
    assert client.sent == [1, 1, 1]
    assert store.count() == 3
    client.close()


class _Silent(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        time.sleep(3)


def test_a_server_that_does_not_answer_in_time_is_one_clear_error() -> None:
    server = HTTPServer(("127.0.0.1", 0), _Silent)
    thread = Thread(target=server.handle_request)
    thread.start()
    with pytest.raises(StoreError, match="failed: timed out"):
        QdrantStore(f"http://127.0.0.1:{server.server_port}", timeout=1)
    thread.join()
    server.server_close()


class _Proxy(BaseHTTPRequestHandler):
    """Stands before a server, and answers in its place."""

    answer: tuple[int, dict[str, str], bytes]

    def do_GET(self) -> None:
        status, headers, body = self.answer
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((429, {"Retry-After": "3"}, b'{"status": {"error": "rate limit"}}'), "failed: rate limit"),
        ((429, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, b"{}"), "failed: Retry-After .* 2026"),
        ((500, {}, b"{}"), "failed: Unexpected Response: 500"),
        ((200, {"Content-Type": "text/html"}, b"<html>Sign in</html>"), "failed: the answer is no JSON"),
        ((200, {}, b""), "failed: the answer is no JSON"),
        ((200, {}, b'{"result": null}'), "failed: .* returned None"),
    ],
    ids=["busy", "busy until", "broken", "page", "nothing", "no result"],
)
def test_an_answer_that_is_none_is_one_clear_error(answer: tuple[int, dict[str, str], bytes], message: str) -> None:
    _Proxy.answer = answer
    server = HTTPServer(("127.0.0.1", 0), _Proxy)
    thread = Thread(target=server.handle_request)
    thread.start()
    with pytest.raises(StoreError, match=message):
        QdrantStore(f"http://127.0.0.1:{server.server_port}")
    thread.join()
    server.server_close()


@pytest.mark.filterwarnings("ignore:Unable to close grpc_channel:RuntimeWarning")
def test_a_client_that_speaks_grpc_has_one_clear_error_too() -> None:
    client = QdrantClient(grpc_port=1, prefer_grpc=True, check_compatibility=False, timeout=5)
    with pytest.raises(StoreError, match="The store of collection 'ziprerank' failed"):
        QdrantStore(client=client)
    client.close()


def test_a_server_that_cannot_be_reached_is_one_clear_error() -> None:
    with pytest.raises(StoreError, match="at http://127.0.0.1:1 failed"):
        QdrantStore("http://127.0.0.1:1")


def test_a_qdrant_store_takes_a_url_or_a_client() -> None:
    with pytest.raises(ValueError, match="either url=... or client=..."):
        QdrantStore()
