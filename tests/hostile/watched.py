"""Feed PDFs to `reading.py` and watch it from outside: a reader that crashes or hangs is a violation, and replaced."""

import json
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from reading import FILE_TIMEOUT, TIMEOUT, Outcome

PATIENCE = FILE_TIMEOUT + 3 * TIMEOUT
"""Seconds after which a reader hangs: opening, labels and the last page may each use up a program's time."""
_START = 180  # seconds to import LlamaIndex, on a busy machine


@dataclass(frozen=True)
class HostilePdf:
    """One input: the kind of hostility, a name within it, and the bytes."""

    kind: str
    name: str
    content: bytes


class Reader:
    """A process that reads; started when first needed, and anew after it died."""

    def __init__(self, folder: Path) -> None:
        """Keep the files that are read in `folder`."""
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None

    def read(self, pdf: HostilePdf, on_error: str) -> Outcome:
        """Return what became of one file."""
        path = self._folder / "hostile.pdf"
        path.write_bytes(pdf.content)
        process = self._process or self._start()
        print(json.dumps({"path": str(path), "on_error": on_error}), file=process.stdin, flush=True)
        answer = self._answer(process, PATIENCE)
        if answer is not None:
            return Outcome(**answer)
        status = self._stop()
        detail = f"the reader hangs for {PATIENCE:g} s" if status == -9 else f"the reader died with status {status}"
        return Outcome("violation", detail, "", PATIENCE, 0, 0)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._stop()

    def _start(self) -> "subprocess.Popen[str]":
        program = Path(__file__).with_name("reading.py")
        process = subprocess.Popen(
            [sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if self._answer(process, _START) is None:
            process.kill()
            raise RuntimeError(f"{program} does not start; run it by hand to see why.")
        self._process = process
        return process

    def _stop(self) -> int:
        """End the process, and return the status it had or got."""
        process, self._process = self._process, None
        assert process is not None
        status = process.poll()
        process.kill()
        process.communicate()
        return -9 if status is None else status

    @staticmethod
    def _answer(process: "subprocess.Popen[str]", seconds: float) -> dict[str, object] | None:
        """Wait for a line; None when none comes in time, or ever."""
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        line = process.stdout.readline() if ready else ""
        return json.loads(line) if line else None


def outcomes(pdfs: Iterable[HostilePdf]) -> Iterator[tuple[HostilePdf, Outcome]]:
    """Read each file; every other one is told to skip broken pages."""
    with TemporaryDirectory() as folder:
        reader = Reader(Path(folder))
        try:
            for number, pdf in enumerate(pdfs):
                yield pdf, reader.read(pdf, "skip" if number % 2 else "raise")
        finally:
            reader.close()


@dataclass
class Tally:
    """Outcomes counted, and the worst of them."""

    results: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How many of each (kind, result)."""
    errors: Counter[str] = field(default_factory=Counter)
    violations: list[tuple[HostilePdf, Outcome]] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    largest_program: tuple[int, str] = (0, "")
    own_first: int = 0
    own_last: int = 0

    def add(self, pdf: HostilePdf, outcome: Outcome) -> None:
        """Count one outcome."""
        self.results[pdf.kind, outcome.result] += 1
        if outcome.result == "error":
            self.errors[outcome.detail] += 1
        if outcome.result == "violation":
            self.violations.append((pdf, outcome))
        self.slowest = max(self.slowest, (outcome.seconds, f"{pdf.kind}: {pdf.name}"))
        if outcome.program_memory > self.largest_program[0]:
            self.largest_program = (outcome.program_memory, f"{pdf.kind}: {pdf.name}")
        self.own_first = self.own_first or outcome.own_memory
        self.own_last = max(self.own_last, outcome.own_memory)

    @property
    def total(self) -> int:
        """Files read."""
        return self.results.total()

    def report(self) -> str:
        """Say it in a table of Markdown and a few lines."""
        errors = ", ".join(f"{count} {kind}" for kind, count in self.errors.most_common())
        kinds = sorted({kind for kind, _ in self.results})
        rows = [[kind, *(str(self.results[kind, result]) for result in _RESULTS)] for kind in kinds]
        rows.append(["all", *(str(sum(self.results[kind, result] for kind in kinds)) for result in _RESULTS)])
        lines = [f"| kind | {' | '.join(_RESULTS)} |", "|---|" + "--:|" * len(_RESULTS)]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines += [
            "",
            f"{self.total:,} files. Errors: {errors}.",
            f"Slowest: {self.slowest[0]:.1f} s ({self.slowest[1]}).",
            f"Largest program: {self.largest_program[0]} MiB in memory ({self.largest_program[1]}).",
            f"The reading process: {self.own_first} MiB after the first file, at most {self.own_last} MiB.",
        ]
        return "\n".join(lines)


_RESULTS = ("pages", "error", "violation")
