"""Processes that may be killed: forked from one that has loaded everything and started no thread yet.

The scripts of this folder run by themselves (a fresh process each), so that nothing of pytest is forked.
"""

import base64
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llama_index.core.schema import ImageDocument
from PIL import Image

from llama_index_ziprerank.nodes import node_image
from llama_index_ziprerank.pages.images import encode_png
from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder

torch.set_num_threads(1)

Say = Callable[[Any], None]
"""Tells the parent something, at once: what was said is not lost with the process."""


class Forked:
    """A child process that runs ``work(say)``."""

    def __init__(self, work: Callable[[Say], None]) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            os._exit(_run(work, writing))
        os.close(writing)
        self._pipe = reading
        self._text = b""

    def kill(self, words: int, seconds: float) -> None:
        """Send SIGKILL this long after the child has said so many words, unless it has ended before."""
        while self._text.count(b"\n") < words:
            if not self._read():
                return
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and select.select([self._pipe], [], [], left)[0]:
            if not self._read():
                return
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> tuple[int, list[Any]]:
        """Return exit code (minus the signal's number) and everything that was said."""
        while self._read():
            pass
        os.close(self._pipe)
        _, status = os.waitpid(self.pid, 0)
        said = [json.loads(line) for line in self._text.split(b"\n")[:-1]]
        return os.waitstatus_to_exitcode(status), said

    def _read(self) -> bytes:
        chunk = os.read(self._pipe, 1 << 16)
        self._text += chunk
        return chunk


def in_a_fork(work: Callable[[Say], None]) -> tuple[int, list[Any]]:
    """Run ``work`` in a child process to its end."""
    return Forked(work).wait()


def _run(work: Callable[[Say], None], pipe: int) -> int:
    torch.set_num_threads(1)  # makes a pool of this process, before two threads try to at once
    try:
        work(lambda word: (os.write(pipe, json.dumps(word).encode() + b"\n"), None)[1])
    except BaseException:
        os.write(pipe, json.dumps(traceback.format_exc()).encode() + b"\n")
        return 1
    return 0


def tiny_encoder(folder: Path) -> MultiVectorEncoder:
    """Load the tiny retriever, without running it."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tiny_retriever import colqwen3

    return MultiVectorEncoder.from_pretrained(str(colqwen3(folder)), device="cpu")


def page(file: str, name: str, version: int, side: int = 32) -> ImageDocument:
    """A page whose picture and text are those of ``name`` and ``version``."""
    return ImageDocument(
        id_=name,
        text=f"{name} {version}",
        image=base64.b64encode(encode_png(picture(name, version, side))).decode(),
        image_mimetype="image/png",
        metadata={"file_path": file, "version": version},
    )


def picture(name: str, version: int, side: int = 32) -> Image.Image:
    """The picture of a page: noise that depends on its name and version."""
    seed = int.from_bytes(f"{name} {version}".encode(), "little") % 2**63
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8))


def contents(index: Any, question: str = "toner") -> dict[str, int]:
    """Return id → version of all pages, having checked that each is whole and there once."""
    stored = [stored.id for stored in index.store.pages()]
    found = index.as_retriever(similarity_top_k=10_000).retrieve(question)
    assert sorted(stored) == sorted(set(stored)), "a page is doubled"
    assert sorted(node.node.node_id for node in found) == sorted(stored), "listing and search disagree"
    versions = {}
    for node in (scored.node for scored in found):
        version = node.metadata["version"]
        assert node.text == f"{node.node_id} {version}", "text and metadata are of two versions"
        image = node_image(node)
        assert image is not None
        assert image.tobytes() == picture(node.node_id, version, image.width).tobytes(), "the image is of another page"
        versions[node.node_id] = version
    return versions


def check_no_leftovers(index: Any) -> None:
    """Check that every image of an index that has just been opened belongs to a page."""
    images = sorted(file.name for file in index.image_dir.iterdir())
    assert images == sorted(Path(node.image_path).name for node in index.nodes()), "images without a page are left"
