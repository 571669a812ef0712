"""What the benchmarks' commands share: options, and how scores are printed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.table import Table

from llama_index_ziprerank.cli.console import out

if TYPE_CHECKING:
    from llama_index_ziprerank.evaluation.results import Score

WIDTH = 112  # columns of text that the tables need

Model = Annotated[str, typer.Option(metavar="NAME", help="Reranker.")]
Retriever = Annotated[str, typer.Option(metavar="NAME", help="First-stage model.")]
Queries = Annotated[int | None, typer.Option(metavar="N", min=1, help="Queries drawn  [default: all]")]
TopK = Annotated[int, typer.Option(metavar="N", min=1, help="First pages that are reranked.")]
Seed = Annotated[int, typer.Option(metavar="N", help="For the draws.")]
To = Annotated[
    Path, typer.Option(metavar="DIR", file_okay=False, help="Folder of the results; a second run continues there.")
]


def score_table(name: str, columns: list[str]) -> Table:
    """Begin a table whose first column names systems or parts, the others hold figures."""
    table = Table(name, box=None)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    table.columns[0].no_wrap = True
    return table


def with_interval(score: "Score") -> str:
    """A score in percent, with its interval."""
    return f"{100 * score.mean:.1f} [{100 * score.low:.0f}, {100 * score.high:.0f}]"


def before_and_after(before: float, after: float) -> str:
    """Two scores in percent."""
    return f"{100 * before:.1f} → {100 * after:.1f}"


def print_tables(*printed: RenderableType) -> None:
    """Print on stdout; a pipe has 80 columns, and figures must not be cut."""
    out.width = max(WIDTH, out.width)
    for part in printed:
        out.print(part, crop=False)
