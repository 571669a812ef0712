"""A small internet of its own: ``unshare --map-root-user --net python public_round.py``.

A public address and the machine's own belong to the same machine here, so that it shows which of them is asked.
"""

import json
import socket
import subprocess
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from PIL import Image

from llama_index_ziprerank.pages.images import encode_png
from llama_index_ziprerank.pages.page import PageError
from llama_index_ziprerank.pages.remote import RemoteImages

PUBLIC, OWN = "93.184.216.34", "127.0.0.1"
PNG = encode_png(Image.new("RGB", (8, 8)))
asked: list[str] = []


def serve(address: str) -> int:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(address)
            target = self.path.partition("?to=")[2]
            self.send_response(302 if target else 200)
            if target:
                self.send_header("Location", target)
            self.send_header("Content-Type", "image/png")
            self.end_headers()
            self.wfile.write(PNG)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer((address, 8080), Handler)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server.server_port


def rebinding(answers: list[str]) -> Callable[..., Any]:
    """A name server that answers differently every time."""

    def resolve(host: str, port: int, *arguments: Any, **named: Any) -> Any:
        address = answers.pop(0) if host == "rebind.example" else host
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    return resolve


def outcome(url: str) -> str:
    asked.clear()
    try:
        return f"{len(RemoteImages().fetch(url))} bytes from {asked}"
    except PageError as error:
        return f"{error} (asked: {asked})"


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "address", "add", f"{PUBLIC}/32", "dev", "lo"], check=True)
    for address in (PUBLIC, OWN):
        serve(address)
    public, own = f"http://{PUBLIC}:8080/p.png", f"http://{OWN}:8080/p.png"
    found = {
        "public": outcome(public),
        "own": outcome(own),
        "redirect to public": outcome(f"{public}?to={public}"),
        "redirect to own": outcome(f"{public}?to={own}"),
        "redirect to a file": outcome(f"{public}?to=file:///etc/passwd"),
        "redirect for ever": outcome(f"{public}?to=?to=?to=?to=?to=?to="),
    }
    answers = [PUBLIC, OWN]
    socket.getaddrinfo = rebinding(answers)
    found["rebound"] = outcome("http://rebind.example:8080/p.png")
    found["questions left"] = str(answers)
    found["rebound on redirect"] = outcome("http://rebind.example:8080/p.png")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
