"""`ziprerank evaluate manuals`: how well both stages find pages in real manuals, with the manuals' own labels."""

import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from llama_index_ziprerank.checkpoints import EMBEDDED
from llama_index_ziprerank.cli.console import (
    AsJson,
    FirstStageWeight,
    KeepRatio,
    Pruning,
    Sides,
    err,
    hide_weight_bars,
    needs_extra,
    print_json,
    side_list,
    track,
)
from llama_index_ziprerank.cli.scores import (
    Model,
    Retriever,
    Seed,
    To,
    TopK,
    print_tables,
    score_table,
    with_interval,
)

if TYPE_CHECKING:
    from llama_index_ziprerank.evaluation.results import QueryResult, Summary

RESULTS = Path("results", "manuals")
SYSTEMS = ("random", "bm25", "first_stage", "reranked")


def manuals(
    files: Annotated[list[Path] | None, typer.Argument(metavar="PDF", help="PDF files.", show_default=False)] = None,
    development: Annotated[
        bool, typer.Option("--development", help="Use the six development manuals, fetched from Debian.")
    ] = False,
    kinds: Annotated[
        str, typer.Option(metavar="LIST", help="Kinds of queries, between commas.")
    ] = "heading,term,caption,question",
    model: Model = EMBEDDED,
    retriever: Retriever = EMBEDDED,
    queries: Annotated[
        int | None, typer.Option(metavar="N", help="Queries of each kind drawn from each manual  [default: all]")
    ] = None,
    pool: Annotated[
        int | None, typer.Option(metavar="N", help="Candidate pages of a query  [default: its manual]")
    ] = None,
    top_k: TopK = 20,
    keep_ratio: KeepRatio = None,
    pruning: Pruning = None,
    strategy: Annotated[
        Literal["sliding", "parallel", "blocks"], typer.Option(help="How more than 20 pages are ranked.")
    ] = "sliding",
    sides: Sides = None,
    first_stage_weight: FirstStageWeight = None,
    ablation: Annotated[
        bool,
        typer.Option("--ablation", help="Keep 100, 50 and 25 % of the visual tokens, pruned both ways, too."),
    ] = False,
    degradation: Annotated[
        str, typer.Option("--degrade", metavar="HOW", help="none, or scan: pages turned by 1°, with noise, as JPEG.")
    ] = "none",
    seed: Seed = 0,
    to: To = RESULTS,
    as_json: AsJson = False,
) -> None:
    """Ask for headings, index terms, captions and questions of PDF manuals, and look for their pages.

    The answers come from the PDFs: outline, index at the back, captions. Compares a random order, BM25 over the text
    layer, the first stage, and the reranked first stage. 95 % intervals by bootstrap over queries.
    """
    if bool(files) == development:
        raise ValueError("Name PDF files, or pass --development; one of the two.")
    with needs_extra("evaluation"):
        from llama_index_ziprerank.evaluation import manuals as benchmark
        from llama_index_ziprerank.evaluation.manual_settings import Settings
        from llama_index_ziprerank.evaluation.results import gain, summarize

    hide_weight_bars()
    settings = Settings(
        retriever=retriever,
        reranker=model,
        kinds=tuple(kind.strip() for kind in kinds.split(",")),
        queries=queries,
        pool=pool,
        top_k=top_k,
        keep_ratio=keep_ratio,
        pruning=pruning,
        strategy=strategy,
        sides=side_list(sides),
        first_stage_weight=first_stage_weight,
        ablation=ablation,
        degradation=degradation,
        seed=seed,
    )
    paths = files or benchmark.fetch_development_manuals(_cache_folder(), track)
    results = benchmark.evaluate_manuals(paths, settings, to, track)
    summary = summarize(results)
    kinds_of = _grouped(results, lambda result: result.kind)
    manuals_of = _grouped(results, lambda result: result.manual)
    by_kind = {kind: summarize(of_kind) for kind, of_kind in kinds_of.items()}
    by_manual = {name: summarize(found) for name, found in manuals_of.items()}
    if as_json:
        parts = {
            "by_kind": _as_json(by_kind),
            "by_manual": _as_json(by_manual),
            "queries_by_kind": {kind: len(of_kind) for kind, of_kind in kinds_of.items()},
            "queries_by_manual": {name: len(found) for name, found in manuals_of.items()},
        }
        scores, gained = _as_json({"all": summary})["all"], {m: asdict(score) for m, score in gain(results).items()}
        print_json({"settings": asdict(settings), "queries": len(results), "scores": scores, "gain": gained, **parts})
        return
    better = gain(results)["nDCG@5"]
    print_tables(
        f"{len(results)} queries; percent, with 95 % intervals",
        _by_system(summary),
        f"\nReranked minus first stage, nDCG@5, paired: {with_interval(better)}\n",
        _by_part("R@1 by kind, percent", "R@1", by_kind, kinds_of),
        "",
        _by_part("nDCG@5 by kind, percent", "nDCG@5", by_kind, kinds_of),
        "",
        _by_part("R@1 by manual, percent", "R@1", by_manual, manuals_of),
    )
    err.print(f"Per query: {to / 'results.jsonl'}", soft_wrap=True)


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "llama-index-ziprerank" / "manuals"


def _as_json(parts: "dict[str, Summary]") -> dict[str, Any]:
    return {
        part: {system: {m: asdict(score) for m, score in scores.items()} for system, scores in summary.items()}
        for part, summary in parts.items()
    }


def _grouped(results: "list[QueryResult]", key: "Callable[[QueryResult], str]") -> "dict[str, list[QueryResult]]":
    grouped: dict[str, list[QueryResult]] = defaultdict(list)
    for result in results:
        grouped[key(result)].append(result)
    return dict(grouped)


def _by_system(summary: "Summary") -> Table:
    table = score_table("", [*summary["random"], "R@1 ÷ random"])
    for system, scores in summary.items():
        factor = scores["R@1"].mean / summary["random"]["R@1"].mean
        style = "bold" if system == "reranked" else ""
        table.add_row(_spoken(system), *map(with_interval, scores.values()), f"{factor:.1f}", style=style)
    return table


def _by_part(title: str, metric: str, parts: "dict[str, Summary]", grouped: "dict[str, list[QueryResult]]") -> Table:
    """A line a kind or manual; of the ablation's systems, the table above and the JSON have all there is to say."""
    table = score_table(title, ["queries", *map(_spoken, SYSTEMS)])
    for part, summary in parts.items():
        found = (f"{100 * summary[system][metric].mean:.1f}" for system in SYSTEMS)
        table.add_row(part, str(len(grouped[part])), *found)
    return table


def _spoken(system: str) -> str:
    return system.replace("_", " ")
