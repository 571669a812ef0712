"""What the commands share: where they print, how they show progress, and some options."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

T = TypeVar("T")

KeepRatio = Annotated[
    float, typer.Option(metavar="SHARE", min=0, max=1, help="Part of the visual tokens that the reranker reads.")
]
Pruning = Annotated[Literal["prompt", "query"], typer.Option(help="What visual tokens are compared with.")]
FirstStageWeight = Annotated[
    float | None,
    typer.Option(
        metavar="WEIGHT",
        min=0,
        help="How much the first stage's scores count: 0 not, 1 as much as the reranker's  [default: the model's own]",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

# questions and file names are printed as they are: brackets in them are no markup
out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)


def print_json(values: object) -> None:
    """Print one JSON document, and nothing else, on stdout."""
    out.print_json(data=values, ensure_ascii=False)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Show progress over items on stderr; without a total, how many have come so far."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        yield from progress.track(items, total=total, description=description)


def hide_weight_bars() -> None:
    """Keep transformers from drawing a bar for every checkpoint it loads; downloads keep theirs."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    enable_progress_bars()
