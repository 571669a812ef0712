"""Where a candidate of a training list comes from, and how it becomes a page image.

Sources stay small until a page is needed: lists of paths, texts or rows of a memory-mapped table, never decoded images.
"""

import hashlib
from pathlib import Path
from typing import Protocol, TypeAlias

from PIL import Image

from llama_index_ziprerank.pages.images import open_image
from llama_index_ziprerank.pages.page import PageError
from llama_index_ziprerank.pages.text import render_text


class StoredPage(Protocol):
    """An encoded page image that lies somewhere else, such as in a parquet file."""

    @property
    def key(self) -> str:
        """A name that no other page has."""

    def read(self) -> bytes:
        """Return the encoded image."""


PageSource: TypeAlias = Image.Image | bytes | Path | StoredPage | str
"""A page: an image, an encoded image, the path of an image file, or a `StoredPage`. A plain string is a *text*, which
is rendered as a square page image, as stage 1 does."""


def page_image(source: PageSource, canvas: int) -> Image.Image:
    """Return the page as the reranker will be shown it; texts are drawn on `canvas` x `canvas` pixels.

    Raises:
        PageError: when an image is missing or cannot be read; the message names it.
    """
    if isinstance(source, str):
        return render_text(source, canvas)
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, bytes | Path):
        return open_image(source)
    try:
        return open_image(source.read())
    except PageError as error:
        raise PageError(f"{source.key}: {error}") from error


def page_key(source: PageSource, canvas: int) -> str:
    """Name what `page_image` would show: two sources with one key are the same picture.

    Raises:
        PageError: when the file of an image is missing.
    """
    if isinstance(source, str):
        return f"text-{canvas}-{_digest(source.encode('utf-8', 'surrogatepass'))}"
    if isinstance(source, Image.Image):
        return f"image-{source.mode}-{source.size}-{_digest(source.tobytes())}"
    if isinstance(source, bytes):
        return f"bytes-{_digest(source)}"
    if isinstance(source, Path):
        try:
            status = source.stat()
        except OSError as error:
            raise PageError(f"{source}: the image cannot be read ({error.strerror}).") from error
        return f"file-{source.absolute()}-{status.st_mtime_ns}-{status.st_size}"
    return f"stored-{source.key}"


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
