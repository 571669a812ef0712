"""`ziprerank evaluate manuals`: how well both stages find the pages of headings in real manuals."""

import os
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from llama_index_ziprerank.checkpoints import EMBEDDED
from llama_index_ziprerank.cli.console import AsJson, KeepRatio, err, hide_weight_bars, out, print_json, track

if TYPE_CHECKING:
    from llama_index_ziprerank.evaluation.results import QueryResult, Score

RESULTS = Path("results", "manuals")
WIDTH = 112  # columns of text that the tables need

evaluate = typer.Typer(
    help="Measure models on documents with known answers.", no_args_is_help=True, rich_markup_mode=None
)


@evaluate.callback()
def _group() -> None:
    """Keep `manuals` a command of its own while it is the only one."""


@evaluate.command()
def manuals(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="PDF", help="PDF files with bookmarks.", show_default=False)
    ] = None,
    development: Annotated[
        bool, typer.Option("--development", help="Use the six development manuals, fetched from Debian.")
    ] = False,
    model: Annotated[str, typer.Option(metavar="NAME", help="Reranker.")] = EMBEDDED,
    retriever: Annotated[str, typer.Option(metavar="NAME", help="First-stage model.")] = EMBEDDED,
    queries: Annotated[
        int | None, typer.Option(metavar="N", help="Headings drawn from each manual  [default: all]")
    ] = None,
    pool: Annotated[
        int | None, typer.Option(metavar="N", help="Candidate pages of a query  [default: its manual]")
    ] = None,
    keep_ratio: KeepRatio = 1.0,
    seed: Annotated[int, typer.Option(metavar="N", help="For the draws.")] = 0,
    to: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the results; a second run continues there.")
    ] = RESULTS,
    as_json: AsJson = False,
) -> None:
    """Ask for every heading of the PDF outlines, and look for its page.

    Compares a random order, BM25 over the text layer, the first stage, and the reranked first stage. 95 % intervals by
    bootstrap over queries.
    """
    if bool(files) == development:
        raise ValueError("Name PDF files, or pass --development; one of the two.")
    try:
        from llama_index_ziprerank.evaluation import manuals as benchmark
        from llama_index_ziprerank.evaluation.results import summarize
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}. Install it with: pip install 'llama-index-ziprerank[evaluation]'") from error

    hide_weight_bars()
    settings = benchmark.Settings(
        retriever=retriever, reranker=model, queries=queries, pool=pool, keep_ratio=keep_ratio, seed=seed
    )
    paths = files or benchmark.fetch_development_manuals(_cache_folder(), track)
    results = benchmark.evaluate_manuals(paths, settings, to, track)
    summary = summarize(results)
    if as_json:
        scores = {system: {m: asdict(score) for m, score in metrics.items()} for system, metrics in summary.items()}
        print_json({"settings": asdict(settings), "queries": len(results), "scores": scores})
        return
    _print_summary(summary, results)
    err.print(f"Per query: {to / 'results.jsonl'}")


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "llama-index-ziprerank" / "manuals"


def _print_summary(summary: "dict[str, dict[str, Score]]", results: "list[QueryResult]") -> None:
    out.print(f"{len(results)} queries; percent, with 95 % intervals", soft_wrap=True)
    table = Table(box=None)
    table.add_column("", no_wrap=True)
    for metric in summary["random"]:
        table.add_column(metric, justify="right", no_wrap=True)
    table.add_column("R@1 ÷ random", justify="right", no_wrap=True)
    for system, scores in summary.items():
        cells = [f"{100 * score.mean:.1f} [{100 * score.low:.0f}, {100 * score.high:.0f}]" for score in scores.values()]
        factor = scores["R@1"].mean / summary["random"]["R@1"].mean
        table.add_row(system.replace("_", " "), *cells, f"{factor:.1f}", style="bold" if system == "reranked" else "")
    out.width = max(WIDTH, out.width)  # a pipe has 80 columns, and figures must not be cut
    for printed in (table, "", _by_manual(results)):
        out.print(printed, crop=False)


def _by_manual(results: "list[QueryResult]") -> Table:
    grouped: dict[str, list[QueryResult]] = defaultdict(list)
    for result in results:
        grouped[result.manual].append(result)
    systems = list(results[0].rankings)
    table = Table("R@1 by manual, percent", box=None)
    for name in ("queries", "candidates", *systems):
        table.add_column(name.replace("_", " "), justify="right")
    for manual, of_manual in grouped.items():
        found = [fmean(result.rankings[system][0] == result.page for result in of_manual) for system in systems]
        candidates = len(of_manual[0].rankings["first_stage"])
        table.add_row(manual, str(len(of_manual)), str(candidates), *(f"{100 * share:.1f}" for share in found))
    return table
