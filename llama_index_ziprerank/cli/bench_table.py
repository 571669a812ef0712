"""The benchmark's report as text."""

from typing import TYPE_CHECKING

from rich.table import Table

from llama_index_ziprerank.cli.console import out

if TYPE_CHECKING:
    from llama_index_ziprerank.evaluation.efficiency.report import Report, Row

WIDTH = 150  # columns of text that the table needs

NOTES = """\
Milliseconds, tokens and FLOPs are one question's. prepare: decoding, resizing and cutting up pages, as far as the tower
waits for it. prune: prompt, pruning, joining text and pages. llm: with head. ×: times faster than the paper's way.
peak: GB of {memory}; weights and given features included. TFLOP: causal attention
counts half; of peak: of the matmul peak above. warm: the pages' features are given. batch 8: as many questions at once,
each with its pages. The paper's way has transformers' own tower, the others ours. others: part of the CPU time that
other programs took at most; with --attempts, runs above {quiet:.0%} are made again."""

NOTE_QUANTIZED = """\
{name}: smaller weights in the language model. Their peak is without the full ones, which lie beside them; their TFLOP
are those of the full ones."""


def print_report(report: "Report") -> None:
    """Print the table, the curves' points, how exact it is, and what the figures mean."""
    from llama_index_ziprerank.evaluation.efficiency.bench import QUIET

    where, settings = report.environment, report.settings
    out.width = max(WIDTH, out.width)
    out.print(
        f"{settings.model}: {where.parameters / 1e6:,.1f}M parameters, {where.dtype}, "
        f"{where.weight_bytes / 1e9:.2f} GB. {where.device}, torch {where.torch}, {where.threads} threads; matmul peak "
        f"{where.matmul_peak / 1e12:,.3g} TFLOP/s.\n",
        soft_wrap=True,
    )
    out.print(_table(report, report.rows), crop=False)
    if report.points:
        out.print("", _table(report, report.points), crop=False)
    out.print()
    if report.difference is not None:
        out.print(
            f"Ours with every visual token against the paper's way: logits differ by {report.difference:.1e} at most; "
            f"its own lie {report.spread:.2g} apart.",
            soft_wrap=True,
        )
    for change in report.changes:
        order = "the same order" if change.same_order else "another order"
        out.print(
            f"{settings.quantization} against the full weights, keep {change.keep_ratio:g}: logits differ by "
            f"{change.logits:.1e} at most; those of the full ones lie {change.spread:.2g} apart; {order}.",
            soft_wrap=True,
        )
    for label in report.out_of_memory:
        out.print(f"Out of memory: {label}", soft_wrap=True)
    out.print(NOTES.format(memory=where.memory, quiet=QUIET), soft_wrap=True)
    if settings.quantization is not None:
        out.print(NOTE_QUANTIZED.format(name=settings.quantization), soft_wrap=True)


def _table(report: "Report", rows: "list[Row]") -> Table:
    table = Table("", box=None)
    for column in (
        "pages",
        "size",
        "prepare",
        "vision",
        "prune",
        "llm",
        "total",
        "×",
        "tokens",
        "peak",
        "TFLOP",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("of peak", "runs", "others"):
        table.add_column(column, justify="right", no_wrap=True)
    table.columns[0].no_wrap = True
    for row in rows:
        faster = report.speed_up(row)
        table.add_row(
            row.method.label,
            str(row.pages),
            "{}x{}".format(*row.size),
            *(f"{milliseconds:,.0f}" for milliseconds in row.milliseconds.values()),
            f"{row.total:,.0f}",
            "–" if faster is None else f"{faster:.2f}",
            f"{row.tokens:,}",
            f"{row.peak_bytes / 1e9:.2f}",
            f"{row.flops / 1e12:,.3g}",
            f"{100 * report.share_of_peak(row):.0f} %",
            str(row.rounds),
            f"{100 * row.others:.0f} %",
        )
    return table
