"""`ziprerank label`: a teacher, any LLM that sees images, ranks the candidate pages of queries."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from llama_index_ziprerank.cli.console import AsJson, err, needs_extra, out, print_json

if TYPE_CHECKING:
    from llama_index_ziprerank.training.teacher import PageImages, TeacherTotals

DEFAULT_TEACHER = "gpt-5-mini"  # the paper's


def label(
    queries: Annotated[
        Path,
        typer.Argument(
            metavar="QUERIES",
            help="JSONL with query_id, query, doc_name, domain, candidate_page_ids, gt_page_ids, first_stage_scores.",
            show_default=False,
        ),
    ],
    pages: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder of the pages: ID.png or ID.jpg; FILE.pdf for ids like FILE.pdf#12."),
    ],
    to: Annotated[Path, typer.Option(metavar="FILE", help="JSONL of the rankings; a second run continues there.")],
    model: Annotated[str, typer.Option(metavar="NAME", help="The teacher.")] = DEFAULT_TEACHER,
    api_base: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Server with OpenAI's protocol, with /v1  [default: OpenAI]"),
    ] = None,
    concurrency: Annotated[int, typer.Option(metavar="N", min=1, help="Requests at a time.")] = 8,
    attempts: Annotated[int, typer.Option(metavar="N", min=1, help="Requests for one query at most.")] = 8,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For one request.")] = 300.0,
    image_side: Annotated[
        int, typer.Option(metavar="PIXELS", min=1, help="Longer side of a page at most; as large as the student's.")
    ] = 1024,
    prompt_price: Annotated[
        float | None, typer.Option(metavar="PRICE", min=0, help="Of a million tokens sent.", show_default=False)
    ] = None,
    completion_price: Annotated[
        float | None, typer.Option(metavar="PRICE", min=0, help="Of a million tokens received.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let a teacher rank candidate pages, for training.

    The key is read from OPENAI_API_KEY. Exit code 1 when queries are left without a ranking: run it again.
    """
    if (prompt_price is None) != (completion_price is None):
        raise ValueError("A cost needs both prices: pass --prompt-price and --completion-price.")
    prices = None if prompt_price is None or completion_price is None else (prompt_price, completion_price)
    with needs_extra("training"):
        from llama_index_ziprerank.compat import run_async
        from llama_index_ziprerank.teachers import LLMTeacher, openai_compatible_llm, seconds_before_retry
        from llama_index_ziprerank.training import teacher as wing

    settings = wing.TeacherSettings(concurrency=concurrency, attempts=attempts, timeout=timeout)

    async def run(images: "PageImages", total: int) -> "TeacherTotals":
        async with openai_compatible_llm(model, api_base=api_base, timeout=timeout) as llm:
            teacher = wing.Teacher(LLMTeacher(llm), settings, retry_rule=seconds_before_retry)
            with wing.LabelFile(to) as labels, _summary(teacher.totals, prices, as_json):
                with _progress(teacher.totals, total) as on_done:
                    await wing.label_queries(wing.read_queries(queries), images.image, teacher, labels, on_done)
        return teacher.totals

    with wing.PageImages(pages, side=image_side) as images:
        totals = run_async(run(images, wing.check_queries(queries, images.check)))
    if totals.failed:
        raise typer.Exit(1)


@contextmanager
def _progress(totals: "TeacherTotals", total: int) -> Iterator[Callable[[], None]]:
    """Show a bar on stderr, and give the function that advances it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("labelling", total=total)

        def on_done() -> None:
            tokens = totals.prompt_tokens + totals.completion_tokens
            progress.update(task, advance=1, description=f"labelling: {totals.failed} failed, {tokens:,} tokens")

        yield on_done


@contextmanager
def _summary(totals: "TeacherTotals", prices: tuple[float, float] | None, as_json: bool) -> Iterator[None]:
    """Print the totals at the end, whatever ends the run: the tokens are paid for."""
    started = time.perf_counter()
    try:
        yield
    finally:
        values: dict[str, float] = {**asdict(totals), "seconds": time.perf_counter() - started}
        if prices:
            values["cost"] = totals.cost(*prices)
        if as_json:
            print_json(values)
        else:
            _print_table(values)


def _print_table(values: dict[str, float]) -> None:
    table = Table("this run", box=None)
    table.add_column(justify="right")
    for name, value in values.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else f"{value:,.2f}")
    out.print(table)
