"""The benchmark as a picture: a bar a method, by stage, and its memory; below, curves.

These are time over the tokens kept, beside what the arithmetic promises; over numbers of pages; and over page sizes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from llama_index_ziprerank.evaluation.efficiency.methods import Method
from llama_index_ziprerank.evaluation.efficiency.report import Report, Row

COLOURS = {"prepare": "#c3ccd5", "vision": "#3b6ea8", "prune": "#e0a030", "llm": "#1b7f4b"}
NAMES = {
    "prepare": "waiting for page images",
    "vision": "vision tower",
    "prune": "prompt, pruning",
    "llm": "language model",
}
MEMORY, GRID = "#8a94a0", "#e3e8ec"
CURVES_HEIGHT = 4.4  # inches
MARKS = "osD^vP"
_BESIDE: dict[str, Any] = {"textcoords": "offset points", "ha": "left"}


def draw(report: Report, path: Path) -> None:
    """Write the picture, in the format that the path's ending names."""
    by_pages, by_size = _curve_rows(report)
    curves: list[tuple[str, list[Row], Callable[[Row], float]]] = []
    if len({row.pages for row in by_pages}) > 1:
        curves.append(("pages", by_pages, lambda row: row.pages))
    if len({row.size for row in by_size}) > 1:
        curves.append(("megapixels of a page", by_size, lambda row: row.size[0] * row.size[1] / 1e6))
    kept = [row for row in report.rows if row.method == Method("ours", warm=True, keep_ratio=row.method.keep_ratio)]
    panels = len(curves) + (len(kept) > 1)
    bars_height = 1.6 + 0.42 * len(report.rows)
    heights = [bars_height, CURVES_HEIGHT] if panels else [bars_height]
    figure = Figure(figsize=(13, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_title(report), x=0.01, ha="left", fontsize=13)
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
    times, memory = parts[0, 0].subplots(1, 2, width_ratios=[3, 1], sharey=True)
    _draw_times(times, report)
    _draw_memory(memory, report)
    if panels:
        axes = iter(parts[1, 0].subplots(1, panels, squeeze=False)[0])
        if len(kept) > 1:
            _draw_kept(next(axes), kept)
        for axis, (name, rows, place) in zip(axes, curves, strict=True):
            _draw_curves(axis, name, rows, place)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _curve_rows(report: Report) -> tuple[list[Row], list[Row]]:
    """Find what belongs to each curve: the table's own rows of the same methods are points of both."""
    settings = report.settings
    drawn = [row for row in (*report.rows, *report.points) if row.method in settings.curves]
    unique = list({(row.method, row.pages, row.size): row for row in drawn}.values())
    by_pages = [row for row in unique if row.size == settings.size]
    return by_pages, [row for row in unique if row.pages == settings.pages]


def _title(report: Report) -> str:
    settings, where = report.settings, report.environment
    width, height = settings.size
    others = max(row.others for row in report.rows)
    beside = f"\nOther programs took up to {others:.0%} of the CPU meanwhile" if others > 0.05 else ""
    return (
        f"{settings.model}, {where.parameters / 1e6:,.0f}M parameters, {where.dtype}, {where.device}: one question, "
        f"{settings.pages} pages of {width}×{height}{beside}"
    )


def _draw_times(axis: Axes, report: Report) -> None:
    rows = report.rows
    places = range(len(rows))
    left = [0.0] * len(rows)
    for stage, colour in COLOURS.items():
        widths = [row.milliseconds[stage] for row in rows]
        axis.barh(places, widths, left=left, color=colour, label=NAMES[stage], height=0.72)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, (row, end) in enumerate(zip(rows, left, strict=True)):
        speed_up = report.speed_up(row)
        faster = "" if speed_up is None or row.method.kind == "paper" else f"   {speed_up:.2g}×"
        axis.annotate(f"{row.total:,.0f}{faster}", (end, place), (4, 0), textcoords="offset points", va="center")
    axis.set_yticks(places, [_short(row.method.label) for row in rows])
    axis.invert_yaxis()
    axis.set_xlim(0, 1.22 * max(left))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    compared = any(report.speed_up(row) is not None for row in rows)
    axis.set_xlabel("milliseconds a question" + ("; × times faster than the paper's way" if compared else ""))
    axis.legend(loc="lower right", frameon=False)
    _tidy(axis)


def _draw_memory(axis: Axes, report: Report) -> None:
    peaks = [row.peak_bytes / 1e9 for row in report.rows]
    axis.barh(range(len(peaks)), peaks, color=MEMORY, height=0.72)
    for place, peak in enumerate(peaks):
        axis.annotate(f"{peak:.2f}", (peak, place), (4, 0), textcoords="offset points", va="center")
    axis.axvline(report.environment.weight_bytes / 1e9, color="black", linewidth=0.8, linestyle=":")
    axis.set_xlim(0, 1.3 * max(peaks))
    axis.set_xlabel("peak memory, GB\n(dotted: the weights)")
    _tidy(axis)


def _draw_kept(axis: Axes, rows: Sequence[Row]) -> None:
    """Draw what pruning saves: the time of warm questions over what is kept, and over the same share of arithmetic."""
    rows = sorted(rows, key=lambda row: row.tokens)
    tokens, whole = [row.tokens for row in rows], rows[-1]
    for colour, style, name, values in (
        (COLOURS["llm"], "-", "measured, warm", [row.total / 1000 for row in rows]),
        (MEMORY, "--", "as the arithmetic promises", [whole.total * row.flops / whole.flops / 1000 for row in rows]),
        (MEMORY, ":", "as the tokens promise", [whole.total * row.tokens / whole.tokens / 1000 for row in rows]),
    ):
        axis.plot(tokens, values, color=colour, linestyle=style, marker="o" if style == "-" else None, label=name)
    for row in rows:
        axis.annotate(f"keep {row.method.keep_ratio:g}", (row.tokens, row.total / 1000), (8, -12), **_BESIDE)
    axis.set_xlim(0, 1.12 * max(tokens))
    axis.set_ylim(0, 1.2 * whole.total / 1000)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_xlabel("tokens that the language model reads")
    axis.set_ylabel("seconds a question")
    axis.legend(frameon=False, loc="upper left")
    _tidy(axis)


def _short(label: str) -> str:
    return label.removesuffix(", batch 1")


def _draw_curves(axis: Axes, name: str, rows: Sequence[Row], place: Callable[[Row], float]) -> None:
    for mark, method in zip(MARKS, dict.fromkeys(row.method for row in rows), strict=False):
        line = sorted((place(row), row.total / 1000) for row in rows if row.method == method)
        axis.plot(*zip(*line, strict=True), marker=mark, label=_short(method.label))
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    places = sorted({place(row) for row in rows})
    axis.set_xticks(places, [f"{value:.3g}" for value in places])
    axis.set_xlabel(name)
    axis.set_ylabel("seconds a question")
    axis.legend(frameon=False)
    axis.grid(axis="y", color=GRID)
    _tidy(axis)


def _tidy(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", color=GRID)
    axis.set_axisbelow(True)
