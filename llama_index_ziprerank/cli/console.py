"""What the commands share: where they print, how they show progress, and some options."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, TextIO, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

T = TypeVar("T")
Number = TypeVar("Number", int, float)

KeepRatio = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        min=0,
        max=1,
        help="Part of the visual tokens that the reranker reads  [default: the model's own, else 1]",
        show_default=False,
    ),
]
Pruning = Annotated[
    Literal["prompt", "query"] | None,
    typer.Option(
        help="What visual tokens are compared with  [default: the model's own, else prompt]", show_default=False
    ),
]
Sides = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Longest sides in pixels at which the reranker reads a page  [default: the model's own, else 1024]",
        show_default=False,
    ),
]
FirstStageWeight = Annotated[
    float | None,
    typer.Option(
        metavar="WEIGHT",
        min=0,
        help="Part of the first stage's scores: 0 none, 1 like the reranker's  [default: the model's own, else 0]",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

# questions and file names are printed as they are: brackets in them are no markup
out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)


def print_json(values: object) -> None:
    """Print one JSON document, and nothing else, on stdout.

    No colours, which FORCE_COLOR would put in a pipe, and letters beyond ASCII escaped: any pipe takes them so, also
    those of a file name that is no UTF-8.
    """
    out.print_json(data=values, ensure_ascii=True, highlight=False)


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


def check_target(path: Path) -> None:
    """Refuse before the work a file that could not be written after it.

    Raises:
        ValueError: for a folder, or a file in a folder that does not exist.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder. Name a file.")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"The folder of {path} does not exist. Make it first.")


@contextmanager
def plain_warnings(kind: type[Warning]) -> Iterator[None]:
    """Print every warning of a kind on stderr as the sentence that it is, without the line of code that Python adds."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", kind)
        show_others = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, kind):
                err.print(str(message), soft_wrap=True)
            else:
                show_others(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def hide_weight_bars() -> None:
    """Keep transformers from drawing a bar for every checkpoint it loads; downloads keep theirs."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    enable_progress_bars()


def listed(text: str) -> list[str]:
    """Take what stands between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str, number: Callable[[str], Number], option: str) -> tuple[Number, ...]:
    """Take the numbers between commas; ValueError names the option where one is none."""
    try:
        return tuple(map(number, listed(text)))
    except ValueError as error:
        raise ValueError(f"{option} takes numbers between commas, got {text!r}.") from error


def side_list(text: str | None) -> tuple[int, ...] | None:
    """Return the sides of ``--sides``; None where it was left out."""
    return None if text is None else numbers(text, int, "--sides")


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Say how to install what an import misses.

    Raises:
        ImportError: with the command.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}. Install it with: pip install 'llama-index-ziprerank[{name}]'") from error
