"""A teacher's rankings as samples, joined with page images: MMDocIR's distilled ones, or those of `ziprerank label`.

Rankings: ``query, doc_name, candidate_page_ids, gt_page_ids, openai_ranking`` (indices into the candidates, best first;
FACTS of `dukesunmtri/ZipRerank_GPT-5-mini_MMDocIR_Train`). Images: parquet files with ``file_name, page, image``, or
``doc_name, page_id, image``, as MMDocIR's training set has them; or the folder that `ziprerank label` took them from.
Candidates without an image leave the list and the order; positives are the ground-truth pages among the candidates, and
where there are none the teacher's order stands alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from llama_index_ziprerank.pages.page import PageError
from llama_index_ziprerank.training.rows import load_table
from llama_index_ziprerank.training.samples import RankingSample, SampleError
from llama_index_ziprerank.training.sources import PageSource
from llama_index_ziprerank.training.teacher.page_images import PageImages

COLUMNS = ("query", "doc_name", "candidate_page_ids", "gt_page_ids", "openai_ranking")

_PAGE_COLUMNS = (("file_name", "page", "image"), ("doc_name", "page_id", "image"))


@dataclass(frozen=True)
class ParquetPage:
    """A page image in a memory-mapped table."""

    table: datasets.Dataset
    row: int
    key: str

    def read(self) -> bytes:
        """Return the encoded image."""
        image = self.table[self.row]["image"]
        return image["bytes"] if isinstance(image, dict) else image


class PageTable(Protocol):
    """Where the candidates of rankings are found."""

    @property
    def folder(self) -> Path:
        """Where that lies."""

    def find(self, document: str, page: Any) -> PageSource | None:
        """Return the image of a page, if there is one."""


class LabelledPages:
    """The folder of pages that `ziprerank label` was given, found by page alone.

    A PDF is drawn when one of its pages is first wanted, which is when the rows are tried, into a temporary folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._images = PageImages(folder.expanduser())

    def find(self, document: str, page: Any) -> Path | None:
        """Return the file of a page's image, if there is one."""
        try:
            return self._images.file(page)
        except PageError:
            return None


class ParquetPages:
    """The page images of a folder of parquet files, found by document and page.

    Raises:
        ValueError: when a file has other columns.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tables: list[datasets.Dataset] = []
        self._places: dict[tuple[str, str], tuple[int, int]] = {}
        for path in sorted(folder.expanduser().glob("*.parquet")):
            self._add(path)

    def _add(self, path: Path) -> None:
        table = load_table(str(path), "parquet", data_files=str(path))
        columns = next((names for names in _PAGE_COLUMNS if set(names) <= set(table.column_names)), None)
        if columns is None:
            wanted = " or ".join(", ".join(names) for names in _PAGE_COLUMNS)
            raise ValueError(f"{path} has the columns {', '.join(table.column_names)}; page images have {wanted}.")
        document, page, image = columns
        if isinstance(table.features[image], datasets.Image):
            table = table.cast_column(image, datasets.Image(decode=False))
        there = chain.from_iterable(map(_has_image, table.data.column(image).chunks))
        for row, (place, has_image) in enumerate(zip(table.select_columns([document, page]), there, strict=True)):
            if has_image:
                self._places[str(place[document]), str(place[page])] = len(self._tables), row
        self._tables.append(table)

    def find(self, document: str, page: Any) -> ParquetPage | None:
        """Return the image of a page, if there is one."""
        place = self._places.get((document, str(page)))
        if place is None:
            return None
        table, row = place
        return ParquetPage(self._tables[table], row, f"{self.folder}-{document}-{page}")


def _has_image(cells: pa.Array) -> list[bool]:
    """Say which cells of an image column hold one, without reading it."""
    if not pa.types.is_struct(cells.type):
        return cells.is_valid().to_pylist()
    return pc.and_(cells.is_valid(), cells.field("bytes").is_valid()).to_pylist()


def open_pages(folder: Path) -> PageTable:
    """Open a folder of parquet files with page images, or else one of pages as `ziprerank label` takes them.

    Raises:
        FileNotFoundError: when the folder does not exist.
        ValueError: when a parquet file has other columns.
    """
    if not folder.expanduser().is_dir():
        raise FileNotFoundError(f"No page images: {str(folder)!r} is no folder.")
    return ParquetPages(folder) if any(folder.expanduser().glob("*.parquet")) else LabelledPages(folder)


class DistilledRankings:
    """Makes samples of rows of rankings; candidates without an image are left out."""

    def __init__(self, images: PageTable) -> None:
        self.images = images

    def __call__(self, row: Mapping[str, Any]) -> RankingSample:
        """Read one ranking.

        Raises:
            SampleError: when the row is not laid out as described, names candidates that it does not have, or fewer
                than two candidates have an image.
        """
        query, document, candidates, truth, ranking = _values(row)
        found = [self.images.find(document, page) for page in candidates]
        shown = [number for number, page in enumerate(found) if page is not None]
        if len(shown) < 2:
            raise SampleError(
                f"{len(shown)} of the {len(candidates)} candidate pages of {document!r} have an image in "
                f"{str(self.images.folder)!r}, wanted at least 2"
            )
        place = {number: index for index, number in enumerate(shown)}
        return RankingSample(
            query,
            [page for page in found if page is not None],
            [place[number] for number in ranking if number in place],
            frozenset(place[number] for number in shown if str(candidates[number]) in truth),
        )


def _values(row: Mapping[str, Any]) -> tuple[str, str, Sequence[Any], set[str], list[int]]:
    if missing := [column for column in COLUMNS if row.get(column) is None]:
        raise SampleError(f"no {', '.join(missing)}")
    query, document, candidates, truth, ranking = (row[column] for column in COLUMNS)
    if not isinstance(query, str) or not all(isinstance(value, list) for value in (candidates, truth, ranking)):
        raise SampleError("wanted a text as query, and lists of candidates, true pages and ranks")
    if strangers := [number for number in ranking if number not in range(len(candidates))]:
        raise SampleError(f"the ranking names {strangers}, but there are only {len(candidates)} candidates")
    if len(set(ranking)) != len(ranking):
        raise SampleError(f"the ranking names a candidate twice: {ranking}")
    return query, str(document), candidates, {str(page) for page in truth}, ranking
