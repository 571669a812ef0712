"""The report: an explanation as one HTML file that needs nothing else, safe to open whatever the PDF says."""

from llama_index_ziprerank.report.html import (
    Run,
    render_findings,
    render_report,
    render_runs,
    render_shelf,
    style,
    write_report,
)

__all__ = ["Run", "render_findings", "render_report", "render_runs", "render_shelf", "style", "write_report"]
