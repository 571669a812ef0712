"""Vision features of pages that were seen before: in memory up to a budget, on disk beyond it and beyond the process.

A page is known by what it shows (a hash of its image file or of its pixels), under a checkpoint whose vision tower,
resize and normalisation are known by a fingerprint. So nothing has to be removed when a page or a model changes.
Several processes may share a folder: files are written whole or not at all, and equal names hold equal features.
"""

import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from cachetools import LRUCache
from transformers import Qwen3VLProcessor

from llama_index_ziprerank.reranking.features import PageFeatures, join_sides
from llama_index_ziprerank.reranking.inputs import unreadable_page
from llama_index_ziprerank.reranking.page_keys import (
    CheckpointKey,
    PageFile,
    PageSource,
    page_digest,
    page_size,
    visual_tokens,
)
from llama_index_ziprerank.reranking.stored_features import TORCH_TYPES, StoredFeatures, StoredType, check_stored_type

MEMORY_BYTES = 2**30
"""Default budget: 900 pages of nano in float32, 44 pages of an 8B model in bfloat16."""

_FILE_OVERHEAD = 1024  # header of a file, at most
_HOUR = 3600.0  # seconds after which a file that is not whole yet has no writer any more

_MOST_MAPPED = 32_768  # files in the memory of a CPU; Linux allows a process 65,530 maps, and then denies it memory

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DiskCost:
    """What caching some pages will take on disk."""

    pages: int
    """Pages whose features are not there yet."""
    bytes: int


class FeatureCache:
    """Features by page and checkpoint; safe for several threads, its folder for several processes.

    Features that come out are those of the stored type also when they have just been put in, so a page has the same
    scores the first time and every time after.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        memory_bytes: int = MEMORY_BYTES,
        dtype: StoredType | None = None,
    ) -> None:
        """Open a cache.

        Args:
            folder: where features outlive the process, made when the first is written. None: memory alone.
            memory_bytes: budget for features on the model's device; the least recently used leave. 0: disk alone.
            dtype: stored type. None: what the folder holds of a checkpoint, else the model's own, which is exact.

        Raises:
            ValueError: for a negative budget, an unknown type, or a folder that is a file.
        """
        if memory_bytes < 0:
            raise ValueError(f"memory_bytes is 0 (none) or more, got {memory_bytes}.")
        self.folder = None if folder is None else Path(folder).absolute()
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"The cache folder {self.folder} is a file. Name a folder, or one that is not there yet.")
        self.dtype = None if dtype is None else check_stored_type(dtype)
        self._memory: LRUCache[tuple[str, str], StoredFeatures] = LRUCache(memory_bytes, getsizeof=_size)
        self._lock = threading.Lock()
        self._types: dict[str, StoredType] = {}
        self._is_writable, self._is_swept = True, False

    @property
    def memory_bytes(self) -> int:
        """Bytes that the features in memory take now, never above the budget."""
        return int(self._memory.currsize)

    @property
    def memory_budget(self) -> int:
        """Bytes that they may take."""
        return int(self._memory.maxsize)

    @property
    def is_written(self) -> bool:
        """Whether features go to disk: there is a folder, and the last ones could be written."""
        return self.folder is not None and self._is_writable

    def get(self, key: CheckpointKey, digest: str) -> PageFeatures | None:
        """Return a page's features, None when they are not known."""
        stored, name = self.stored_type(key), self._name(key, digest)
        with self._lock:
            features = self._memory.get(name)
        if features is None and self.folder is not None:
            features = StoredFeatures.map(self._path(name), "/".join(name), key.shape, stored)
            if features is not None:
                if features.nbytes <= self.memory_budget // _MOST_MAPPED:
                    features = deepcopy(features)
                features = self._keep(name, features, key.device)
        return None if features is None else features.unpack(key.dtype, key.device)

    def put(self, key: CheckpointKey, digest: str, features: PageFeatures) -> PageFeatures:
        """Keep a page's features and return them as they come out again."""
        name = self._name(key, digest)
        stored = StoredFeatures.pack(features, self.stored_type(key))
        self._write(name, stored)
        return self._keep(name, stored, key.device).unpack(key.dtype, key.device)

    def holds(self, key: CheckpointKey, digest: str) -> bool:
        """Whether a page's features are on disk or, where they are not written, in memory; a file may prove damaged."""
        name = self._name(key, digest)
        on_disk = self.folder is not None and self._path(name).exists()
        return on_disk or (not self.is_written and name in self._memory)

    def stored_type(self, key: CheckpointKey) -> StoredType:
        """Return in which type the features of a checkpoint are stored here."""
        if self.dtype is not None:
            return self.dtype
        if key.fingerprint not in self._types:
            own: list[StoredType] = [name for name, kind in TORCH_TYPES.items() if kind == key.dtype]
            there = [name for name in (*own, *TORCH_TYPES) if self._has_folder(key.fingerprint, name)]
            self._types[key.fingerprint] = (there or own)[0]
        return self._types[key.fingerprint]

    def cost(self, keys: Sequence[CheckpointKey], processor: Qwen3VLProcessor, pages: Iterable[PageSource]) -> DiskCost:
        """Return what `put` will write for pages that are not there yet, from their sizes alone.

        Raises:
            ValueError: naming a page that the model cannot read.
        """
        missing: dict[str, int] = {}
        for place, page in enumerate(pages):
            digest = page_digest(page)
            lacking = [key for key in keys if digest not in missing and not self.holds(key, digest)]
            if lacking:
                size = page_size(page)
                try:
                    tokens = [visual_tokens(processor, size, key.side) for key in lacking]
                except ValueError as error:
                    raise unreadable_page(place, size, error) from error
                missing[digest] = sum(
                    key.shape.stored_bytes(count, self.stored_type(key)) + _FILE_OVERHEAD
                    for key, count in zip(lacking, tokens, strict=True)
                )
        return DiskCost(len(missing), sum(missing.values()))

    def _keep(self, name: tuple[str, str], features: StoredFeatures, device: torch.device) -> StoredFeatures:
        """Move features to the device and remember them there; those beyond the whole budget stay where they are."""
        if features.nbytes > self._memory.maxsize:
            return features
        features = features.to(device)
        with self._lock:
            self._memory[name] = features
        return features

    def _write(self, name: tuple[str, str], features: StoredFeatures) -> None:
        """Write to disk; where that fails the cache goes on in memory, since features can be made again."""
        if self.folder is None:
            return
        unfinished = self.folder / "unfinished"
        try:
            features.write(self._path(name), "/".join(name), unfinished)
            self._is_writable = True
            if not self._is_swept:
                _sweep(unfinished)
                self._is_swept = True
        except OSError as error:
            if self._is_writable:
                _log.warning(
                    "Page features cannot be written to %s; until they can, they are kept in memory as far as its "
                    "budget goes: %s",
                    self.folder,
                    error,
                )
            self._is_writable = False

    def _path(self, name: tuple[str, str]) -> Path:
        assert self.folder is not None
        return _file(self.folder / name[0], name[1])

    def _has_folder(self, fingerprint: str, stored: StoredType) -> bool:
        return self.folder is not None and (self.folder / f"{fingerprint}-{stored}").is_dir()

    def _name(self, key: CheckpointKey, digest: str) -> tuple[str, str]:
        return f"{key.fingerprint}-{self.stored_type(key)}", digest


def forget_image_files(folder: Path, files: Iterable[Path]) -> None:
    """Remove from a cache folder what it holds of these image files, for all checkpoints; missing files are fine.

    What a file shows that stays beside one of them is kept: pages of two PDFs, or of two versions, may look the same.
    """
    kinds = [kind for kind in folder.iterdir() if kind.is_dir()]
    leaving = {file for file in files if file.is_file()}
    sizes: defaultdict[int, list[Path]] = defaultdict(list)  # of what stays: a comparison reads few files
    for place in {file.parent for file in leaving}:
        for file in {file for file in place.iterdir() if file.is_file()} - leaving:
            with suppress(FileNotFoundError):  # other processes write and remove pages meanwhile
                sizes[file.stat().st_size].append(file)
    for file in leaving:
        content = _content(file)
        if content is not None and not any(_content(other) == content for other in sizes[len(content)]):
            for kind in kinds:
                _file(kind, page_digest(PageFile(content))).unlink(missing_ok=True)


def _content(file: Path) -> bytes | None:
    """Read a file; None when another process has removed it."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


UnseenPage = tuple[int, PageSource, Sequence[int]]
"""A page, its place in the list that it comes from, and the sides at which its features are not known."""

Look = Callable[[Iterable[UnseenPage]], Iterable[Sequence[PageFeatures]]]
"""Runs the vision tower over pages: the features of each, one for each of its sides."""


def cached_features(
    cache: FeatureCache, keys: Sequence[CheckpointKey], pages: Sequence[tuple[int, PageSource]], look: Look
) -> list[PageFeatures]:
    """Return the features of every page, from the cache where it has them; of pages that show the same, look at one.

    Of a page that is known at some of its sides the others alone are looked at.
    """
    digests = [page_digest(page) for _, page in pages]
    names = [(digest, key) for digest in dict.fromkeys(digests) for key in keys]
    features = {(digest, key): found for digest, key in names if (found := cache.get(key, digest)) is not None}
    missing: defaultdict[str, list[CheckpointKey]] = defaultdict(list)
    for digest, key in names:
        if (digest, key) not in features:
            missing[digest].append(key)
    unseen = [(*pages[digests.index(digest)], [key.side for key in lacking]) for digest, lacking in missing.items()]
    for (digest, lacking), seen in zip(missing.items(), look(unseen), strict=True):
        features |= {(digest, key): cache.put(key, digest, side) for key, side in zip(lacking, seen, strict=True)}
    return [join_sides([features[digest, key] for key in keys]) for digest in digests]


def fill_cache(
    cache: FeatureCache,
    keys: Sequence[CheckpointKey],
    pages: Iterable[PageSource],
    look: Look,
) -> int:
    """Cache the features of pages that it lacks, a bounded number at a time; return how many these were.

    What is not written to disk goes on until the memory's budget is full: each further page would put out another.
    """
    waiting: deque[tuple[str, list[CheckpointKey]]] = deque()

    def missing() -> Iterator[UnseenPage]:
        seen: set[str] = set()
        for place, page in enumerate(pages):
            digest = page_digest(page)
            lacking = [key for key in keys if digest not in seen and not cache.holds(key, digest)]
            if lacking:
                waiting.append((digest, lacking))
                yield place, page, [key.side for key in lacking]
            seen.add(digest)

    room = cache.memory_budget
    written = 0
    for features in look(missing()):
        digest, lacking = waiting.popleft()
        for key, side in zip(lacking, features, strict=True):
            cache.put(key, digest, side)
        if not cache.is_written:
            room -= sum(
                key.shape.stored_bytes(len(side.merged), cache.stored_type(key))
                for key, side in zip(lacking, features, strict=True)
            )
            if room < 0:
                _log.warning(
                    "The memory for page features is full: pages after the first %d new ones are left out.", written
                )
                break
        written += 1
    return written


def _sweep(unfinished: Path) -> None:
    """Remove files in the making whose writer was killed."""
    for file in unfinished.iterdir():
        try:
            if time.time() - file.stat().st_mtime > _HOUR:
                file.unlink()
        except OSError:  # its writer, or another process that sweeps, was faster; or it is no file, or another user's
            continue


def _file(kind: Path, digest: str) -> Path:
    """Return where the features of a page lie: folders of moderate size, whatever the number of pages."""
    return kind / digest[:2] / f"{digest}.safetensors"


def _size(features: StoredFeatures) -> int:
    return features.nbytes
