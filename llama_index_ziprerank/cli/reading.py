"""How `ziprerank index` and `ask` read PDF files: their options, and the documents that come of them."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llama_index_ziprerank.pages.page import MAX_PAGES, BrokenPageError

if TYPE_CHECKING:
    from llama_index.core.schema import Document

Password = Annotated[str | None, typer.Option(metavar="TEXT", help="Opens encrypted PDF files.", show_default=False)]
SkipBroken = Annotated[bool, typer.Option("--skip-broken", help="Leave out pages that cannot be read, and say which.")]
MaxPages = Annotated[int, typer.Option(metavar="N", min=1, help="A PDF file with more pages is refused.")]


@dataclass(frozen=True)
class Reading:
    """What the options say."""

    password: str | None = field(default=None, repr=False)
    skip_broken: bool = False
    max_pages: int = MAX_PAGES

    def count_pages(self, files: Iterable[Path]) -> int:
        """Open all files and count their pages: what is wrong with one is told before a model is loaded."""
        from llama_index_ziprerank.pages.pdf import count_pages

        return sum(count_pages(file, max_pages=self.max_pages, password=self.password) for file in files)

    def documents(self, files: Iterable[Path]) -> "Iterator[Document]":
        """Read files one page at a time. They go by whole paths: an index is filled from more than one folder.

        Raises:
            PageError: as `PDFPageReader.lazy_load_data`.
        """
        from llama_index_ziprerank import PDFPageReader

        reader = PDFPageReader(
            password=self.password, on_error="skip" if self.skip_broken else "raise", max_pages=self.max_pages
        )
        for file in files:
            try:
                yield from reader.lazy_load_data(os.path.abspath(file))
            except BrokenPageError as error:
                raise BrokenPageError(f"{error} Pass --skip-broken to leave such pages out.") from error
