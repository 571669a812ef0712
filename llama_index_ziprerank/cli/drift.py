"""`ziprerank drift`: how far scores move by what makes a reranker faster."""

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from llama_index_ziprerank.checkpoints import EMBEDDED
from llama_index_ziprerank.cli.console import AsJson, err, hide_weight_bars, print_json, track
from llama_index_ziprerank.cli.scores import print_tables

NOTES = """\
same order, same first: lists. tau: rank correlation, 1 is the same order. logits: largest change of a page's logit
within its list, beside the mean distance between a list's best and worst page. seconds: a list, tower included."""


def drift(
    manual: Annotated[Path, typer.Argument(metavar="PDF", help="Its pages are ranked.")],
    model: Annotated[str, typer.Option(metavar="NAME", help="A checkpoint.")] = EMBEDDED,
    question: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="May be repeated  [default: the manual's own]")
    ] = None,
    pages: Annotated[int, typer.Option(metavar="N", min=1, help="First pages of the manual.")] = 24,
    lists: Annotated[int, typer.Option(metavar="N", min=1, help="Random lists of these.")] = 20,
    length: Annotated[int, typer.Option(metavar="N", min=1, max=20, help="Pages of a list.")] = 8,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="[default: the best there is]")] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="For the lists.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure what pruning, int8 and leaving out blank parts do to scores, on a manual of your own."""
    from llama_index_ziprerank.evaluation.efficiency.drift import Lists, measure_drift, questions_of
    from llama_index_ziprerank.labels.headings import read_outline
    from llama_index_ziprerank.pages.pdf import read_pages

    hide_weight_bars()
    read = list(islice(read_pages(manual), pages))
    asked = question or questions_of(read, read_outline(manual))
    drawn = Lists.draw(asked, len(read), lists=lists, length=length, seed=seed)
    report = measure_drift(model, [page.image for page in read], drawn, device=device, track=track)
    if as_json:
        print_json(asdict(report))
        return
    table = Table("", box=None)
    for column in ("same order", "same first", "tau", "logits", "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    table.columns[0].no_wrap = True
    for row in report.rows:
        table.add_row(
            row.option,
            f"{100 * row.same_order:.0f} %",
            f"{100 * row.same_first:.0f} %",
            f"{row.kendall:.3f}",
            f"{row.logits:.2g} of {row.spread:.2g}",
            f"{row.seconds:.2f}",
        )
    print_tables(table)
    err.print(
        f"{model}, {lists} lists of {length} of {len(read)} pages, {len(asked)} questions. "
        f"{100 * report.blank:.0f} % of the pages' visual tokens are blank. {NOTES}",
        soft_wrap=True,
    )
