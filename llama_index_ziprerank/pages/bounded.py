"""Run another program so that nothing it does takes this process along: its time, memory and output have limits.

A file may crash the program that reads it, hang it, or make it claim all memory. So hostile bytes are parsed in child
processes only, and a shell sets the limits before it becomes the program. Where there is no POSIX shell (Windows), and
for memory on macOS, which ignores that limit, the limit on time alone remains.
"""

import re
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from tempfile import TemporaryFile

MIB = 1 << 20
_BLOCK = 512  # bytes; the unit of `ulimit -f`
_SHELL = Path("/bin/sh")
_LIMIT_AND_RUN = '{ ulimit -c 0; ulimit -t "$1"; ulimit -v "$2"; ulimit -f "$3"; } 2>/dev/null; shift 3; exec "$@"'
_OUT_OF_MEMORY = re.compile(r"^(Out of memory|MemoryError|.*std::bad_alloc)", re.MULTILINE)


@dataclass(frozen=True)
class Bounds:
    """What a program may take before it is ended. The names are those of the choices of `read_pages`."""

    timeout: float
    """Seconds of the clock. As many of the processor end it even when this process is no longer there to do so."""
    max_memory: int
    """MiB of address space."""


@dataclass(frozen=True)
class Finished:
    """What a program left behind."""

    output: bytes
    messages: str
    """What it wrote to stderr."""
    status: int
    """Its exit status; negative the signal that ended it."""
    failure: str | None
    """Why it did not end by itself, as the end of a sentence that begins with what it did: "took longer than 2 s". None
    when it did end, whatever its status."""


def run_bounded(command: Sequence[str], bounds: Bounds, *, most_output: int, given: bytes | None = None) -> Finished:
    """Run `command` within `bounds`; `most_output` bytes are the limit of its stdout and of its stderr.

    `given` is its standard input. The program is looked up as it stands: pass a full path.
    """
    with TemporaryFile() as output, TemporaryFile() as messages:
        try:
            status = subprocess.run(
                _limited(command, bounds, most_output),
                input=given,
                stdin=subprocess.DEVNULL if given is None else None,
                stdout=output,
                stderr=messages,
                timeout=bounds.timeout,
            ).returncode
        except subprocess.TimeoutExpired:
            return Finished(b"", "", -signal.SIGTERM, _too_long(bounds))
        for file in (output, messages):
            file.seek(0)
        said = messages.read(most_output).decode("utf-8", errors="replace")
        return Finished(output.read(most_output), said, status, _failure(status, said, bounds, most_output))


def _limited(command: Sequence[str], bounds: Bounds, most_output: int) -> list[str]:
    program = list(command)
    if not _SHELL.exists():
        return program
    limits = (ceil(bounds.timeout) + 1, bounds.max_memory * MIB // 1024, ceil(most_output / _BLOCK))
    return [str(_SHELL), "-c", _LIMIT_AND_RUN, "sh", *map(str, limits), *program]


def _failure(status: int, messages: str, bounds: Bounds, most_output: int) -> str | None:
    if _OUT_OF_MEMORY.search(messages):
        return f"needed more than {bounds.max_memory:,} MiB of memory (`max_memory`)"
    if status >= 0:
        return None
    name = signal.Signals(-status).name
    if name == "SIGXCPU":
        return _too_long(bounds)
    if name == "SIGXFSZ":
        return f"wrote more than {most_output / MIB:.3g} MiB"
    return f"crashed the program ({name})"


def _too_long(bounds: Bounds) -> str:
    return f"took longer than {bounds.timeout:g} s (`timeout`)"
