"""`ziprerank ask --report`: the pages found, what was read of them, and how the order changed, as one HTML file."""

from pathlib import Path
from typing import TYPE_CHECKING

from llama_index_ziprerank.cli.console import check_target, err

if TYPE_CHECKING:
    from llama_index_ziprerank import ColPaliIndex, ZipRerankPostprocessor


def check_report(path: Path | None) -> None:
    """Refuse before the work what could not be saved after it."""
    if path is None:
        return
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{path} has no ending of a web page. Name it .html.")
    check_target(path)


def save_report(
    source: "ColPaliIndex", question: str, reranker: "ZipRerankPostprocessor", candidates: int, path: Path
) -> None:
    """Ask once more, this time with reasons, and write them down; nothing is written when no page was found."""
    from llama_index_ziprerank.report import write_report

    with err.status("writing the report"):
        nodes = source.as_retriever(candidates).retrieve(question)
        if nodes:
            write_report(reranker.explain(question, nodes, source), path)
    if nodes:
        err.print(f"Report: {path}", soft_wrap=True)
