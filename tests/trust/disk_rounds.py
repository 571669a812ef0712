"""An index on a disk that is full, limited or read-only: ``unshare -rm python disk_rounds.py FOLDER``.

A small disk in memory is mounted over FOLDER, which only this process and its children see.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forked import Say, check_no_leftovers, contents, in_a_fork, page, tiny_encoder

from llama_index_ziprerank.indices import ColPaliIndex
from llama_index_ziprerank.retrieval.store import StoreError

MEGABYTE = 1 << 20
DISK = 360  # megabytes


def leave(disk: Path, megabytes: float) -> None:
    """Fill the disk up to this."""
    (disk / "ballast").unlink(missing_ok=True)
    room = shutil.disk_usage(disk).free - int(megabytes * MEGABYTE)
    with (disk / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, room))


def pages(first: int, last: int) -> list[Any]:
    return [page("a.pdf", f"page {number}", 1, side=96) for number in range(first, last)]


def refusal(use: Callable[[], object]) -> str | None:
    """What the index says when it cannot write; None when it can."""
    try:
        use()
    except StoreError as error:
        return str(error)
    return None


def check(folder: Path, encoder: Any, least: dict[str, int]) -> dict[str, int]:
    """Open the index and return what it holds, which is ``least`` or more."""
    with ColPaliIndex.load(folder, model=encoder) as index:
        check_no_leftovers(index)
        there = contents(index)
    assert least.items() <= there.items(), "pages are lost"
    return there


def full_disk(disk: Path, encoder: Any, say: Say) -> None:
    """At every level of room an index is written or refuses, and what it held stays."""
    folder = disk / "index"
    ColPaliIndex.from_documents(pages(0, 3), encoder, folder).close()
    refused = written = 0
    for number, megabytes in enumerate((0, 1, 20, 50, 75, 85, 100, 140, 170)):
        leave(disk, megabytes)

        def write(say: Say, number: int = number) -> None:
            say(refusal(lambda: ColPaliIndex.from_documents(pages(3, 6 + number), encoder, folder).close()))

        code, said = in_a_fork(write)
        assert code == 0, (megabytes, code, said)
        refused, written = refused + (said[0] is not None), written + (said[0] is None)
        assert said[0] is None or "Make room" in said[0], said
        copied, said = in_a_fork(lambda say: persist(folder, disk / "copy", encoder, say))
        assert copied == 0, (megabytes, copied, said)
        leave(disk, 120)
        code, said = in_a_fork(lambda say: say(check(folder, encoder, dict.fromkeys(("page 0", "page 2"), 1))))
        assert code == 0, (megabytes, code, said)
    (disk / "ballast").unlink()
    code, said = in_a_fork(lambda say: ColPaliIndex.from_documents(pages(0, 20), encoder, folder).close())
    assert code == 0, said
    code, said = in_a_fork(lambda say: say(check(folder, encoder, {f"page {n}": 1 for n in range(20)})))
    assert code == 0, said
    say({"full": {"refused": refused, "written": written}})


def persist(folder: Path, copy: Path, encoder: Any, say: Say) -> None:
    """Copy the index over an older copy while there is little room: the copy is the old one or the new one."""
    reason = refusal(lambda: ColPaliIndex.load(folder, model=encoder).persist(copy))
    say(reason)
    left = {file.name for file in copy.parent.iterdir()}
    assert left <= {"index", "copy", "ballast"}, left


def limited(disk: Path, encoder: Any, say: Say) -> None:
    """A limit on the size of files (``ulimit -f``) is an error, and the index stays."""
    folder = disk / "limited"
    ColPaliIndex.from_documents(pages(0, 2), encoder, folder).close()

    def write(say: Say) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
        say(refusal(lambda: ColPaliIndex.from_documents(pages(2, 5), encoder, folder).close()))

    code, said = in_a_fork(write)
    assert code == 0 and said[0] is not None, (code, said)
    code, said = in_a_fork(lambda say: say(check(folder, encoder, {"page 0": 1, "page 1": 1})))
    assert code == 0, said
    shutil.rmtree(folder)
    say({"limited": 1})


def read_only(disk: Path, encoder: Any, say: Say) -> None:
    """A read-only disk is an error that says so, for opening, building and copying."""
    before = {file: file.read_bytes() for file in (disk / "index").rglob("*") if file.is_file()}
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)

    def write(say: Say) -> None:
        say(refusal(lambda: ColPaliIndex.load(disk / "index", model=encoder)))
        say(refusal(lambda: ColPaliIndex.from_documents(pages(0, 1), encoder, disk / "index")))
        say(refusal(lambda: ColPaliIndex.from_documents(pages(0, 1), encoder, disk / "new")))
        with ColPaliIndex.from_documents(pages(0, 1), encoder) as index:
            say(refusal(lambda: index.persist(disk / "new")))

    code, said = in_a_fork(write)
    assert code == 0 and all("Read-only file system" in word for word in said), (code, said)
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert before == {file: file.read_bytes() for file in (disk / "index").rglob("*") if file.is_file()}
    say({"read-only": len(said)})


def main(folder: Path) -> None:
    encoder = tiny_encoder(folder.with_name("model"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "none", str(folder)], check=True)
    say: Say = lambda word: print(json.dumps(word), flush=True)  # noqa: E731
    for rounds in (limited, full_disk, read_only):
        rounds(folder, encoder, say)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
