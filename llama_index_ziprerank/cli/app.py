"""`ziprerank app`: a page in the browser to try things out."""

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.status import Status

from llama_index_ziprerank.checkpoints import EMBEDDED
from llama_index_ziprerank.cli.console import err, hide_weight_bars, out


def app(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="PDF", help="PDF files to begin with.", show_default=False)
    ] = None,
    model: Annotated[str, typer.Option(metavar="NAME", help="Reranker; `ziprerank models` lists some.")] = EMBEDDED,
    retriever: Annotated[str, typer.Option(metavar="NAME", help="First-stage model.")] = EMBEDDED,
    port: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=65535, help="Default: the first free one from 7860.")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in the browser.")] = False,
) -> None:
    """Open a page in the browser: drop PDF files, ask, see what the reranker read."""
    try:
        from llama_index_ziprerank.app.page import serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ImportError('The page needs gradio. Install it: pip install "llama-index-ziprerank[app]"') from error
    from llama_index_ziprerank.app.desk import Desk

    hide_weight_bars()
    with err.status("loading the models"):
        desk = Desk(model, retriever)
    with closing(desk):
        for file in files or []:
            with err.status(f"indexing {file}") as status:
                desk.add(file, partial(_show, status, file))
        try:
            page = serve(desk, port, in_browser=browser)
        except OSError as error:  # gradio's own advice is for Python
            raise OSError(f"Port {port or '7860 to 7959'} is taken. Pass another one with --port.") from error
        out.print(f"The page is at {page.local_url} (Ctrl-C ends it).", soft_wrap=True)
        page.block_thread()


def _show(status: Status, file: Path, done: int) -> None:
    status.update(f"indexing {file}: {done} pages")
