"""`ziprerank evaluate`: how well models find pages, on manuals of one's own and on published benchmarks."""

import typer

from llama_index_ziprerank.cli.evaluate_manuals import manuals
from llama_index_ziprerank.cli.evaluate_mmdocir import mmdocir
from llama_index_ziprerank.cli.evaluate_vidore import vidore

evaluate = typer.Typer(
    help="Measure models on documents with known answers.", no_args_is_help=True, rich_markup_mode=None
)
evaluate.command()(manuals)
evaluate.command()(mmdocir)
evaluate.command()(vidore)
