"""Image retrieval sets laid out as BEIR's: a corpus of page images, queries, and qrels that join them.

ViDoRe's sets on the Hugging Face Hub have three configurations: ``corpus {corpus-id, image}``, ``queries {query-id,
query}`` and ``qrels {query-id, corpus-id, score}`` (ids may be spelled with an underscore, a missing score is 1). On
disk a set is a folder with three tables of these names, each of them one of:

- a folder that `datasets.save_to_disk` wrote, or one with parquet files (or of the formats below); of files that are
  named after splits (``test.tsv``, ``train-00000-of-00002.parquet``) those of the chosen split are read;
- ``<name>.parquet`` (also ``<name>-00000-of-00002.parquet``), ``.jsonl``, ``.csv`` or ``.tsv``;
- for the corpus a folder of image files, whose names without suffix are the ids; for the qrels also ``qrels.trec``.
"""

import csv
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from llama_index_ziprerank.evaluation.digests import bytes_digest, file_digest
from llama_index_ziprerank.evaluation.runs import read_qrels, whole_grade, without_space
from llama_index_ziprerank.pages.images import open_image
from llama_index_ziprerank.pages.page import PageError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}
_LOADERS = {".parquet": "parquet", ".jsonl": "json"}
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_SPLIT_FILE = re.compile(r"(train|dev|validation|test)(?:-\d+-of-\d+)?")
_SPELLINGS = {
    "corpus-id": ("corpus-id", "corpus_id", "_id", "id"),
    "query-id": ("query-id", "query_id", "_id", "id"),
    "query": ("query", "text"),
    "image": ("image",),
    "score": ("score",),
}


@dataclass(frozen=True)
class ImageSet:
    """A set that is ready to be asked: only queries with a relevant page."""

    name: str
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    images: Mapping[str, Path | tuple[datasets.Dataset, int]]
    """Page id → its image file, or its table and row."""

    def image(self, page: str) -> Image.Image:
        """Open a page's image. Raises PageError, naming the page, when it cannot be read."""
        try:
            return open_image(self._stored(page))
        except PageError as error:
            raise PageError(f"{self.name}, page {page!r}: {error}") from error

    def image_digest(self, page: str) -> str | None:
        """Tell a page's image from others by its bytes; None where there is no file."""
        stored = self._stored(page)
        if isinstance(stored, bytes):
            return bytes_digest(stored)
        return file_digest(stored) if stored.is_file() else None

    def _stored(self, page: str) -> bytes | Path:
        place = self.images[page]
        if isinstance(place, Path):
            return place
        table, row = place
        image = table[row][_column(self.name, table, "image")]
        return image if isinstance(image, bytes) else image["bytes"] or Path(image["path"])

    def pages(self) -> Iterator[tuple[str, Image.Image]]:
        """Yield every page with its image, one at a time."""
        return ((page, self.image(page)) for page in self.images)


def load_image_set(name: str, split: str | None = None) -> ImageSet:
    """Load a set from a folder, or from the Hugging Face Hub where there is no folder of this name.

    Args:
        name: the folder, or the repository, such as ``vidore/docvqa_test_subsampled_beir``.
        split: default "test", or the only one.

    Raises:
        FileNotFoundError: when a table, or the repository, is missing.
        ValueError: when a table lacks columns, or no query has a relevant page in the corpus.
    """
    folder = Path(name)
    images = _images(name, split)
    queries = _table(name, "queries", split)
    text_of = dict(zip(_ids(name, queries, "query-id"), _values(name, queries, "query"), strict=True))
    if blank := [query for query, text in text_of.items() if not str(text or "").strip()]:
        raise ValueError(f"{name}: {len(blank)} queries have no text, such as {blank[0]!r}. Leave them out.")
    path = folder / "qrels.trec"
    qrels = read_qrels(path) if path.is_file() else _qrels(name, _table(name, "qrels", split))
    asked = [query for query in text_of if any(grade > 0 for grade in qrels.get(query, {}).values())]
    if not any(page in images for query in asked for page in qrels[query]):
        raise ValueError(
            f"{name}: no query has a relevant page in the corpus; ids are such as {[*text_of][:1]} (queries), "
            f"{[*images][:1]} (corpus), {[*qrels.items()][:1]} (qrels). The qrels must use the ids of the other two."
        )
    return ImageSet(name, {query: str(text_of[query]) for query in asked}, {one: qrels[one] for one in asked}, images)


def _images(name: str, split: str | None) -> dict[str, Path | tuple[datasets.Dataset, int]]:
    files = sorted(path for path in (Path(name) / "corpus").glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if files:
        return {without_space(path.stem): path for path in files}
    table = _table(name, "corpus", split)
    column = _column(name, table, "image")
    if isinstance(table.features[column], datasets.Image):
        table = table.cast_column(column, datasets.Image(decode=False))
    elif table.features[column].dtype == "string":
        paths = [Path(name) / path for path in table[column]]
        return dict(zip(_ids(name, table, "corpus-id"), paths, strict=True))
    return {page: (table, row) for row, page in enumerate(_ids(name, table, "corpus-id"))}


def _qrels(name: str, table: datasets.Dataset) -> dict[str, dict[str, int]]:
    scores = _values(name, table, "score") if "score" in table.column_names else [1] * len(table)
    qrels: dict[str, dict[str, int]] = {}
    pairs = zip(_ids(name, table, "query-id"), _ids(name, table, "corpus-id"), scores, strict=True)
    for query, page, score in pairs:
        try:
            qrels.setdefault(query, {})[page] = whole_grade(score)
        except ValueError as error:
            raise ValueError(f"{name}, qrels of query {query!r} and page {page!r}: {error}") from error
    return qrels


def _table(name: str, part: str, split: str | None) -> datasets.Dataset:
    folder = Path(name)
    if folder.is_dir():
        return _local_table(folder, part, split)
    if not _REPOSITORY.fullmatch(name):
        raise FileNotFoundError(
            f"There is no folder {name}. Name a folder, or a set on the Hugging Face Hub as owner/name."
        )
    return _split(f"{name}, {part}", datasets.load_dataset(name, part), split)


def _local_table(folder: Path, part: str, split: str | None) -> datasets.Dataset:
    saved = folder / part
    if any((saved / marker).is_file() for marker in ("dataset_info.json", "dataset_dict.json", "state.json")):
        return _split(str(saved), datasets.load_from_disk(str(saved)), split)
    for pattern in (f"{part}/*", f"{part}.*", f"{part}-*"):
        files = [path for path in sorted(folder.glob(pattern)) if path.suffix in {*_LOADERS, *_SEPARATORS}]
        if files:
            suffix = files[0].suffix
            paths = _of_split(saved, [path for path in files if path.suffix == suffix], split)
            if suffix in _SEPARATORS:
                return _texts(paths, _SEPARATORS[suffix])
            return datasets.load_dataset(_LOADERS[suffix], data_files=paths, split="train")
    raise FileNotFoundError(
        f"{folder} has no {part}. Wanted {part}/ (written by datasets.save_to_disk, or with parquet files), "
        f"{part}.parquet, {part}.jsonl, {part}.csv or {part}.tsv"
        + {"corpus": ", or corpus/ with images", "qrels": ", or qrels.trec", "queries": ""}[part]
        + "."
    )


def _split(name: str, loaded: datasets.Dataset | datasets.DatasetDict, split: str | None) -> datasets.Dataset:
    if isinstance(loaded, datasets.Dataset):
        return loaded
    return loaded[_chosen(name, loaded, split)]


def _texts(paths: Sequence[str], separator: str) -> datasets.Dataset:
    """Read every cell as the text that it is: ``datasets`` takes page 007 for 7, and the question "NA" for none."""
    rows: list[dict[str, Any]] = []
    for path in paths:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows += csv.DictReader(file, delimiter=separator, restkey="")
    return datasets.Dataset.from_list(rows)


def _of_split(folder: Path, files: Sequence[Path], split: str | None) -> list[str]:
    """Choose among files that are named after splits, as BEIR's qrels are; files of other names belong together."""
    splits: dict[str, list[str]] = {}
    for path in files:
        named = _SPLIT_FILE.fullmatch(path.stem)
        splits.setdefault(named[1] if named else "", []).append(str(path))
    if "" in splits or len(splits) == 1:
        return [str(path) for path in files]
    return splits[_chosen(str(folder), splits, split)]


def _chosen(name: str, splits: Collection[str], split: str | None) -> str:
    chosen = split or ("test" if "test" in splits else next(iter(splits)) if len(splits) == 1 else None)
    if chosen is None or chosen not in splits:
        raise ValueError(f"{name} has the splits {', '.join(splits)}. Choose one with --split.")
    return chosen


def _ids(name: str, table: datasets.Dataset, column: str) -> list[str]:
    return [without_space(str(value)) for value in _values(name, table, column)]


def _values(name: str, table: datasets.Dataset, column: str) -> list[Any]:
    return list(table[_column(name, table, column)])


def _column(name: str, table: datasets.Dataset, column: str) -> str:
    for spelling in _SPELLINGS[column]:
        if spelling in table.column_names:
            return spelling
    raise ValueError(
        f"{name}: a table has the columns {', '.join(table.column_names)}, and none is {column!r}. Wanted are corpus "
        "{corpus-id, image}, queries {query-id, query} and qrels {query-id, corpus-id, score}."
    )
