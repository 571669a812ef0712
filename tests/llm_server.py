"""A server on the loopback address that speaks OpenAI's chat protocol, sees the pages it is sent, and can misbehave."""

import base64
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Event, Lock, Thread
from time import monotonic
from typing import Any

from PIL import Image

PROMPT_TOKENS, COMPLETION_TOKENS = 1000, 10
GREYS = {f"page-{grey:03d}": grey for grey in range(30, 240, 30)}
"""Page ids and how bright each page is. The server finds bright pages relevant."""


@dataclass(frozen=True)
class Reply:
    """How the server answers; by default with the right ranking."""

    text: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    delay: float = 0.0
    silent: bool = False
    hang_up: bool = False


class LLMServer:
    """What was asked of it, and how."""

    def __init__(self, behave: Callable[[str, int], Reply]) -> None:
        self.behave = behave
        self.asked: Counter[str] = Counter()
        self.times: list[float] = []
        self.prompts: list[str] = []
        self.models: set[str] = set()
        self.sizes: list[tuple[int, int]] = []
        self.most_at_a_time = 0
        self.closing = Event()
        self._at_a_time = 0
        self._lock = Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign] # clients that time out hang up
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def serve(self) -> None:
        self._http.serve_forever(poll_interval=0.02)

    def close(self) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()

    def _take(self, request: dict[str, Any]) -> tuple[Reply, str]:
        words, *pictures = request["messages"][-1]["content"]
        query = re.search(r"^Search Query: (.*)$", words["text"], re.MULTILINE)[1]  # type: ignore[index]
        urls = [picture["image_url"]["url"].partition("base64,")[2] for picture in pictures]
        images = [Image.open(BytesIO(base64.b64decode(url))) for url in urls]
        brightness = [image.convert("L").getpixel((0, 0)) for image in images]
        order = sorted(range(len(images)), key=lambda place: -brightness[place])  # type: ignore[operator]
        with self._lock:
            self.asked[query] += 1
            self.times.append(monotonic())
            self.prompts.append(words["text"])
            self.models.add(request["model"])
            self.sizes += [image.size for image in images]
            return self.behave(query, self.asked[query]), " > ".join(f"[{chr(65 + place)}]" for place in order)

    def _handler(server: "LLMServer") -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                with server._lock:
                    server._at_a_time += 1
                    server.most_at_a_time = max(server.most_at_a_time, server._at_a_time)
                try:
                    request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                    self._send(*server._take(request))
                finally:
                    with server._lock:
                        server._at_a_time -= 1

            def _send(self, reply: Reply, ranking: str) -> None:
                server.closing.wait(30 if reply.silent else reply.delay)
                if reply.silent or reply.hang_up:
                    self.close_connection = True
                    return
                text = ranking if reply.text is None else reply.text
                body = _completion(text) if reply.status == 200 else b'{"error": {"message": "as you wished"}}'
                body = body if reply.body is None else reply.body
                self.send_response(reply.status)
                for name, value in {"content-type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@contextmanager
def llm_server(behave: Callable[[str, int], Reply] = lambda query, time: Reply()) -> Iterator[LLMServer]:
    """Serve; `behave` takes the query, and how many times it has been asked, from 1."""
    server = LLMServer(behave)
    thread = Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join()


def write_pages(folder: Path) -> Path:
    """Write the pages of `GREYS` into a new folder."""
    folder.mkdir()
    for name, grey in GREYS.items():
        Image.new("RGB", (40, 56), (grey, grey, grey)).save(folder / f"{name}.png")
    return folder


def write_queries(path: Path, count: int, **changes: object) -> Path:
    """Write queries that have all pages as candidates, the darkest first."""
    row = {"doc_name": "greys", "domain": "tests", "candidate_page_ids": [*GREYS], "gt_page_ids": [[*GREYS][2]]}
    rows = [{"query_id": f"q{number}", "query": f"shade {number}", **row, **changes} for number in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _completion(text: str) -> bytes:
    message = {"role": "assistant", "content": text}
    usage = {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": COMPLETION_TOKENS,
        "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
    }
    return json.dumps(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "grey",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
            "usage": usage,
        }
    ).encode()
