"""Opening an index: its folder, store and model are checked against each other, and an error undoes what was opened."""

import atexit
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

import torch

from llama_index_ziprerank.checkpoints import resolve_retriever
from llama_index_ziprerank.retrieval.edge import EdgeStore, holds_store
from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder
from llama_index_ziprerank.retrieval.folder import IndexFolder
from llama_index_ziprerank.retrieval.manifest import Manifest
from llama_index_ziprerank.retrieval.store import PageStore, StoreError


def load_encoder(
    model: str | Path | MultiVectorEncoder, device: str | None, dtype: torch.dtype | str | None, pool_factor: int
) -> MultiVectorEncoder:
    """Load a model by its name; one that is loaded is returned as it is."""
    if isinstance(model, MultiVectorEncoder):
        return model
    return MultiVectorEncoder.from_pretrained(model, device, dtype, pool_factor=pool_factor)


def describe(model: str | Path | MultiVectorEncoder, encoder: MultiVectorEncoder, *, has_vectors: bool) -> Manifest:
    """Return the manifest of an index that is built with this model."""
    name = encoder.name if isinstance(model, MultiVectorEncoder) else str(model)
    if resolve_retriever(name) == name and Path(name).is_dir():
        name = str(Path(name).absolute())  # found from anywhere
    return Manifest(name, encoder.family, encoder.fingerprint, encoder.pool_factor, has_vectors)


@contextmanager
def opened(folder: IndexFolder, store: PageStore | None) -> Iterator[Callable[[], PageStore]]:
    """Lock the folder of an index whose vectors are in it, and give what opens its store; undone by an error."""
    made: list[PageStore] = []

    def open_store() -> PageStore:
        if store is not None:
            return store
        _check_vectors(folder)
        made.append(EdgeStore(folder.store))
        return made[-1]

    if store is None:
        folder.lock()
    try:
        yield open_store
    except BaseException:
        for one in made:
            one.close()
        folder.release()
        raise


def begin(folder: IndexFolder, manifest: Manifest, store: PageStore | None) -> None:
    """Begin an index, or check that the one in the folder can be continued.

    Raises:
        ValueError: when it cannot, or the store belongs to another folder.
    """
    if folder.holds_index:
        folder.manifest().check_same_model(manifest, folder.path)
        folder.manifest().check_same_pooling(manifest, folder.path)
        folder.manifest().check_store(is_given=store is not None, folder=folder.path)
        return
    folder.check_free()
    if store is not None and (count := store.count()):
        raise ValueError(
            f"The store already holds {count} pages, whose images are in another folder. "
            "Give that folder as persist_dir, or use an empty store."
        )
    folder.create(manifest)


def temporary_folder() -> str:
    """Make a folder that goes with the process at the latest: nodes may outlive an index that nobody closed.

    The end of a process that is forked off takes nothing along.
    """
    path, process = mkdtemp(prefix="ziprerank-"), os.getpid()

    def remove() -> None:
        if os.getpid() == process:
            shutil.rmtree(path, ignore_errors=True)

    atexit.register(remove)
    return path


def _check_vectors(folder: IndexFolder) -> None:
    """Check that the vectors are not lost: an index would open empty, and clearing up would remove all images.

    A process that was killed before it stored its first page leaves images and an empty ``store/``.

    Raises:
        StoreError: when ``store/`` is gone, or empty where there are images.
    """
    is_emptied = folder.holds_images and not folder.was_interrupted and not holds_store(folder.store)
    if is_emptied or not folder.store.is_dir():
        raise StoreError(
            f"{folder.path} is damaged: the vectors of its pages ({folder.store.name}/) are gone. "
            "Restore that folder from a copy, or build the index again in another folder."
        )
