"""An image behind a URL: refused unless asked for, and then only from outside, in time, and within a size."""

import ipaddress
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.schema import ImageNode
from PIL import Image

from llama_index_ziprerank.nodes import NodeImageError, node_image
from llama_index_ziprerank.pages.images import encode_png
from llama_index_ziprerank.pages.page import PageError
from llama_index_ziprerank.pages.remote import RemoteImages, is_public

PNG = encode_png(Image.effect_noise((64, 48), 80).convert("RGB"))
OWN_NETWORK = ["unshare", "--map-root-user", "--net"]

Answer = Callable[[BaseHTTPRequestHandler], None]


def _send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Type": "image/png", **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def _drip(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    for _ in range(100):
        handler.wfile.write(b"X")
        time.sleep(0.05)


def _endless(handler: BaseHTTPRequestHandler) -> None:
    _send(handler, PNG)
    for _ in range(1000):
        handler.wfile.write(bytes(100_000))


ANSWERS: dict[str, Answer] = {
    "/good": lambda h: _send(h, PNG),
    "/hop": lambda h: _send(h, b"", 302, Location="/good"),
    "/ü space": lambda h: _send(h, b"", 302, Location="/g%6Fod?caf\u00c3\u00a9 au lait"),
    "/g%6Fod?caf%C3%A9%20au%20lait": lambda h: _send(h, PNG),
    "/malformed": lambda h: _send(h, b"", 302, Location="http://[::1"),
    "/missing": lambda h: _send(h, b"", 404),
    "/page": lambda h: _send(h, b"<html>", Content_Type="text/html"),
    "/lies": lambda h: _send(h, b"<html>"),
    "/zipped": lambda h: _send(h, PNG, Content_Encoding="gzip"),
    "/huge": lambda h: _send(h, PNG, Content_Length="99999999999"),
    "/endless": _endless,
    "/drip": _drip,
    "/silent": lambda h: time.sleep(2),
    "/round": lambda h: _send(h, b"", 302, Location="/round"),
    "/file": lambda h: _send(h, b"", 302, Location="file:///etc/passwd"),
}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        try:
            ANSWERS[self.path if self.path in ANSWERS else unquote(self.path)](self)
        except OSError:
            pass  # the client has left

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()
    http.server_close()


HERE = RemoteImages(max_bytes=1_000_000, timeout=0.8, private_addresses=True)


@pytest.mark.parametrize("path", ["/good", "/hop", "/ü space"])
def test_an_image_is_fetched_when_asked_for(server: str, path: str) -> None:
    assert RemoteImages(private_addresses=True).fetch(server + path) == PNG
    node = ImageNode(image_url=server + path)
    assert node_image(node, remote=RemoteImages(private_addresses=True)) is not None
    with pytest.raises(NodeImageError, match="allow_remote_images=True"):
        node_image(node)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing", "answered 404"),
        ("/page", "'text/html', wanted is image"),
        ("/zipped", "compressed"),
        ("/huge", "larger than 1,000,000 bytes"),
        ("/endless", "larger than 1,000,000 bytes"),
        ("/drip", "no image within 0.8 seconds"),
        ("/silent", "no image within 0.8 seconds"),
        ("/round", "more than 3 redirects"),
        ("/malformed", "cannot be fetched .Invalid IPv6 URL"),
        ("/file", "by http and https only"),
    ],
)
def test_an_answer_beyond_a_limit_is_one_error_in_time(server: str, path: str, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(PageError, match=message):
        HERE.fetch(server + path)
    assert time.monotonic() - started < 20  # a busy machine; the limit is 0.8


def test_an_address_that_never_answers_leaves_time_for_the_next(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = int(server.rpartition(":")[2])
    with ExitStack() as sockets:
        silent = sockets.enter_context(socket.socket())
        try:
            silent.bind(("127.0.0.2", port))
        except OSError:
            pytest.skip("this system has one address of its own alone")
        silent.listen(0)
        for _ in range(3):  # its queue is full, so that it answers nobody else
            sockets.enter_context(waiting := socket.socket()).setblocking(False)
            waiting.connect_ex(("127.0.0.2", port))
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("127.0.0.2", "127.0.0.1")]
        real = socket.getaddrinfo
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda host, *at, **how: found if host == "two.example" else real(host, *at, **how)
        )
        assert RemoteImages(timeout=4, private_addresses=True).fetch(f"http://two.example:{port}/good") == PNG


def test_a_host_beyond_ascii_is_asked_for_by_the_name_that_name_servers_know(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, real = server.rpartition(":")[2], socket.getaddrinfo
    asked: list[str] = []

    def resolve(host: str, *at: object, **how: object) -> object:
        asked.append(host)
        monkeypatch.setattr(socket, "getaddrinfo", real)
        return real("127.0.0.1", *at, **how)  # type: ignore[call-overload]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert RemoteImages(private_addresses=True).fetch(f"http://bücher.example:{port}/good") == PNG
    assert asked == ["xn--bcher-kva.example"]


def test_what_is_called_an_image_and_is_none_names_its_node(server: str) -> None:
    with pytest.raises(NodeImageError, match="node 'n7'.*not an image"):
        node_image(ImageNode(id_="n7", image_url=server + "/lies"), remote=HERE)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "[::1]", "0.0.0.0", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254",
        "100.64.0.1", "224.0.0.1", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[fe80::1]",
        "[fd00::1]", "2130706433", "0x7f000001", "127.1", "[::127.0.0.1]",
    ],
)  # fmt: skip
def test_no_address_of_the_inside_is_asked(host: str) -> None:
    with pytest.raises(PageError, match="no public address|cannot be fetched"):
        RemoteImages(timeout=5).fetch(f"http://{host}:9/p.png")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://example.org/p.png", "gopher://example.org", "//example.org/p.png", "p.png", "",
        "http://", "http://user:secret@example.org/p.png", "http://example.org:99999/", "http://example.org:0/",
        "http://ex\nample.org/", "javascript:alert(1)", "http://[::1", "http://user:secret@[::1", "http://ü.invalid/",
    ],
)  # fmt: skip
def test_a_url_of_another_kind_is_refused_before_anything_is_asked(url: str) -> None:
    with pytest.raises(PageError) as caught:
        RemoteImages(timeout=0.001).fetch(url)
    assert "secret" not in str(caught.value)


def test_a_token_in_a_url_is_not_shown(server: str) -> None:
    with pytest.raises(PageError) as caught:
        HERE.fetch("http://127.0.0.1:1/p.png?token=secret")
    assert "127.0.0.1:1/p.png" in str(caught.value) and "secret" not in str(caught.value)


@given(st.ip_addresses(v=4))
def test_an_address_in_disguise_is_judged_by_what_it_stands_for(address: ipaddress.IPv4Address) -> None:
    assert is_public(ipaddress.ip_address(f"::ffff:{address}")) == is_public(address)
    assert not is_public(ipaddress.ip_address(f"64:ff9b::{address}"))
    assert not is_public(ipaddress.ip_address(f"::{address}"))


@given(st.sampled_from(["10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.168.0.0/16", "224.0.0.0/4"]), st.data())
def test_nothing_in_the_networks_of_the_inside_is_public(network: str, data: st.DataObject) -> None:
    assert not is_public(data.draw(st.ip_addresses(network=network)))


def _has_own_network() -> bool:
    try:
        return subprocess.run([*OWN_NETWORK, "ip", "link"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def test_neither_a_redirect_nor_a_name_server_leads_inside() -> None:
    if not _has_own_network():
        pytest.skip("no network of its own can be had here (unshare --map-root-user --net)")
    script = Path(__file__).with_name("public_round.py")
    done = subprocess.run([*OWN_NETWORK, sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    public = "['93.184.216.34']"
    assert found["public"].endswith(f"bytes from {public}")
    assert found["redirect to public"].endswith("bytes from ['93.184.216.34', '93.184.216.34']")
    assert "no public address" in found["own"] and "asked: []" in found["own"]
    assert "no public address" in found["redirect to own"] and f"asked: {public}" in found["redirect to own"]
    assert "http and https only" in found["redirect to a file"]
    assert "more than 3 redirects" in found["redirect for ever"]
    assert found["rebound"].endswith(f"bytes from {public}")  # asked once, and that answer used
    assert found["questions left"] == "['127.0.0.1']"
    assert "no public address" in found["rebound on redirect"]
