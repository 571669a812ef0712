"""Reading and encoding for an index on many processors: `read_pdfs` and `RayEncoder`.

>>> encoder = RayEncoder.from_pretrained("vidore/colqwen2-v1.0", workers=4, num_gpus=1)
>>> index = ColPaliIndex.from_documents(read_pdfs(paths), encoder, "manuals-index")

Files and checkpoints must lie where every machine of the cluster finds them. The index stays with the process that
builds it: what it has already is not encoded again, and a build that was interrupted goes on.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import ray
import torch
from llama_index.core.schema import Document
from PIL import Image
from ray.util import ActorPool

from llama_index_ziprerank.pages.page import PageError, PageWarning
from llama_index_ziprerank.readers import PDFPageReader
from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder
from llama_index_ziprerank.retrieval.store import Vectors

PAGES_A_TASK = 8
"""Pages that go to a worker together: some 50 MB of pictures."""
_TASKS_A_WORKER = 2  # one at work, one on its way


def read_pdfs(paths: Iterable[str | Path], reader: PDFPageReader | None = None) -> Iterator[Document]:
    """Yield the pages of many PDFs as `PDFPageReader.lazy_load_data` does, drawn by Ray Data on as many processors.

    Files are read at the same time, so their pages may come in any order. Memory holds some of them at a time.

    Args:
        paths: PDFs that every machine can read.
        reader: how they are drawn; an ``image_dir`` must be a folder that all machines share.

    Raises:
        PageError: as `lazy_load_data`; what was yielded before stays good. What that would warn of is warned of here.
    """
    files = [{"path": str(Path(path).absolute()), "shown_as": str(path)} for path in paths]
    if not files:
        return
    drawing = reader or PDFPageReader()
    rows = ray.data.from_items(files, override_num_blocks=len(files))
    for row in rows.flat_map(lambda file: _rows(drawing, **file)).iter_rows():
        if row["warning"]:
            warnings.warn(row["warning"], PageWarning, stacklevel=2)
        if row["error"]:
            raise PageError(row["error"])
        if row["document"] is not None:
            yield row["document"]


def _rows(reader: PDFPageReader, path: str, shown_as: str) -> Iterator[dict[str, Any]]:
    """Tell what happens on another machine: its warnings and errors would stay in Ray's log."""
    nothing = {"document": None, "warning": "", "error": ""}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", PageWarning)
        try:
            for document in reader.lazy_load_data(path, {"file_path": shown_as}):
                yield {**nothing, "document": document}
        except PageError as error:
            yield {**nothing, "error": str(error)}
    yield from ({**nothing, "warning": str(one.message)} for one in told if issubclass(one.category, PageWarning))


class RayEncoder(MultiVectorEncoder):
    """A retriever whose pages are encoded by workers on a Ray cluster; questions are encoded in this process.

    It stands wherever a `MultiVectorEncoder` does and gives the same vectors in the same order. A worker that dies is
    started again, and its pages are encoded once more. Workers end with this object.
    """

    _workers: Sequence[Any] = ()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        device: str | None = None,
        dtype: torch.dtype | str | None = None,
        *,
        pool_factor: int = 1,
        workers: int = 1,
        num_gpus: float = 0,
        num_cpus: float = 1,
    ) -> "RayEncoder":
        """Load a retriever here and on workers; `MultiVectorEncoder.from_pretrained` explains the other arguments.

        Args:
            name_or_path: a name on the Hub, or a folder that all machines share.
            device: of the model in this process, which reads questions.
            dtype: of the workers' models, and of this process's.
            pool_factor: as there.
            workers: models that encode pages at the same time.
            num_gpus: GPUs that each worker takes; 0 for CPUs, 0.5 for two workers on one.
            num_cpus: CPUs that each worker takes, and its threads; one more is kept for drawing pages.

        Raises:
            ValueError: for no worker, or more than the cluster has room for.
        """
        if workers < 1:
            raise ValueError(f"workers is at least 1, got {workers}.")
        if not ray.is_initialized():
            ray.init()
        _check_room("CPU", workers * num_cpus + 1, f"{workers} workers of {num_cpus:g}, and 1 that reads PDFs")
        _check_room("GPU", workers * num_gpus, f"{workers} workers of {num_gpus:g}")
        encoder = super().from_pretrained(name_or_path, device, dtype, pool_factor=pool_factor)
        assert isinstance(encoder, RayEncoder)
        worker = ray.remote(_Worker).options(num_gpus=num_gpus, num_cpus=num_cpus, max_restarts=3, max_task_retries=3)
        place = "cuda" if num_gpus else "cpu"
        threads = max(1, int(num_cpus))
        name = str(Path(name_or_path).absolute()) if Path(name_or_path).is_dir() else str(name_or_path)
        encoder._workers = [worker.remote(name, place, dtype, pool_factor, threads) for _ in range(workers)]
        return encoder

    def stream_images(self, images: Iterable[Image.Image], *, batch_size: int | None = None) -> Iterator[Vectors]:
        """Yield one (N, D) float32 array a page, in order, holding two tasks' pages a worker at most.

        A task is ``batch_size`` pages, by default `PAGES_A_TASK`.

        Raises:
            ValueError: for a ``batch_size`` below 1.
            torch.OutOfMemoryError: when a single page does not fit the memory of a worker's device.
            ray.exceptions.RayError: when the cluster fails, or a worker dies again and again.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        pool, under_way = ActorPool(self._workers), 0
        source = iter(images)
        while batch := list(islice(source, batch_size or PAGES_A_TASK)):
            if under_way == _TASKS_A_WORKER * len(self._workers):
                yield from pool.get_next()
                under_way -= 1
            pool.submit(lambda worker, pages: worker.encode.remote(pages), batch)
            under_way += 1
        while pool.has_next():
            yield from pool.get_next()


class _Worker:
    """A model in a process of Ray's."""

    def __init__(self, name: str, device: str, dtype: torch.dtype | str | None, pool_factor: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self._encoder = MultiVectorEncoder.from_pretrained(name, device, dtype, pool_factor=pool_factor)

    def encode(self, images: list[Image.Image]) -> list[Vectors]:
        """Return one (N, D) float32 array a page."""
        return self._encoder.encode_images(images)


def _check_room(kind: str, needed: float, why: str) -> None:
    """Raise ValueError where Ray would wait for ever for a machine that is not there."""
    there = ray.cluster_resources().get(kind, 0)
    if needed > there:
        raise ValueError(
            f"{needed:g} {kind}s are needed ({why}), and the Ray cluster has {there:g}. Take fewer workers, or smaller "
            f"ones (num_{kind.lower()}s=0.5), or add machines."
        )
