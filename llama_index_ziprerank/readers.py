"""PDFPageReader: a PDF becomes one image document a page, for LlamaIndex's loaders and for ColPaliIndex."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any

from fsspec import AbstractFileSystem
from llama_index.core.bridge.pydantic import ConfigDict, Field, field_validator, model_validator
from llama_index.core.readers.base import BasePydanticReader
from llama_index.core.schema import Document

from llama_index_ziprerank.nodes import page_to_document
from llama_index_ziprerank.pages.images import encode_png
from llama_index_ziprerank.pages.page import MAX_PAGES, Page, PageError
from llama_index_ziprerank.pages.pdf import LEAST_MEMORY, OnError, read_pages

_DPI, _MAX_SIDE = 150, 1600


class PDFPageReader(BasePydanticReader):
    """Reads a PDF as pictures of its pages, each an ImageDocument with the page's own text beside it.

    Every document carries `file_name`, `file_path`, `page_label` (the PDF's own) and `page_number` (from 1), and an id
    made of the hash of the file's bytes and the page number; SimpleDirectoryReader puts its own ids in their place only
    when told so by `filename_as_id=True`. A file is parsed and drawn in other processes, within limits of time and
    memory, so that a broken or hostile one gives pages or one error and takes nothing along.

    >>> documents = PDFPageReader().load_data("manual.pdf")
    >>> SimpleDirectoryReader("manuals", file_extractor={".pdf": PDFPageReader()}).load_data()
    """

    model_config = ConfigDict(extra="forbid")  # a field that is misspelt would be its default

    dpi: int = Field(default=_DPI, gt=0, description="Pixels an inch at which pages are drawn.")
    max_side: int = Field(default=_MAX_SIDE, gt=0, description="Limit of a picture's longer side in pixels.")
    max_pages: int = Field(default=MAX_PAGES, gt=0, description="A file with more pages is refused.")
    on_error: OnError = Field(default="raise", description="What a broken page does: raise, or skip with a warning.")
    timeout: float = Field(
        default=60.0, gt=0, allow_inf_nan=False, description="Seconds that one program may take for one page."
    )
    file_timeout: float = Field(
        default=3600.0, gt=0, allow_inf_nan=False, description="Seconds that reading all pages of a file may take."
    )
    max_memory: int = Field(
        default=2048, ge=LEAST_MEMORY, description="MiB of memory that one program may take (not on macOS and Windows)."
    )
    password: str | None = Field(
        default=None, exclude=True, repr=False, description="Opens encrypted files; never serialized."
    )
    image_dir: str | Path | None = Field(
        default=None, description="Folder for the pictures as PNG files; without one they are embedded as base64."
    )

    @model_validator(mode="before")
    @classmethod
    def _without_class_name(cls, fields: Any) -> Any:  # which `to_dict` writes beside the fields
        return {name: fields[name] for name in fields if name != "class_name"} if isinstance(fields, dict) else fields

    @field_validator("image_dir", mode="before")
    @classmethod
    def _as_text(cls, value: str | PurePath | None) -> str | None:  # so that JSON can hold it
        return None if value is None else str(value)

    @classmethod
    def class_name(cls) -> str:
        """Return the name that serialized readers carry."""
        return "PDFPageReader"

    def lazy_load_data(
        self, path: str | PurePath, extra_info: Mapping[str, Any] | None = None, fs: AbstractFileSystem | None = None
    ) -> Iterator[Document]:
        """Yield the documents of a PDF, holding one page at a time.

        Args:
            path: the PDF, on this machine or on `fs`.
            extra_info: metadata added to every document; its `file_name` and `file_path` win over the reader's own.
            fs: an fsspec filesystem; the file is copied to a temporary one while it is read.

        Raises:
            PageError: as `read_pages`; the message names the file, and the page where there is one. Also when
                `image_dir` is no folder.
        """
        with _local_copy(path, fs) as local:
            for page in read_pages(
                local,
                dpi=self.dpi,
                max_side=self.max_side,
                max_pages=self.max_pages,
                on_error=self.on_error,
                password=self.password,
                timeout=self.timeout,
                file_timeout=self.file_timeout,
                max_memory=self.max_memory,
                shown_as=str(path),
            ):
                yield page_to_document(page, extra_info, image_path=self._stored(page))

    def load_data(
        self, path: str | PurePath, extra_info: Mapping[str, Any] | None = None, fs: AbstractFileSystem | None = None
    ) -> list[Document]:
        """Return the documents of a PDF; arguments and errors as `lazy_load_data`. `aload_data` runs it in a thread."""
        return list(self.lazy_load_data(path, extra_info=extra_info, fs=fs))

    def _stored(self, page: Page) -> Path | None:
        if self.image_dir is None:
            return None
        folder = Path(self.image_dir).absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise PageError(f"image_dir is {folder}, and a file lies there. Name a folder, or a new one.") from error
        target = folder / self._picture_name(page)
        with TemporaryDirectory(dir=folder) as unfinished:  # who reads the picture meanwhile reads it whole
            part = Path(unfinished) / target.name
            part.write_bytes(encode_png(page.image))
            part.replace(target)
        return target

    def _picture_name(self, page: Page) -> str:
        """Name a picture by what decides it, so that no other reading of the page writes over it."""
        choices = "" if (self.dpi, self.max_side) == (_DPI, _MAX_SIDE) else f"-{self.dpi}dpi-{self.max_side}px"
        return f"{page.id}{choices}.png"


@contextmanager
def _local_copy(path: str | PurePath, fs: AbstractFileSystem | None) -> Iterator[Path]:
    """Give the path itself, or, for a file on a remote filesystem, a temporary copy of it."""
    if fs is None:
        yield Path(path)
        return
    with TemporaryDirectory() as folder:
        local = Path(folder) / "copy.pdf"
        try:
            fs.get_file(str(path), str(local))
        except OSError as error:
            raise PageError(f"{path}: cannot be read from {type(fs).__name__} ({error!r}).") from error
        yield local
