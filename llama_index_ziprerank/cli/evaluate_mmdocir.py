"""`ziprerank evaluate mmdocir`: the benchmark of the paper, with its official arithmetic."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from llama_index_ziprerank.checkpoints import EMBEDDED
from llama_index_ziprerank.cli.console import (
    AsJson,
    KeepRatio,
    Pruning,
    err,
    hide_weight_bars,
    needs_extra,
    print_json,
    track,
)
from llama_index_ziprerank.cli.scores import (
    Model,
    Queries,
    Retriever,
    Seed,
    To,
    TopK,
    before_and_after,
    print_tables,
    score_table,
)

if TYPE_CHECKING:
    from llama_index_ziprerank.evaluation.first_stage import FirstStage
    from llama_index_ziprerank.evaluation.mmdocir.metrics import Part

RESULTS = Path("results", "mmdocir")


def mmdocir(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="Holds MMDocIR_annotations.jsonl and MMDocIR_pages.parquet.", show_default=False
        ),
    ],
    level: Annotated[
        str, typer.Option(metavar="LEVEL", help="page, layout (needs MMDocIR_layouts.parquet), or both.")
    ] = "page",
    run: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="First-stage run, JSONL or TREC; for both levels pass two. Default: ColPaliIndex makes one.",
            show_default=False,
        ),
    ] = None,
    model: Model = EMBEDDED,
    retriever: Retriever = EMBEDDED,
    top_k: TopK = 20,
    keep_ratio: KeepRatio = None,
    pruning: Pruning = None,
    queries: Queries = None,
    seed: Seed = 0,
    to: To = RESULTS,
    as_json: AsJson = False,
) -> None:
    """Rerank MMDocIR: recall of pages, and of layouts by area, by domain, macro and micro; base → reranked.

    The data set is CC BY-NC 4.0, get it from huggingface.co/datasets/MMDocIR/MMDocIR_Evaluation_Dataset and the
    annotations from github.com/MMDocRAG/MMDocIR. In a run, questions are named report.pdf:q0, pages report.pdf:p4,
    layouts report.pdf:l17, from 0 within their document.
    """
    levels = ["page", "layout"] if level == "both" else [level]
    if run and len(run) != len(levels):
        raise ValueError(f"Level {level!r} takes {len(levels)} runs, in the order {', '.join(levels)}; got {len(run)}.")
    with needs_extra("evaluation"):
        from llama_index_ziprerank.evaluation.first_stage import RerankSettings
        from llama_index_ziprerank.evaluation.mmdocir import benchmark
        from llama_index_ziprerank.evaluation.mmdocir.runs import run_settings
    from llama_index_ziprerank.cli.first_stage import IndexFirstStage

    hide_weight_bars()
    rerank = RerankSettings(model, top_k, keep_ratio, pruning)
    tables: dict[str, list[Part]] = {}
    for number, one in enumerate(levels):
        first: FirstStage | Path = run[number] if run else IndexFirstStage(retriever)
        named = run_settings(first) if isinstance(first, Path) else retriever
        settings = benchmark.Settings(one, named, rerank, queries, seed)
        tables[one] = benchmark.summarize(benchmark.evaluate_mmdocir(folder, settings, first, to, track))
    if as_json:
        print_json({one: [asdict(part) for part in parts] for one, parts in tables.items()})
        return
    for one, parts in tables.items():
        print_tables(f"MMDocIR, {one} level; recall in percent, first stage → reranked", _table(parts), "")
    err.print(f"Per question: {to}", soft_wrap=True)


def _table(parts: "list[Part]") -> Table:
    metrics = list(parts[0].recalls["first_stage"])
    table = score_table("", ["questions", *metrics])
    for part in parts:
        before, after = part.recalls["first_stage"], part.recalls["reranked"]
        cells = (before_and_after(before[metric], after[metric]) for metric in metrics)
        table.add_row(part.name, str(part.questions), *cells, style="bold" if part.name in {"macro", "micro"} else "")
    return table
