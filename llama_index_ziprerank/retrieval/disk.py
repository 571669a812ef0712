"""What a full, read-only or shared disk does to an index: one clear error, before anything is damaged.

A store writes through memory maps. When the disk has no room for a page of such a map the system kills the process
(SIGBUS), so room is looked for beforehand: no error could be raised afterwards.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from llama_index_ziprerank.retrieval.store import StoreError

_ADVICE = {
    errno.ENOSPC: "Make room; what was there before is intact, and running again continues.",
    errno.EDQUOT: "Your quota is used up. Make room; what was there before is intact, and running again continues.",
    errno.EFBIG: "The system limits the size of files (ulimit -f). Raise it; what was there before is intact.",
    errno.EROFS: "An index is opened for writing: copy it to a disk that can be written.",
    errno.EACCES: "An index is opened for writing: take a folder that you may write to, or copy it to one.",
    errno.ENAMETOOLONG: "Take a folder with a shorter name.",
    errno.EBUSY: "A place where a disk is mounted cannot be replaced: name a folder inside of it.",
    errno.EPERM: "An index is opened for writing: take a folder that you may write to, or copy it to one.",
}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a disk refuses into a StoreError that names the folder and says what to do.

    Raises:
        StoreError: for no room, no right to write, and limits; any other OSError passes.
    """
    try:
        yield
    except shutil.Error as error:  # of a folder's copy: every file that failed, and why
        *_, reason = error.args[0][0]
        raise StoreError(f"{path} cannot be written ({reason}). What was there before is intact.") from error
    except OSError as error:
        if error.errno not in _ADVICE:
            raise
        raise StoreError(f"{path} cannot be written ({error.strerror}). {_ADVICE[error.errno]}") from error


def check_room(path: Path, wanted: int) -> None:
    """Check that the disk of ``path`` (which need not exist) has ``wanted`` bytes left.

    Raises:
        StoreError: when it has less.
    """
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise StoreError(
            f"The disk of {path} has {free / 1e6:.0f} MB left, and {wanted / 1e6:.0f} MB are wanted before writing. "
            f"{_ADVICE[errno.ENOSPC]}"
        )


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; several processes may write the same one."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def lock(path: Path, folder: Path) -> FileLock:
    """Take the lock file ``path``, which stands for ``folder``; the system gives it back when the process ends.

    Raises:
        StoreError: when another process, or another object of this one, holds it.
    """
    held = FileLock(path, timeout=0, thread_local=False)
    try:
        with disk_errors(folder):
            held.acquire()
    except (Timeout, FileNotFoundError) as error:  # not found: whoever held it is just leaving, and took it along
        raise StoreError(
            f"The index {folder} is open elsewhere (in another process or another index object). "
            "Close it there, or keep the vectors on a Qdrant server (QdrantStore), which serves several processes."
        ) from error
    return held
