"""The laws of running other programs: whatever they do ends within bounds and is told in words."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from llama_index_ziprerank.pages.bounded import MIB, Bounds, Finished, run_bounded

BOUNDS = Bounds(timeout=20, max_memory=256)


def run(program: str, bounds: Bounds = BOUNDS, *, most_output: int = MIB, given: bytes | None = None) -> Finished:
    return run_bounded([sys.executable, "-I", "-S", "-c", program], bounds, most_output=most_output, given=given)


def test_a_program_that_behaves_is_left_alone() -> None:
    done = run("import sys; print(sys.stdin.read().upper()); sys.exit('said')", given=b"given")
    assert (done.output, done.messages, done.status, done.failure) == (b"GIVEN\n", "said\n", 1, None)


def test_a_program_that_never_ends_is_ended() -> None:
    start = time.monotonic()
    assert run("while True: pass", Bounds(0.5, 256)).failure == "took longer than 0.5 s (`timeout`)"
    assert time.monotonic() - start < 10


def test_a_program_cannot_take_more_memory_than_it_may() -> None:
    done = run("x = bytearray(1 << 30)")
    assert done.failure == "needed more than 256 MiB of memory (`max_memory`)"
    assert run("x = bytearray(1 << 30)", Bounds(20, 2048)).failure is None


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_program_cannot_write_more_than_it_may(stream: str) -> None:
    done = run(f"import sys\nwhile True: sys.{stream}.write('x' * 9999)")
    assert done.failure == "wrote more than 1 MiB" or "File too large" in done.messages or done.status != 0
    assert max(len(done.output), len(done.messages)) <= MIB


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("SIGSEGV", "crashed the program (SIGSEGV)"),
        ("SIGXCPU", "took longer than 20 s (`timeout`)"),
        ("SIGXFSZ", "wrote more than 1 MiB"),
    ],
)
def test_the_signal_that_ends_a_program_is_told_in_words(name: str, told: str) -> None:
    end = f"import os, signal; signal.signal(signal.{name}, signal.SIG_DFL); os.kill(os.getpid(), signal.{name})"
    assert run(end).failure == told


def test_a_program_ends_by_itself_when_nobody_is_there_to_end_it(tmp_path: Path) -> None:
    """The limit on processor time outlives the process that set it."""
    orphan = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(__import__('os').getpid()))\nwhile True: pass"
    parent = (
        "import sys; from llama_index_ziprerank.pages.bounded import *\n"
        f"run_bounded([sys.executable, '-I', '-S', '-c', {orphan!r}], Bounds(1, 256), most_output=99)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    pid = int((tmp_path / "pid").read_text())
    while _is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False
