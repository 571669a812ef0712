"""`ziprerank train stage1|stage2`: train a reranker; every field of the recipe is an option.

On several GPUs: ``accelerate launch -m llama_index_ziprerank.cli.train stage2 …``.
"""

import contextlib
import logging
import sys
from typing import TYPE_CHECKING

import typer

from llama_index_ziprerank.cli.console import err, out

if TYPE_CHECKING:
    from llama_index_ziprerank.training.recipes import Recipe

# the recipe's parser has its own --help, with every field
_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

train_app = typer.Typer(
    help="Train a reranker.", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)


@train_app.command(context_settings=_OPTIONS, add_help_option=False)
def stage1(context: typer.Context) -> None:
    """Stage 1: text passages drawn as images, in RankZephyr's order. --help explains every option."""
    _train("stage1", context.args)


@train_app.command(context_settings=_OPTIONS, add_help_option=False)
def stage2(context: typer.Context) -> None:
    """Stage 2: page images, in the order of a vision-language teacher. --help explains every option."""
    _train("stage2", context.args)


def _train(stage: str, arguments: list[str]) -> None:
    try:
        from llama_index_ziprerank.training import options, recipes

        kind: type[Recipe] = recipes.Stage1 if stage == "stage1" else recipes.Stage2
        recipe = options.parse_recipe(kind, arguments, prog=f"ziprerank train {stage}")
        from accelerate import PartialState

        from llama_index_ziprerank.training.metrics import metrics_table
        from llama_index_ziprerank.training.run import train
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}. Install it with: pip install 'llama-index-ziprerank[training]'") from error
    logging.basicConfig(level=logging.WARNING)
    with contextlib.redirect_stdout(sys.stderr):  # the Trainer's log is progress, not a result
        trained = train(recipe)
    if not PartialState().is_main_process:
        return
    if trained.quality:
        out.print(metrics_table(trained.quality), markup=False, soft_wrap=True)
    err.print(f"The trained reranker is in {trained.folder}.", soft_wrap=True)


if __name__ == "__main__":
    train_app(prog_name="ziprerank train")
