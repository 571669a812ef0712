"""Page ids become pictures, out of one folder: `<id>.png`, `<id>.jpg`, or `<file>.pdf#12` for page 12 of a PDF."""

import re
import tempfile
from pathlib import Path, PurePath
from threading import Lock
from types import TracebackType

from PIL import Image

from llama_index_ziprerank.pages.images import encode_png, fit_within, open_image
from llama_index_ziprerank.pages.page import PageError
from llama_index_ziprerank.pages.pdf import read_pages

_PDF_PAGE = re.compile(r"(?P<file>.+\.pdf)#(?P<number>[1-9]\d*)", re.IGNORECASE)
_ENDINGS = (".png", ".jpg", ".jpeg", "")  # the last: the id names the file itself


class PageImages:
    """Finds pages by id. A PDF is drawn once, when one of its pages is first wanted, into a temporary folder.

    Several threads may ask at the same time. Use it in a `with` block, whose end removes that folder.
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
        self._temporary = tempfile.TemporaryDirectory(prefix="ziprerank-pages-")
        self._drawn: dict[Path, Path] = {}  # a PDF -> the folder of its pages
        self._lock = Lock()

    def __enter__(self) -> "PageImages":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._temporary.cleanup()

    def check(self, page_id: str | int) -> None:
        """Raise PageError unless there is a file for this page."""
        self._find(page_id)

    def image(self, page_id: str | int) -> Image.Image:
        """Return the page's picture, RGB; PageError when there is none or it cannot be read."""
        path, number = self._find(page_id)
        if number is not None:
            path = self._drawn_page(path, number)
        return fit_within(open_image(path), self._side)

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
                self._drawn[pdf] = self._draw(pdf, Path(self._temporary.name, str(len(self._drawn))))
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
