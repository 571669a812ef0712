"""A cache's folder among processes, and what a cache takes of its own: no half-written page, few memory maps."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from llama_index_ziprerank.reranking.feature_cache import FeatureCache
from llama_index_ziprerank.reranking.features import PageFeatures
from llama_index_ziprerank.reranking.page_keys import CheckpointKey
from llama_index_ziprerank.reranking.stored_features import FeatureShape, StoredFeatures

SHAPE = FeatureShape(width=8, layers=2, merge=2)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists the maps of a process")
def test_many_small_pages_in_memory_do_not_take_a_map_each(tmp_path: Path) -> None:
    def maps() -> int:
        return Path("/proc/self/maps").read_text().count(str(tmp_path))

    key, count = CheckpointKey("f" * 32, SHAPE, torch.float32, torch.device("cpu"), 1024), 50
    cache = FeatureCache(tmp_path, memory_bytes=0)
    for page in range(count):
        cache.put(key, f"{page:064d}", _numbered(page, 16))
    large = FeatureCache(tmp_path)  # a process may have 65,530 maps, and this memory has room for more pages
    small = FeatureCache(tmp_path, memory_bytes=count * _numbered(0, 16).merged.nbytes * 3)
    for cache, expected in ((large, 0), (small, count)):
        for page in range(count):
            found = cache.get(key, f"{page:064d}")
            assert found is not None and (found.merged == page).all() and (found.deepstack[1] == page).all()
        del found
        assert maps() == expected


_WRITER = """
import sys, torch
from llama_index_ziprerank.compat import import_torchvision
import_torchvision()
from llama_index_ziprerank.reranking.feature_cache import FeatureCache
from llama_index_ziprerank.reranking.features import PageFeatures
from llama_index_ziprerank.reranking.page_keys import CheckpointKey
from llama_index_ziprerank.reranking.stored_features import FeatureShape

folder, tokens = sys.argv[1], int(sys.argv[2])
key = CheckpointKey("f" * 32, FeatureShape(8, 2, 2), torch.float32, torch.device("cpu"), 1024)
cache = FeatureCache(folder, memory_bytes=0)
print("begun", flush=True)
while True:
    for page in range(6):
        merged, *layers = torch.full((3, tokens, 8), float(page))
        cache.put(key, f"{page:064d}", PageFeatures(merged, tuple(layers), (1, 4, tokens)))
"""


def _numbered(page: int, tokens: int) -> PageFeatures:
    """The same page as `_WRITER` writes."""
    merged, *layers = torch.full((3, tokens, 8), float(page))
    return PageFeatures(merged, tuple(layers), (1, 4, tokens))


def _read_all(folder: Path, tokens: int) -> int:
    """Read the pages of `_WRITER` and check what they say; return how many there are."""
    found = 0
    for path in sorted(folder.glob("*-float32/*/*.safetensors")):
        name = f"{path.parent.parent.name}/{path.stem}"
        stored = StoredFeatures.map(path, name, SHAPE, "float32")
        assert stored is not None, path
        assert (stored.merged.values == int(path.stem)).all() and (stored.deepstack.values == int(path.stem)).all()
        assert stored.grid == (1, 4, tokens)
        found += 1
    return found


@pytest.mark.skipif(os.name == "nt", reason="kills as only POSIX can")
def test_processes_share_a_folder_and_one_killed_while_it_writes_leaves_no_bad_entry(tmp_path: Path) -> None:
    tokens = 20_000  # 2 MB a page, so that the other process dies in the middle of one
    key = CheckpointKey("f" * 32, SHAPE, torch.float32, torch.device("cpu"), 1024)
    cache, unfinished = FeatureCache(tmp_path, memory_bytes=0), tmp_path / "unfinished"
    arguments = [sys.executable, "-c", _WRITER, str(tmp_path), str(tokens)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "begun\n"
        for page in range(6):
            cache.put(key, f"{page:064d}", _numbered(page, tokens))
            assert _read_all(tmp_path, tokens) > page
        while not _files(unfinished):
            time.sleep(0.0005)
        writer.send_signal(signal.SIGKILL)
    assert _read_all(tmp_path, tokens) == 6
    for left in _files(unfinished):
        os.utime(left, (0, 0))  # an hour has passed
    FeatureCache(tmp_path).put(key, "0" * 64, _numbered(0, tokens))
    assert not _files(unfinished)
