"""`ziprerank train stage1|stage2|retriever`: train a model; every field of its recipe is an option.

On several GPUs: ``accelerate launch -m llama_index_ziprerank.cli.train stage2 …``.
"""

import contextlib
import logging
import sys
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from llama_index_ziprerank.checkpoints import EMBEDDED
from llama_index_ziprerank.cli.console import AsJson, err, hide_weight_bars, needs_extra, out, print_json

if TYPE_CHECKING:
    from llama_index_ziprerank.training.recipes import Precision, Recipe
    from llama_index_ziprerank.training.run import Trained

# the recipe's parser has its own --help, with every field
_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

train_app = typer.Typer(
    help="Train a reranker, or the retriever before it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@train_app.command(context_settings=_OPTIONS, add_help_option=False)
def stage1(context: typer.Context) -> None:
    """Stage 1: text passages drawn as images, in RankZephyr's order. --help explains every option."""
    _train("stage1", context.args, "reranker")


@train_app.command(context_settings=_OPTIONS, add_help_option=False)
def stage2(context: typer.Context) -> None:
    """Stage 2: page images, in the order of a vision-language teacher. --help explains every option."""
    _train("stage2", context.args, "reranker")


@train_app.command(context_settings=_OPTIONS, add_help_option=False)
def retriever(context: typer.Context) -> None:
    """The first stage: a ColPali-family retriever, on the same lists. --help explains every option."""
    _train("retriever", context.args, "retriever")


@train_app.command()
def cost(
    pdf: Annotated[Path, typer.Argument(metavar="PDF", help="Whose first pages make the list.", show_default=False)],
    model: Annotated[str, typer.Option(metavar="NAME", help="Reranker to train.")] = EMBEDDED,
    pages: Annotated[int, typer.Option(metavar="N", min=2, max=20, help="Of the list.")] = 10,
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Steps of each kind; the median counts.")] = 3,
    lora_rank: Annotated[int, typer.Option(metavar="N", min=0, help="Of adapters; 0: all weights learn.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure memory and time of a stage 2 step, with cached vision features and without; nothing is trained."""
    hide_weight_bars()
    with needs_extra("training"):
        import torch

        from llama_index_ziprerank.pages.pdf import read_pages
        from llama_index_ziprerank.reranking.loading import needs_float32
        from llama_index_ziprerank.training.recipes import Stage2
        from llama_index_ziprerank.training.step_cost import step_cost
    precision: Precision = "bfloat16" if torch.cuda.is_available() and not needs_float32(model) else "float32"
    shown = [page.image for page in islice(read_pages(pdf), pages)]
    with TemporaryDirectory() as folder:
        recipe = Stage2(
            model=model, data="-", output_dir=folder, batch_size=1, lora_rank=lora_rank, precision=precision
        )
        costs = step_cost(recipe, shown, repeats)
    if as_json:
        print_json({name: asdict(value) for name, value in costs.items()})
        return
    cached, uncached = costs["cached"], costs["uncached"]
    table = Table("", "cached", "uncached", "ratio", box=None)
    memory = [value.peak_bytes / 1e6 for value in (cached, uncached)]
    table.add_row(
        "seconds", f"{cached.seconds:.2f}", f"{uncached.seconds:.2f}", _times(uncached.seconds, cached.seconds)
    )
    table.add_row("peak memory, MB", f"{memory[0]:,.0f}", f"{memory[1]:,.0f}", _times(memory[1], memory[0]))
    table.add_row("kept in the cache, MB", f"{cached.cache_bytes / 1e6:,.1f}", "0", "")
    out.print(f"One step on {len(shown)} pages, {model}, {precision}", soft_wrap=True)
    out.print(table)


def _times(uncached: float, cached: float) -> str:
    return f"{uncached / cached:.2f} x"


def _train(stage: str, arguments: list[str], product: str) -> None:
    with needs_extra("training"):
        from llama_index_ziprerank.training.options import parse_recipe
        from llama_index_ziprerank.training.recipes import Recipe, Stage1, Stage2
        from llama_index_ziprerank.training.retriever_recipe import Retriever

        kinds: dict[str, type[Recipe]] = {"stage1": Stage1, "stage2": Stage2, "retriever": Retriever}
        recipe = parse_recipe(kinds[stage], arguments, prog=f"ziprerank train {stage}")
        from accelerate import PartialState

        from llama_index_ziprerank.training.metrics import metrics_table

        logging.basicConfig(level=logging.WARNING)
        with contextlib.redirect_stdout(sys.stderr):  # the Trainer's log is progress, not a result
            trained = _run(recipe)
    if not PartialState().is_main_process:
        return
    if trained.quality:
        out.print(metrics_table(trained.quality), markup=False, soft_wrap=True)
    err.print(f"The trained {product} is in {trained.folder}.", soft_wrap=True)


def _run(recipe: "Recipe") -> "Trained":
    from llama_index_ziprerank.training.recipes import RankingRecipe
    from llama_index_ziprerank.training.retriever_recipe import Retriever

    if isinstance(recipe, Retriever):
        from llama_index_ziprerank.training.retriever.run import train_retriever

        return train_retriever(recipe)
    from llama_index_ziprerank.training.run import train

    assert isinstance(recipe, RankingRecipe)
    return train(recipe)


if __name__ == "__main__":
    train_app(prog_name="ziprerank train")
