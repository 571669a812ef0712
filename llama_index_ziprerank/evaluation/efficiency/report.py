"""What the benchmark has found: rows, and what is worked out of them."""

from dataclasses import asdict, dataclass
from typing import Any

from llama_index_ziprerank.evaluation.efficiency.methods import Method
from llama_index_ziprerank.evaluation.efficiency.settings import Settings, Size


@dataclass(frozen=True)
class Environment:
    """Where it ran, and what."""

    device: str
    threads: int
    """Of torch, on the host."""
    dtype: str
    torch: str
    transformers: str
    parameters: int
    weight_bytes: int
    matmul_peak: float
    """FLOP a second of a large square matrix product."""
    memory: str
    """What is meant by it."""


@dataclass(frozen=True)
class Row:
    """A method on a list of pages. Times, tokens and FLOPs are one question's; memory is the whole batch's."""

    method: Method
    pages: int
    size: Size
    milliseconds: dict[str, float]
    """By stage: medians, so they need not add up."""
    total: float
    """Milliseconds from images, or features, to the order."""
    fastest: float
    slowest: float
    others: float
    """Part of the machine's CPU time that other programs took, at most, during a run that counts."""
    tokens: int
    """That the language model reads, padding included."""
    peak_bytes: int
    """Weights, given features, and what the run needs at most besides."""
    flops: int
    rounds: int
    """Timed runs."""


@dataclass(frozen=True)
class Change:
    """What smaller weights change about the answer to the first question, pages warm and over one window."""

    keep_ratio: float
    logits: float
    """Largest change of a logit."""
    spread: float
    """Largest distance between two pages' logits with the full weights, to compare it with."""
    same_order: bool


@dataclass(frozen=True)
class Report:
    """One run of the benchmark."""

    settings: Settings
    environment: Environment
    rows: list[Row]
    points: list[Row]
    """Of the curves over pages and sizes."""
    difference: float | None
    """Largest distance of our logits, nothing pruned, from the paper's way; None unless both ran over one window."""
    spread: float | None
    """Largest distance between two pages' logits in the paper's way, to compare it with."""
    out_of_memory: list[str]
    """Methods that the device has too little memory for, as the table calls them."""
    changes: list[Change]
    """By `Settings.quantization`, for each part of the visual tokens that is kept; empty over several windows."""

    def share_of_peak(self, row: Row) -> float:
        """Part of the measured matmul peak that a row's arithmetic reaches."""
        return row.flops / (row.total / 1000) / self.environment.matmul_peak

    def speed_up(self, row: Row) -> float | None:
        """How many times faster than the paper's way on the same pages; None when that was not run."""
        paper = self._paper(row)
        return None if paper is None else paper.total / row.total

    def share_of_memory(self, row: Row) -> float | None:
        """Peak memory as a part of what the paper's way needs; None when that was not run."""
        paper = self._paper(row)
        return None if paper is None else row.peak_bytes / paper.peak_bytes

    def _paper(self, row: Row) -> Row | None:
        """Find the paper's way on the same pages."""
        of_same_pages = (r for r in (*self.rows, *self.points) if (r.pages, r.size) == (row.pages, row.size))
        return next((other for other in of_same_pages if other.method.kind == "paper"), None)

    def as_json(self) -> dict[str, Any]:
        """Write everything as JSON values."""
        return {
            **asdict(self),
            "rows": [self._row_as_json(row) for row in self.rows],
            "points": [self._row_as_json(row) for row in self.points],
        }

    def _row_as_json(self, row: Row) -> dict[str, Any]:
        worked_out = {
            "speed_up": self.speed_up(row),
            "share_of_memory": self.share_of_memory(row),
            "share_of_peak": self.share_of_peak(row),
        }
        return {"label": row.method.label, **asdict(row), **worked_out}
