"""An explanation becomes HTML: pictures as data URIs, no script, nothing from the network.

Questions, file names and page labels come from strangers: Jinja escapes all of them, and a content security policy lets
nothing but this file's own style and pictures in.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from llama_index_ziprerank.pages.images import fit_within, to_rgb
from llama_index_ziprerank.pages.overlay import SIDE
from llama_index_ziprerank.reranking.explanation import Explanation, PageExplanation

_TEMPLATES = Path(__file__).parent
_THUMBNAIL_SIDE = 220
_QUALITY = 82  # of WebP: print stays sharp, a page takes some 60 kB


@dataclass(frozen=True)
class _Thumbnail:
    """A page in the rows of what came first before and after."""

    page: PageExplanation
    picture: str


@dataclass(frozen=True)
class _Card:
    """One of the best pages with its pictures, as data URIs."""

    page: PageExplanation
    picture: str
    reading: str
    first_stage: str | None


def write_report(explanation: Explanation, path: str | Path) -> None:
    """Write the report as one UTF-8 file.

    Raises:
        OSError: when the file cannot be written.
    """
    Path(path).write_text(render_report(explanation), encoding="utf-8", errors="replace")


def render_report(explanation: Explanation) -> str:
    """Return a whole HTML page, light or dark as its reader's system is."""
    css = style()
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    template = _environment().get_template("report.html.jinja")
    return template.render(css=Markup(css), policy=policy, **_values(explanation))


def render_findings(explanation: Explanation) -> str:
    """Return the body of the report alone, for a page that brings `style` along."""
    return _environment().get_template("findings.html.jinja").render(**_values(explanation))


@dataclass(frozen=True)
class Run:
    """One asking of a question, to be compared with others."""

    query: str
    keep_ratio: float
    visual_tokens: int
    vision_seconds: float
    language_seconds: float
    titles: tuple[str, ...]
    """Of the best pages, best first."""

    @classmethod
    def of(cls, explanation: Explanation) -> "Run":
        """Keep of an explanation what `render_runs` shows."""
        return cls(
            explanation.query,
            explanation.options.keep_ratio,
            explanation.visual_tokens,
            explanation.vision_seconds,
            explanation.language_seconds,
            tuple(page.title for page in explanation.best),
        )


def render_runs(runs: Sequence[Run]) -> str:
    """Return a table of the runs of one question, latest first: tokens, time, and the order that came out."""
    slowest = max((run.language_seconds for run in runs), default=1.0) or 1.0
    return _environment().get_template("runs.html.jinja").render(runs=list(reversed(runs)), slowest=slowest)


def render_shelf(files: Sequence[tuple[str, int]]) -> str:
    """Return a list of PDF files, each with its number of pages."""
    return _environment().get_template("shelf.html.jinja").render(files=files)


@cache
def style() -> str:
    """Return the style sheet; an ancestor of class ``dark`` or ``light`` overrules the reader's system."""
    return (_TEMPLATES / "report.css").read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _values(explanation: Explanation) -> dict[str, object]:
    before = sorted(explanation.pages, key=lambda page: page.rank_before)[: explanation.top_n]
    folder = Path(explanation.model)
    return {
        "explanation": explanation,
        "reranker": folder.name if folder.is_dir() else explanation.model,  # paths are nobody's business
        "all_visual_tokens": sum(page.reading.chosen.size for page in explanation.pages),
        "read_once": explanation.visual_tokens == sum(page.kept for page in explanation.pages),
        "before": _thumbnails(before),
        "after": _thumbnails(explanation.best),
        "cards": [_card(explanation, page) for page in explanation.best],
    }


def _thumbnails(pages: Sequence[PageExplanation]) -> list[_Thumbnail]:
    return [_Thumbnail(page, _data_uri(page.image, _THUMBNAIL_SIDE)) for page in pages]


def _card(explanation: Explanation, page: PageExplanation) -> _Card:
    first_stage = explanation.draw_first_stage(page)
    return _Card(
        page,
        picture=_data_uri(page.image, SIDE),
        reading=_data_uri(explanation.draw_reading(page), SIDE),
        first_stage=None if first_stage is None else _data_uri(first_stage, SIDE),
    )


def _data_uri(image: Image.Image, side: int) -> str:
    buffer = BytesIO()
    fit_within(to_rgb(image), side).save(buffer, format="WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
