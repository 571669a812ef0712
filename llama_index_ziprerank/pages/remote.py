"""Images behind a URL, fetched only by who asks for it, and never from inside the network that asks.

An address is checked when the connection is made, and that very address is connected to: for the first URL as for
every redirect, and whatever the name server answers the next time (OWASP, Server-Side Request Forgery Prevention).
"""

import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from string import punctuation
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import httpcore

from llama_index_ziprerank.pages.page import PageError

_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS: dict[bytes | str, bytes | str] = {
    "Accept": "image/*",
    "Accept-Encoding": "identity",
    "User-Agent": "llama-index-ziprerank",
}
_HIDDEN_IPV4 = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96")))
"""IPv6 addresses that lead on to an IPv4 one: NAT64, 6to4, Teredo, IPv4-compatible."""

_HOST = re.compile(r"(?<=://)[^/?#:@\[\]]+")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class RemoteImages:
    """Fetches images by http and https. Proxies of the environment are not used: they would connect unchecked."""

    max_bytes: int = 20_000_000
    """Of one image file; more is refused before it is read."""
    timeout: float = 20.0
    """Seconds for one image, redirects included; the name server's own time-out comes on top."""
    max_redirects: int = 3
    private_addresses: bool = False
    """Whether addresses that the internet does not route (one's own machine, one's own network) may be asked."""

    def fetch(self, url: str) -> bytes:
        """Return the bytes of an image file; whether they are one is for the decoder to say.

        Raises:
            PageError: for another scheme, a user or password in the URL, an address that is not public, an answer that
                is no image, too large or too late, and too many redirects.
        """
        deadline = time.monotonic() + self.timeout
        network = _CheckedNetwork(deadline, self.private_addresses)
        here = url
        try:
            with httpcore.ConnectionPool(ssl_context=ssl.create_default_context(), network_backend=network) as pool:
                for _ in range(self.max_redirects + 1):
                    here = _checked_url(here)
                    with pool.stream("GET", here, headers=_HEADERS, extensions={"timeout": self._timeouts()}) as answer:
                        headers = {name.decode("latin-1").lower(): v.decode("latin-1") for name, v in answer.headers}
                        if answer.status not in _REDIRECTS or "location" not in headers:
                            return self._body(answer, headers)
                        here = urljoin(here, _ascii(headers["location"], "latin-1"))
        except (httpcore.TimeoutException, TimeoutError) as error:
            raise PageError(f"{_shown(url)}: no image within {self.timeout:g} seconds.") from error
        except PageError:
            raise
        except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError, OSError, ValueError) as error:
            raise PageError(f"{_shown(url)}: cannot be fetched ({error or type(error).__name__}).") from error
        raise PageError(f"{_shown(url)}: more than {self.max_redirects} redirects.")

    def _timeouts(self) -> dict[str, float]:
        return dict.fromkeys(("connect", "read", "write", "pool"), self.timeout)

    def _body(self, answer: httpcore.Response, headers: Mapping[str, str]) -> bytes:
        kind, size = headers.get("content-type", "none"), headers.get("content-length", "0")
        if answer.status != 200:
            raise PageError(f"the server answered {answer.status} instead of an image.")
        if not kind.lower().startswith("image/"):
            raise PageError(f"the server sent {kind[:80]!r}, wanted is image/*.")
        if "content-encoding" in headers and headers["content-encoding"].lower() != "identity":
            raise PageError(f"the server sent it compressed ({headers['content-encoding'][:40]!r}), which is not read.")
        if size.isdecimal() and int(size) > self.max_bytes:
            raise self._too_large()
        content = bytearray()
        for chunk in answer.iter_stream():
            content += chunk
            if len(content) > self.max_bytes:
                raise self._too_large()
        return bytes(content)

    def _too_large(self) -> PageError:
        return PageError(f"the image is larger than {self.max_bytes:,} bytes.")


class _CheckedNetwork(httpcore.NetworkBackend):
    """Connects to checked addresses only, and gives up at ``deadline`` (of ``time.monotonic``)."""

    def __init__(self, deadline: float, private_addresses: bool) -> None:
        self._deadline = deadline
        self._private_addresses = private_addresses
        self._network = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Resolve ``host`` once, check every address that it has, and connect to the first that answers."""
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        for address in addresses:
            if not self._private_addresses and not is_public(ipaddress.ip_address(address.partition("%")[0])):
                raise PageError(
                    f"{host} is {address}, which is no public address. Download the image and give its path."
                )
        failure: Exception = OSError(f"{host} has no address")
        for tried, address in enumerate(addresses):
            share = _left(self._deadline) / (len(addresses) - tried)  # one that never answers leaves time for the next
            try:
                return _TimedStream(self._network.connect_tcp(address, port, share, local_address), self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


class _TimedStream(httpcore.NetworkStream):
    """A connection on which all waiting together ends at the deadline: a server may send one byte at a time."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline))
        return _TimedStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def is_public(address: Address) -> bool:
    """Whether the internet routes this address, and it is no other address in disguise."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if any(address in network for network in _HIDDEN_IPV4):
            return False
    return address.is_global and not address.is_multicast


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _ascii(url: str, encoding: str = "utf-8") -> str:
    """Return a URL as requests carry it (RFC 3987, 3.1): spaces and letters beyond ASCII as percent-encoded bytes."""
    return quote(url, safe=punctuation, encoding=encoding)


def _checked_url(url: str) -> str:
    """Return the URL in ASCII, when it may be fetched; a host has the name that name servers know (IDNA)."""
    url = _ascii(_HOST.sub(lambda host: host[0].encode("idna").decode(), url, count=1))
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise PageError(f"{_shown(url)}: images are fetched by http and https only.")
    try:
        port = parts.port
    except ValueError as error:
        raise PageError(f"{_shown(url)}: {error}.") from error
    if port == 0:
        raise PageError(f"{_shown(url)}: there is no port 0.")
    if parts.username is not None or parts.password is not None:
        raise PageError(f"{_shown(url)}: a URL with a user or a password is not fetched.")
    return url


def _shown(url: str) -> str:
    """Return the URL for a message: without credentials, and without its query, where tokens stand."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "A malformed URL"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:200]
