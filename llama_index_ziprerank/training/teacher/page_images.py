"""Page ids become pictures, out of one folder: `<id>.png`, `<id>.jpg`, or `<file>.pdf#12` for page 12 of a PDF."""

import os
import re
import shutil
import tempfile
import weakref
from pathlib import Path, PurePath
from threading import Lock
from types import TracebackType
from typing import Any

from PIL import Image

from llama_index_ziprerank.pages.images import encode_png, fit_within, open_image
from llama_index_ziprerank.pages.page import PageError
from llama_index_ziprerank.pages.pdf import read_pages

_PDF_PAGE = re.compile(r"(?P<file>.+\.pdf)#(?P<number>[1-9]\d*)", re.IGNORECASE)
_ENDINGS = (".png", ".jpg", ".jpeg", "")  # the last: the id names the file itself


class PageImages:
    """Finds pages by id. A PDF is drawn once, when one of its pages is first wanted, into a temporary folder.

    Several threads may ask at the same time; other processes read what was drawn before they got it. The folder is
    removed at the end of a `with` block, else with this object, by the process that made it.
    """

    def __init__(self, folder: Path, *, side: int = 1024) -> None:
        """Look in `folder`; pictures come back with at most `side` pixels on the longer side.

        Raises:
            PageError: there is no such folder.
        """
        if not folder.is_dir():
            raise PageError(f"{folder} is no folder. Name the one that holds the pages.")
        self._folder = folder
        self._side = side
        self._temporary = Path(tempfile.mkdtemp(prefix="ziprerank-pages-"))
        self._remove = weakref.finalize(self, _remove_own, self._temporary, os.getpid())
        self._drawn: dict[Path, Path] = {}  # a PDF -> the folder of its pages
        self._lock = Lock()

    def __enter__(self) -> "PageImages":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_remove")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=Lock())

    def check(self, page_id: str | int) -> None:
        """Raise PageError unless there is a file for this page."""
        self._find(page_id)

    def file(self, page_id: str | int) -> Path:
        """Return the file of the page's picture, of a PDF's page a drawn one; PageError when there is none."""
        path, number = self._find(page_id)
        return path if number is None else self._drawn_page(path, number)

    def image(self, page_id: str | int) -> Image.Image:
        """Return the page's picture, RGB; PageError when there is none or it cannot be read."""
        return fit_within(open_image(self.file(page_id)), self._side)

    def _find(self, page_id: str | int) -> tuple[Path, int | None]:
        """Return the file of a page, and the page's number where that file is a PDF."""
        named = _PDF_PAGE.fullmatch(str(page_id))
        name = PurePath(named["file"] if named else str(page_id))
        if name.is_absolute() or ".." in name.parts:  # ids may come with somebody else's data, pictures go to a server
            raise PageError(f"Page {page_id!r} does not lie in {self._folder}. Wanted is a name inside that folder.")
        for ending in ("",) if named else _ENDINGS:
            path = self._folder / f"{name}{ending}"
            if path.is_file():
                return path, int(named["number"]) if named else None
        wanted = name if named else f"{name}.png (or .jpg)"
        raise PageError(f"Page {page_id!r}: {self._folder} holds no {wanted}.")

    def _drawn_page(self, pdf: Path, number: int) -> Path:
        with self._lock:
            if pdf not in self._drawn:
                self._drawn[pdf] = self._draw(pdf, self._temporary / str(len(self._drawn)))
        path = self._drawn[pdf] / f"{number}.png"
        if not path.is_file():
            raise PageError(f"{pdf}: there is no page {number}, or it cannot be drawn.")
        return path

    def _draw(self, pdf: Path, folder: Path) -> Path:
        """Draw the pages of a PDF into a new folder, leaving out broken ones with a warning."""
        folder.mkdir(exist_ok=True)
        for page in read_pages(pdf, on_error="skip"):
            (folder / f"{page.number}.png").write_bytes(encode_png(fit_within(page.image, self._side)))
        return folder


def _remove_own(folder: Path, maker: int) -> None:
    if os.getpid() == maker:  # a forked process has its copy of the object, and of what happens at its end
        shutil.rmtree(folder, ignore_errors=True)
