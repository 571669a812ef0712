"""`ziprerank evaluate vidore`: BEIR-like sets of page images, from the Hugging Face Hub or a folder."""

from dataclasses import asdict
from pathlib import Path
from statistics import fmean
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
    with_interval,
)

if TYPE_CHECKING:
    from llama_index_ziprerank.evaluation.results import Summary

RESULTS = Path("results", "vidore")


def vidore(
    sets: Annotated[
        list[str],
        typer.Argument(metavar="SET", help="Folders, or names such as vidore/docvqa_test_subsampled_beir."),
    ],
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Split of the set  [default: test]")] = None,
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
    """Rerank image sets laid out as BEIR's (corpus, queries, qrels), such as ViDoRe's; first stage → reranked.

    A folder holds corpus, queries and qrels, each as datasets.save_to_disk writes it, or as parquet, jsonl, csv or
    tsv; the corpus may be a folder of images. 95 % intervals by bootstrap over queries.
    """
    with needs_extra("evaluation"):
        from llama_index_ziprerank.evaluation import vidore as benchmark
        from llama_index_ziprerank.evaluation.first_stage import RerankSettings
        from llama_index_ziprerank.evaluation.image_sets import load_image_set
    from llama_index_ziprerank.cli.first_stage import IndexFirstStage

    hide_weight_bars()
    loaded = [load_image_set(name, split) for name in sets]  # what is missing is told before a model is loaded
    folders = [to / "-".join(Path(name).parts).strip("-/") for name in sets]
    if len(set(folders)) != len(folders):
        raise ValueError(f"A set is named twice: {', '.join(sets)}. Name it once.")
    summaries: dict[str, Summary] = {}
    for image_set, folder in zip(loaded, folders, strict=True):
        rerank = RerankSettings(model, top_k, keep_ratio, pruning)
        settings = benchmark.Settings(image_set.name, split, retriever, rerank, queries, seed)
        first = IndexFirstStage(retriever, folder / "index")
        results = benchmark.evaluate_image_set(image_set, settings, first, folder, track)
        summaries[image_set.name] = benchmark.summarize(results)
    if as_json:
        print_json(
            {
                name: {system: {m: asdict(score) for m, score in scores.items()} for system, scores in summary.items()}
                for name, summary in summaries.items()
            }
        )
        return
    for name, summary in summaries.items():
        print_tables(f"{name}; percent, with 95 % intervals", _table(summary), "")
    if len(summaries) > 1:
        print_tables(f"mean of {len(summaries)} sets: nDCG@5 {_mean(list(summaries.values()))}")
    err.print(f"Per query: {to}", soft_wrap=True)


def _table(summary: "Summary") -> Table:
    table = score_table("", list(summary["first_stage"]))
    for system, scores in summary.items():
        table.add_row(system.replace("_", " "), *map(with_interval, scores.values()))
    return table


def _mean(summaries: "list[Summary]") -> str:
    before, after = (fmean(one[system]["nDCG@5"].mean for one in summaries) for system in ("first_stage", "reranked"))
    return before_and_after(before, after)
