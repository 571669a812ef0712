"""Work that one process does at a time: a second one is told so, before it pays or spoils what the first has begun."""

import sys
from pathlib import Path
from typing import IO


def hold(file: IO[bytes], path: Path) -> None:
    """Hold an open file, which stands for the work in `path`, until it is closed or the process ends.

    Nothing is held on Windows, nor on a file system that knows no locks.

    Raises:
        ValueError: it is held already.
    """
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(
            f"Another process is at work on {str(path)!r}. Wait for its end, or name another place."
        ) from error
    except OSError:  # no locks here
        return
