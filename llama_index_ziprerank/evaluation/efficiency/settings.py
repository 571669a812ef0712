"""What a run of the benchmark is asked for, checked before anything is loaded."""

from dataclasses import dataclass, replace
from math import prod
from typing import get_args

from llama_index_ziprerank.evaluation.efficiency.methods import Kind, Method
from llama_index_ziprerank.reranking.permutation import WINDOW_SIZE
from llama_index_ziprerank.reranking.quantization import Quantization, check_quantization

Size = tuple[int, int]
"""Width and height of a page, in pixels."""

_LONGEST_SIDE = 4096  # the reranker scales larger pages down


@dataclass(frozen=True)
class Settings:
    """What to measure, and how long. ValueError for a field out of its bounds, ImportError without torchao."""

    model: str = "15m"
    """A name in `SHAPES`, or a checkpoint."""
    device: str | None = None
    dtype: str | None = None
    pages: int = WINDOW_SIZE
    size: Size = (768, 1000)
    kinds: tuple[Kind, ...] = get_args(Kind)
    keep_ratios: tuple[float, ...] = (1.0, 0.5, 0.25)
    batches: tuple[int, ...] = ()
    """Questions asked at the same time; empty: 1 and 8, on a CPU 1, which is busy with one question already."""
    counts: tuple[int, ...] = ()
    """Further numbers of pages, each of `size`."""
    sizes: tuple[Size, ...] = ()
    """Further sizes, each with `pages` pages."""
    repeats: int = 5
    """Timed runs of a method, at most; their median counts."""
    seconds: float = 30
    """A method that takes so long is timed fewer times, at least once."""
    limit: float | None = None
    """Seconds after which nothing more is begun; what has been measured by then counts."""
    attempts: int = 1
    """Times that a run is tried when other programs are at work; the last one counts in any case."""
    seed: int = 0
    quantization: Quantization | None = None
    """Smaller weights for the language model of ours, warm, measured beside the full ones."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.kinds) - set(get_args(Kind))):
            raise ValueError(f"Methods are {', '.join(get_args(Kind))}; got {', '.join(unknown)}.")
        if not self.kinds or not self.keep_ratios:
            raise ValueError("There is nothing to measure: name at least one method and one keep_ratio.")
        for keep_ratio in self.keep_ratios:
            if not 0 < keep_ratio <= 1:
                raise ValueError(f"keep_ratio is above 0 and at most 1, got {keep_ratio}.")
        for name, number in [("pages", self.pages), ("repeats", self.repeats), ("attempts", self.attempts)]:
            if number < 1:
                raise ValueError(f"{name} is at least 1, got {number}.")
        if any(count < 1 for count in (*self.counts, *self.batches)):
            raise ValueError(f"Numbers of pages and of questions are at least 1, got {(*self.counts, *self.batches)}.")
        for width, height in (self.size, *self.sizes):
            if not (32 <= width <= _LONGEST_SIDE and 32 <= height <= _LONGEST_SIDE):
                raise ValueError(f"A page has 32 to {_LONGEST_SIDE} pixels a side, got {width}x{height}.")
        if self.quantization is not None and "ours" not in self.kinds:
            raise ValueError(f"Quantization is for ours; got methods {', '.join(self.kinds)}. Name ours among them.")
        check_quantization(self.quantization)

    def on(self, device: str) -> "Settings":
        """Fill in what depends on the device's type."""
        return self if self.batches else replace(self, batches=(1,) if device == "cpu" else (1, 8))

    @property
    def methods(self) -> list[Method]:
        """What is compared, the paper's way first, smaller weights last."""
        rivals = [Method(kind) for kind in get_args(Kind) if kind in self.kinds and kind != "ours"]
        ours = [
            Method("ours", warm, keep_ratio, batch)
            for batch in self.batches
            for warm in (False, True)
            for keep_ratio in self.keep_ratios
        ]
        if self.quantization is not None:
            ours += [replace(method, quantization=self.quantization) for method in ours if method.warm]
        return [*rivals, *(ours if "ours" in self.kinds else [])]

    @property
    def curves(self) -> list[Method]:
        """What is drawn over numbers of pages and sizes: the paper's way, and ours as it comes, cached, and pruned."""
        drawn = [Method("paper"), Method("ours"), Method("ours", True), Method("ours", True, 0.5)]
        return [method for method in drawn if method.kind in self.kinds]

    @property
    def lists(self) -> list[tuple[list[Method], int, Size]]:
        """What is measured one after another: methods, on so many pages of that size.

        The table comes first, then the curves' points, least pixels first: the last are what a `limit` may cost.
        """
        points = [*((count, self.size) for count in self.counts), *((self.pages, size) for size in self.sizes)]
        points.sort(key=lambda point: point[0] * prod(point[1]))
        return [(self.methods, self.pages, self.size), *((self.curves, *point) for point in points)]


def parse_size(text: str) -> Size:
    """Read ``"768x1000"``; ValueError for anything else."""
    width, _, height = text.strip().lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ValueError(f"A size is a width and a height in pixels, such as 768x1000; got {text!r}.")
    return int(width), int(height)
