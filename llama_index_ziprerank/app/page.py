"""The page itself, in Gradio: what was dropped on the left, what was found on the right.

Nothing comes from the network: fonts are the system's, usage is not reported, runs are not recorded.
"""

import html
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read by gradio while it is imported

import gradio as gr  # noqa: E402

from llama_index_ziprerank.app.desk import Desk  # noqa: E402
from llama_index_ziprerank.report import Run, render_findings, render_runs, render_shelf, style  # noqa: E402

_THEME = gr.themes.Base(
    primary_hue="blue",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
)
_LAYOUT = """
.gradio-container { max-width: 1560px !important; }
.gradio-container .zr { min-height: 0; padding: 0; background: none; }
.gradio-container .zr h1 { font-size: 24px; }
.gradio-container .zr h2 { margin: 22px 0 10px; }
.gradio-container .zr-changed { padding: 12px 16px; gap: 10px 16px; }
.gradio-container .zr-row img { max-height: 104px; }
.gradio-container .zr-title { display: none; }
.gradio-container .zr-legend { margin: 0 0 14px; }
"""
_WELCOME = """<main class="zr"><p class="zr-welcome">Drop PDF files, type a question, press Ask. The best pages appear
here, with what the reranker read of each. Then move the keep ratio and see how order and time change.</p></main>"""
_ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "desk", "concurrency_limit": 1, "api_visibility": "private"}


def build_page(desk: Desk) -> gr.Blocks:
    """Lay out the page over a desk."""
    with gr.Blocks(title="ZipRerank", fill_width=True, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        runs = gr.State([])
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                files = gr.File(label="PDF files", file_count="multiple", file_types=[".pdf"], height=150)
                shelf = gr.HTML(lambda: render_shelf(_shelf(desk)), apply_default_css=False)
                question = gr.Textbox(label="Question", placeholder="How do I draw a bar graph?", lines=2, max_lines=4)
                ask = gr.Button("Ask", variant="primary")
                keep_ratio = gr.Slider(
                    0.01,
                    1,
                    desk.keep_ratio,
                    step=0.01,
                    label="Keep ratio",
                    info="Part of each page that the language model reads",
                )
                top_n = gr.Slider(1, 10, 5, step=1, label="Pages to show")
                clear = gr.Button("Remove all PDFs", size="sm")
            with gr.Column(scale=4, min_width=480):
                history = gr.HTML("", apply_default_css=False)
                findings = gr.HTML(_WELCOME, apply_default_css=False)
        files.upload(_adding(desk), files, [files, shelf], **_ONE_AT_A_TIME)
        clear.click(_clearing(desk), None, [shelf, findings, history, runs], **_ONE_AT_A_TIME)
        asked: dict[str, Any] = {
            "inputs": [question, keep_ratio, top_n, runs],
            "outputs": [findings, history, runs],
            **_ONE_AT_A_TIME,
        }
        gr.on([ask.click, question.submit], _asking(desk), **asked)
        gr.on([keep_ratio.release, top_n.release], _asking(desk, again=True), **asked)
    return page


def serve(desk: Desk, port: int | None = None, *, in_browser: bool = False) -> gr.Blocks:
    """Serve the page to this machine alone; its address is ``local_url``, ``close()`` ends it.

    Raises:
        OSError: when the port, or every port from 7860 to 7959, is taken.
    """
    page = build_page(desk)
    page.launch(
        server_name="127.0.0.1",
        server_port=port,
        inbrowser=in_browser,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        max_file_size="500mb",
        theme=_THEME,
        head=f"<style>{style()}{_LAYOUT}</style>",
    )
    return page


def _show(progress: gr.Progress, name: str, done: int) -> None:
    progress((done, None), desc=name, unit="pages")


def _adding(desk: Desk) -> Callable[..., tuple[None, str]]:
    def add(paths: list[str], progress: gr.Progress = gr.Progress()) -> tuple[None, str]:  # noqa: B008
        for path in map(Path, paths):
            try:
                desk.add(path, partial(_show, progress, path.name))
            except (OSError, RuntimeError, ValueError) as error:
                gr.Warning(html.escape(str(error).replace(str(path), path.name)), duration=None)
        return None, render_shelf(_shelf(desk))

    return add


def _clearing(desk: Desk) -> Callable[[], tuple[str, str, str, list[Run]]]:
    def clear() -> tuple[str, str, str, list[Run]]:
        desk.clear()
        return render_shelf(_shelf(desk)), _WELCOME, "", []

    return clear


def _asking(desk: Desk, *, again: bool = False) -> Callable[..., tuple[Any, Any, list[Run]]]:
    """Make the handler of a question; ``again``: of a slider, which does nothing before the first question."""

    def ask(question: str, keep_ratio: float, top_n: int, runs: list[Run]) -> tuple[Any, Any, list[Run]]:
        if again and not runs:
            return gr.skip(), gr.skip(), runs
        try:
            explanation = desk.ask(runs[0].query if again else question, keep_ratio, int(top_n))
        except (ArithmeticError, OSError, RuntimeError, ValueError) as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error
        runs = [*(run for run in runs if run.query == explanation.query), Run.of(explanation)]
        return render_findings(explanation), render_runs(runs), runs

    return ask


def _shelf(desk: Desk) -> list[tuple[str, int]]:
    return [(item.name, item.pages) for item in desk.shelf]
