"""Rows of training data that never sit in memory together, and the dataset of samples made from them.

JSONL files are read line by line at known offsets; JSON, parquet and names on the Hugging Face Hub are memory-mapped by
`datasets`. Every row is tried once before training: what cannot be used is counted, named, and skipped or refused.
"""

import contextlib
import copy
import glob
import hashlib
import json
import logging
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import datasets
from torch.utils.data import Dataset, Subset

from llama_index_ziprerank.training.samples import RankingSample, SampleError, cut_candidates

logger = logging.getLogger(__name__)

Malformed: TypeAlias = Literal["refuse", "skip"]
"""What happens to rows that cannot be used: training is refused, or they are left out."""

Row: TypeAlias = Mapping[str, Any]

LOCAL_SUFFIXES = {".json", ".jsonl", ".parquet"}
_NAMED = 5  # malformed rows that a message names; the others are counted


class Rows(Protocol):
    """Rows by number, read when asked for."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, index: int) -> Row:
        """Read one row; SampleError when it is not one."""


class JsonLines:
    """The lines of a JSONL file as rows; only their offsets are held."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offsets = array("Q")
        offset = 0
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    self._offsets.append(offset)
                offset += len(line)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Row:
        with self.path.open("rb") as file:
            file.seek(self._offsets[index])
            line = file.readline()
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SampleError(f"the line is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise SampleError(f"the line is no JSON object, but {type(row).__name__}")
        return row


def open_rows(source: str, split: str = "train") -> Rows:
    """Open a JSONL, JSON or parquet file, or the `split` of a data set on the Hugging Face Hub.

    Raises:
        FileNotFoundError: when the file does not exist, or the Hub has no such data set.
        ValueError: when the file cannot be read as what its ending says, or holds no rows.
    """
    path = Path(source).expanduser()
    if path.suffix == ".jsonl" and path.is_file():
        rows: Rows = JsonLines(path)
    elif path.suffix in LOCAL_SUFFIXES and path.is_file():
        rows = load_table(source, path.suffix[1:], data_files=str(path))
    elif path.suffix in LOCAL_SUFFIXES or path.exists() or source.startswith((".", "~", "/")) or source.count("/") > 1:
        raise FileNotFoundError(
            f"No training data at {source!r}. Name a file that ends in {', '.join(sorted(LOCAL_SUFFIXES))}, or a data "
            "set on the Hugging Face Hub."
        )
    else:
        rows = load_table(source, source, split=split)
    if not len(rows):
        raise ValueError(f"The training data {source!r} holds no rows.")
    return rows


def load_table(source: str, path: str, *, data_files: str | None = None, split: str = "train") -> datasets.Dataset:
    """Memory-map a file or a data set of the Hub as `datasets.load_dataset` names it; errors as `open_rows`."""
    try:  # names of files are no patterns
        return datasets.load_dataset(path, data_files=data_files and glob.escape(data_files), split=split)
    except StopIteration as error:
        raise ValueError(f"The training data {source!r} holds no rows.") from error
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(f"The training data {source!r} cannot be had: {error}") from error
    except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
        raise ValueError(f"The training data {source!r} cannot be read: {error.__cause__ or error}") from error


def columns_of(rows: Rows, source: str) -> set[str]:
    """Return the columns of the first row that is one; ValueError when there is none."""
    for index in range(len(rows)):
        with contextlib.suppress(SampleError):
            return set(rows[index])
    raise ValueError(f"No line of {source!r} is a JSON object.")


class SampleDataset(Dataset[RankingSample]):
    """The usable rows of some training data as samples, made when asked for and cut to `max_candidates`.

    Args:
        rows: where the rows are.
        to_sample: makes a row a sample, or raises SampleError.
        source: name of the data, for messages.
        max_candidates: most candidates of a list.
        malformed: what happens to rows that cannot be used.

    Raises:
        ValueError: when rows are malformed and `malformed` is "refuse", or when none is left.
    """

    def __init__(
        self,
        rows: Rows,
        to_sample: Callable[[Row], RankingSample],
        source: str,
        *,
        max_candidates: int,
        malformed: Malformed = "refuse",
    ) -> None:
        self.rows, self.to_sample, self.max_candidates = rows, to_sample, max_candidates
        self._as_given = False
        self.source = source
        self.malformed: list[str] = []
        """What is wrong with which row (from 1), for every row that cannot be used."""
        self.queries = array("Q")
        """A hash of each usable row's query, by which lists that ask the same are kept together."""
        self._usable = array("Q")
        for index in range(len(rows)):
            self._try(index)
        if self.malformed:
            self._report(malformed)

    def _try(self, index: int) -> None:
        try:
            sample = self.to_sample(self.rows[index])
        except SampleError as error:
            self.malformed.append(f"row {index + 1}: {error}")
        else:
            self._usable.append(index)
            digest = hashlib.blake2b(sample.query.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            self.queries.append(int.from_bytes(digest, "big"))

    def _report(self, malformed: Malformed) -> None:
        first = "; ".join(self.malformed[:_NAMED])
        more = len(self.malformed) - _NAMED
        found = f"{len(self.malformed)} of {len(self.rows)} rows of {self.source!r} cannot be used: {first}" + (
            f"; and {more} more" if more > 0 else ""
        )
        if malformed == "refuse" or not self._usable:
            raise ValueError(f"{found}. Correct them, or pass malformed='skip' (--malformed skip) to leave them out.")
        logger.warning("%s. They are left out.", found)

    def __len__(self) -> int:
        return len(self._usable)

    def __getitem__(self, index: int) -> RankingSample:
        sample = self.to_sample(self.rows[self._usable[index]])
        return cut_candidates(sample, self.max_candidates, as_given=self._as_given)

    def measured(self) -> "SampleDataset":
        """Return the same rows as lists to measure on: the teacher has no part in which candidates they hold."""
        same = copy.copy(self)
        same._as_given = True
        return same


def hold_out(samples: SampleDataset, count: int) -> tuple[Subset[RankingSample], Subset[RankingSample]]:
    """Part the samples into those to train on and at least `count` held out (`measured`); no query is on both sides.

    Raises:
        ValueError: when nothing would be left to train on.
    """
    held: set[int] = set()
    wanted = count
    for query, lists in sorted(Counter(samples.queries).items()):  # by hash, so in no order that means anything
        if wanted <= 0:
            break
        held.add(query)
        wanted -= lists
    sides = array("Q"), array("Q")
    for number, query in enumerate(samples.queries):
        sides[query in held].append(number)
    train, held_out = Subset(samples, sides[0]), Subset(samples.measured(), sides[1])
    if not len(train):
        raise ValueError(
            f"Holding out {count} of the {len(samples)} lists of {samples.source!r} leaves none to train on. Hold out "
            "fewer, or name other data to evaluate on."
        )
    return train, held_out
