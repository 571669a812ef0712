"""A contact sheet: small pictures of pages in a row, each with its rank, so that a person sees what was found."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from llama_index_ziprerank.pages.images import fit_within, to_rgb

_FONT = Path(__file__).parent / "fonts" / "DejaVuSans.ttf"
COLUMNS = 5
TILE_WIDTH, TILE_HEIGHT = 360, 470
MARGIN = 24
HEADER_HEIGHT = 80
CAPTION_HEIGHT = 76
INK, FAINT, LINE, GROUND = "#1c2733", "#667585", "#c3ccd5", "#eef1f4"
ROSE, FELL = "#1b7f4b", "#a04a1f"


@dataclass(frozen=True)
class Tile:
    """One page on the sheet. Both ranks count from 1."""

    image: Image.Image
    rank: int
    rank_before: int
    caption: str


def contact_sheet(title: str, tiles: Sequence[Tile]) -> Image.Image:
    """Draw the tiles in rows of `COLUMNS`, under a title; each says its rank and the one it had before.

    Raises:
        ValueError: when there is no tile.
    """
    if not tiles:
        raise ValueError("A contact sheet needs at least one page, got none.")
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    cell_width, cell_height = TILE_WIDTH + MARGIN, CAPTION_HEIGHT + TILE_HEIGHT + MARGIN
    sheet = Image.new("RGB", (MARGIN + columns * cell_width, HEADER_HEIGHT + rows * cell_height), GROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 26), shorten(title, 28, sheet.width - 2 * MARGIN), fill=INK, font=font(28))
    for position, tile in enumerate(tiles):
        row, column = divmod(position, columns)
        _draw_tile(sheet, draw, tile, MARGIN + column * cell_width, HEADER_HEIGHT + row * cell_height)
    return sheet


def _draw_tile(sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    draw.text((left, top), f"{tile.rank}", fill=INK, font=font(36))
    after_rank = left + draw.textlength(f"{tile.rank}", font=font(36)) + 14
    draw.text((after_rank, top + 12), *_movement(tile), font=font(20))
    draw.text((left, top + 46), shorten(tile.caption, 17, TILE_WIDTH), fill=FAINT, font=font(17))
    page = to_rgb(tile.image)
    scale = min(TILE_WIDTH / page.width, TILE_HEIGHT / page.height)
    page = fit_within(page, int(max(page.size) * scale)) if scale < 1 else page
    place = (left, top + CAPTION_HEIGHT)
    sheet.paste(page, place)
    draw.rectangle((place[0] - 1, place[1] - 1, place[0] + page.width, place[1] + page.height), outline=LINE)


def _movement(tile: Tile) -> tuple[str, str]:
    """What became of the page's rank, and the colour to say it in."""
    if tile.rank == tile.rank_before:
        return f"was {tile.rank_before}", FAINT
    arrow, colour = ("▲", ROSE) if tile.rank < tile.rank_before else ("▼", FELL)
    return f"{arrow} was {tile.rank_before}", colour


def shorten(text: str, size: int, width: int) -> str:
    """Cut `text` to `width` pixels, with an ellipsis where something was cut."""
    face = font(size)
    text = " ".join(text.split())
    if face.getlength(text) <= width:
        return text
    fitting = bisect_right(range(1, len(text)), float(width), key=lambda end: face.getlength(f"{text[:end]}…"))
    return f"{text[:fitting]}…"


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font that ships with the package, `size` pixels high."""
    return ImageFont.truetype(_FONT, size)
