"""A bar chart of a few named shares, drawn like the contact sheet."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from llama_index_ziprerank.pages.contact_sheet import FAINT, GROUND, INK, LINE, MARGIN, ROSE, font, shorten

_ROW, _LABEL, _BAR, _NUMBER = 30, 420, 560, 90
_HEADER = 70


@dataclass(frozen=True)
class Bar:
    """One bar, from 0 to 1."""

    label: str
    share: float


def bar_chart(title: str, bars: Sequence[Bar]) -> Image.Image:
    """Draw bars under each other, each with its number; a bar as long as the row stands for 1.

    Raises:
        ValueError: when there is no bar, or a share is not from 0 to 1.
    """
    if not bars:
        raise ValueError("A bar chart needs at least one bar, got none.")
    for bar in bars:
        if not 0 <= bar.share <= 1:
            raise ValueError(f"A share is from 0 to 1, got {bar.share} for {bar.label!r}.")
    width = MARGIN + _LABEL + _BAR + _NUMBER + MARGIN
    chart = Image.new("RGB", (width, _HEADER + _ROW * len(bars) + MARGIN), GROUND)
    draw = ImageDraw.Draw(chart)
    draw.text((MARGIN, 22), shorten(title, 24, width - 2 * MARGIN), fill=INK, font=font(24))
    for row, bar in enumerate(bars):
        _draw_bar(draw, bar, _HEADER + row * _ROW)
    return chart


def _draw_bar(draw: ImageDraw.ImageDraw, bar: Bar, top: int) -> None:
    left = MARGIN + _LABEL
    draw.text((MARGIN, top + 4), shorten(bar.label, 17, _LABEL - 16), fill=INK, font=font(17))
    draw.rectangle((left, top + 5, left + _BAR, top + _ROW - 6), fill=LINE)
    if bar.share > 0:
        draw.rectangle((left, top + 5, left + max(1, round(bar.share * _BAR)), top + _ROW - 6), fill=ROSE)
    draw.text((left + _BAR + 12, top + 4), f"{bar.share:.1%}", fill=FAINT, font=font(17))
