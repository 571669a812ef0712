"""The parquet files of MMDocIR, read from front to back: one document's rows at a time are in memory.

The files have gigabytes of JPEG in `image_binary` and may keep them all in one row group, so the file is mapped into
memory and decoded in small batches; row groups that hold nothing wanted are skipped. What is decoded at once is a page
of parquet, about 1,000 rows as Arrow writes them: measured 280 MB at 100 kB an image, for files of 150 MB to 1.2 GB.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

IMAGE = "image_binary"
COLUMNS = {"page": ("doc_name", IMAGE), "layout": ("doc_name", IMAGE, "page_id", "bbox")}
"""Level → the columns that are read."""

BATCH_ROWS = 32

Row = dict[str, Any]
Span = tuple[int, int]
"""The first and the last row of a document."""


def open_rows(path: Path, level: str, spans: Sequence[Span]) -> parquet.ParquetFile:
    """Open a file, having seen that it has the columns of its level and the rows that the annotations name.

    Raises:
        FileNotFoundError: naming the place to get it from.
        ValueError: for another kind of file, missing columns or missing rows.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {path}. Get {path.name} from huggingface.co/datasets/MMDocIR/MMDocIR_Evaluation_Dataset."
        )
    try:
        file = parquet.ParquetFile(path, memory_map=True, pre_buffer=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as parquet ({error}). Fetch it again.") from error
    if missing := [column for column in COLUMNS[level] if column not in file.schema_arrow.names]:
        raise ValueError(
            f"{path} lacks the column {', '.join(missing)}; it has {', '.join(file.schema_arrow.names)}. "
            f"Wanted is MMDocIR_{level}s.parquet."
        )
    last = max((last for _, last in spans), default=0)
    if last >= file.metadata.num_rows:
        raise ValueError(
            f"{path} has {file.metadata.num_rows} rows, the annotations name row {last} (from 0). "
            "Annotations and parquet files must be of one version."
        )
    return file


def stream_spans(file: parquet.ParquetFile, level: str, spans: Sequence[Span]) -> Iterator[list[Row]]:
    """Yield the rows of each span; the spans are in rising order and do not overlap."""
    waiting = list(spans)
    rows: list[Row] = []
    for number, row in _rows_of_groups(file, level, spans):
        if not waiting:
            return
        first, last = waiting[0]
        if first <= number:
            rows.append(row)
        if number == last:
            yield rows
            rows = []
            waiting.pop(0)


def _rows_of_groups(file: parquet.ParquetFile, level: str, spans: Sequence[Span]) -> Iterator[tuple[int, Row]]:
    """Every row, with its number, of the row groups in which a span lies."""
    begin = 0
    for group in range(file.num_row_groups):
        end = begin + file.metadata.row_group(group).num_rows
        if any(first < end and begin <= last for first, last in spans):
            number = begin
            for batch in file.iter_batches(
                BATCH_ROWS, row_groups=[group], columns=list(COLUMNS[level]), use_threads=False
            ):
                wanted = any(first < number + batch.num_rows and number <= last for first, last in spans)
                for offset, row in enumerate(batch.to_pylist() if wanted else ()):
                    yield number + offset, row
                number += batch.num_rows
        begin = end
