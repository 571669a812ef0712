"""`ziprerank`: a thin command line over the doors and the wings.

Results go to stdout, progress and errors to stderr. What a user can set right is one line and exit code 2.
Torch and LlamaIndex are imported inside the commands, so that `--help` stays quick.
"""

import io
import os
import signal
import sys
import threading
from collections.abc import Sequence

import typer

from llama_index_ziprerank.cli.app import app as open_app
from llama_index_ziprerank.cli.bench import bench
from llama_index_ziprerank.cli.drift import drift
from llama_index_ziprerank.cli.evaluate import evaluate
from llama_index_ziprerank.cli.finetune import finetune
from llama_index_ziprerank.cli.label import label
from llama_index_ziprerank.cli.models import models
from llama_index_ziprerank.cli.search import ask, index
from llama_index_ziprerank.cli.train import train_app

app = typer.Typer(
    help="Find the pages of PDF files that answer a question: a ColPali first stage, reordered by ZipRerank.",
    epilog="ZIPRERANK_DEBUG=1 shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(index)
app.command()(ask)
app.command()(models)
app.command("app")(open_app)
app.command()(label)
app.command()(finetune)
app.command()(bench)
app.command()(drift)
app.add_typer(evaluate, name="evaluate")
app.add_typer(train_app, name="train")


@app.callback()
def _quieten() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line, by default the one the process was started with; always ends in SystemExit."""
    terminated = threading.Event()

    def interrupt(number: int, frame: object) -> None:
        """End as after Ctrl-C: temporary folders go, and what was paid for is told; asyncio ends its tasks first."""
        terminated.set()
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.raise_signal(signal.SIGINT)

    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, interrupt)
        if sys.platform != "win32" and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            # A job that a script put in the background stays deaf to Ctrl-C, by a mask that `interrupt` can take off.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # pipes of Windows do not know the arrow of a table
    try:
        app(arguments, prog_name="ziprerank")
    except (ArithmeticError, ImportError, OSError, RuntimeError, ValueError) as error:  # what doors and rooms document
        if os.environ.get("ZIPRERANK_DEBUG"):
            raise
        print(f"ziprerank: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        sys.exit(2)
    finally:
        if terminated.is_set():
            sys.exit(128 + signal.SIGTERM)
