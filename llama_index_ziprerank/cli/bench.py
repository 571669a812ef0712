"""`ziprerank bench`: what a question costs, the paper's way and ours, on this machine."""

import json
from pathlib import Path
from typing import Annotated

import typer

from llama_index_ziprerank.cli.bench_table import print_report
from llama_index_ziprerank.cli.console import (
    AsJson,
    err,
    hide_weight_bars,
    listed,
    needs_extra,
    numbers,
    print_json,
    track,
)

RESULTS = Path("results", "bench")


def bench(
    model: Annotated[
        str,
        typer.Option(metavar="NAME", help="15m, 2b, 4b or 8b (real shapes, random weights), nano, or a checkpoint."),
    ] = "15m",
    device: Annotated[str | None, typer.Option(metavar="NAME", help="[default: the best there is]")] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="NAME", help="Such as bfloat16  [default: on a CPU float32]")
    ] = None,
    pages: Annotated[int, typer.Option(metavar="N", min=1, help="Pages of the list.")] = 20,
    size: Annotated[str, typer.Option(metavar="WxH", help="Pixels of a page.")] = "768x1000",
    methods: Annotated[
        str, typer.Option(metavar="LIST", help="Between commas: paper, generation, pointwise, ours.")
    ] = "paper,generation,pointwise,ours",
    keep_ratios: Annotated[
        str, typer.Option("--keep", metavar="LIST", help="Parts of the visual tokens that ours reads.")
    ] = "1,0.5,0.25",
    batches: Annotated[
        str, typer.Option("--batch", metavar="LIST", help="Questions asked at once  [default: 1,8; on a CPU 1]")
    ] = "",
    quantization: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Weights of the language model for ours, beside the full ones: int8, fp8."),
    ] = None,
    counts: Annotated[
        str, typer.Option(metavar="LIST", help="Further numbers of pages, for a curve: 5,10,50,100.")
    ] = "",
    sizes: Annotated[str, typer.Option(metavar="LIST", help="Further page sizes, for a curve: 384x500,576x750.")] = "",
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Timed runs; their median counts.")] = 5,
    seconds: Annotated[
        float, typer.Option(metavar="N", min=0, help="A method that takes so long is timed fewer times.")
    ] = 30,
    limit: Annotated[
        float | None, typer.Option(metavar="N", min=0, help="Seconds after which nothing more is begun.")
    ] = None,
    attempts: Annotated[
        int, typer.Option(metavar="N", min=1, help="Times that a run is tried when other programs are at work.")
    ] = 1,
    seed: Annotated[int, typer.Option(metavar="N", help="For weights and pages.")] = 0,
    to: Annotated[
        Path, typer.Option(metavar="DIR", file_okay=False, help="Folder for bench.json and bench.png.")
    ] = RESULTS,
    as_json: AsJson = False,
) -> None:
    """Measure what a question costs: the paper's way, generation, page by page, and ours.

    All run on the same weights, pages and machine, in rounds. Random weights cost what trained ones do, so no
    checkpoint is fetched for the named shapes.
    """
    with needs_extra("evaluation"):
        from llama_index_ziprerank.evaluation.efficiency.bench import bench as run_bench
        from llama_index_ziprerank.evaluation.efficiency.picture import draw
    from llama_index_ziprerank.evaluation.efficiency.settings import Settings, parse_size

    hide_weight_bars()
    settings = Settings(
        model=model,
        device=device,
        dtype=dtype,
        pages=pages,
        size=parse_size(size),
        kinds=tuple(listed(methods)),  # type: ignore[arg-type]  # Settings checks them
        keep_ratios=numbers(keep_ratios, float, "--keep"),
        batches=numbers(batches, int, "--batch"),
        counts=numbers(counts, int, "--counts"),
        sizes=tuple(map(parse_size, listed(sizes))),
        repeats=repeats,
        seconds=seconds,
        limit=limit,
        attempts=attempts,
        seed=seed,
        quantization=quantization,  # type: ignore[arg-type]  # checked likewise
    )
    to.mkdir(parents=True, exist_ok=True)  # before minutes of work
    for report in run_bench(settings, track):
        _keep(to / "bench.json", json.dumps(report.as_json(), indent=1))
    draw(report, to / "bench.png")
    if as_json:
        print_json(report.as_json())
    else:
        print_report(report)
    err.print(f"Picture: {to / 'bench.png'}; figures: {to / 'bench.json'}", soft_wrap=True)


def _keep(path: Path, text: str) -> None:
    """Write a file so that whoever stops the program at any time leaves a whole one, this or the one before."""
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
