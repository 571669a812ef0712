"""Patch maps drawn on pages: heat where a patch looks like the query, and which patches counted.

Heat multiplies: paper turns yellow, orange, red, while the print on it stays black and legible. Patches are drawn as
the squares that they are, never smoothed.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from llama_index_ziprerank.pages.contact_sheet import GROUND
from llama_index_ziprerank.pages.images import fit_within, to_rgb
from llama_index_ziprerank.pages.patch_map import PatchMap, Scale

Style = Literal["read", "matched"]
"""``"read"``: patches that were not chosen are veiled. ``"matched"``: patches that were chosen get a frame."""

SIDE = 900
"""Longer side of the drawings, in pixels: print stays legible, a file stays below 200 kB."""

_HEAT = np.array([(255, 255, 255), (255, 237, 140), (254, 178, 76), (240, 96, 50)], dtype=np.float32)
"""Colours from cold to hot (ColorBrewer's YlOrRd, its cold end white, its hot end light enough for black print)."""
_VEIL, _VEIL_STRENGTH = (198, 205, 213), 0.82
_FRAME = (34, 86, 190)


def draw_patches(
    image: Image.Image, patch_map: PatchMap, scale: Scale, style: Style, *, side: int = SIDE
) -> Image.Image:
    """Draw a page with its map laid over it, its longer side ``side`` pixels at most."""
    page = fit_within(to_rgb(image), side)
    colours = heat_colours(scale.heat(patch_map.values))  # (R, C, 3)
    drawn = _multiply(page, _to_size(colours, page.size))
    if style == "read":
        return _veil(drawn, ~patch_map.chosen)
    return _frame(drawn, patch_map.chosen)


def heat_colours(heat: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Turn heat from 0 to 1 into colours: (R, C) -> (R, C, 3)."""
    stops = np.linspace(0, 1, len(_HEAT))
    channels = [np.interp(heat, stops, _HEAT[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Put pictures under each other, on the contact sheet's ground.

    Raises:
        ValueError: when there is none.
    """
    if not pictures:
        raise ValueError("There is nothing to stack: pass at least one picture.")
    size = max(picture.width for picture in pictures), sum(picture.height for picture in pictures)
    whole, top = Image.new("RGB", size, GROUND), 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    return whole


def _to_size(cells: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Enlarge cells to a picture of ``size`` (width, height): (R, C, ...) -> (height, width, ...)."""
    enlarged = Image.fromarray(cells).resize(size, Image.Resampling.NEAREST)
    return np.asarray(enlarged, dtype=np.float32)


def _multiply(page: Image.Image, colours: npt.NDArray[np.float32]) -> Image.Image:
    return Image.fromarray((np.asarray(page, dtype=np.float32) * colours / 255).astype(np.uint8))


def _veil(page: Image.Image, hidden: npt.NDArray[np.bool_]) -> Image.Image:
    """Lay a grey veil over cells (R, C)."""
    strength = _to_size(hidden.astype(np.uint8), page.size)[..., None] * _VEIL_STRENGTH  # (height, width, 1)
    pixels = np.asarray(page, dtype=np.float32)
    return Image.fromarray((pixels + (np.array(_VEIL, dtype=np.float32) - pixels) * strength).astype(np.uint8))


def _frame(page: Image.Image, chosen: npt.NDArray[np.bool_]) -> Image.Image:
    """Draw a frame around every chosen cell."""
    rows, columns = chosen.shape
    draw = ImageDraw.Draw(page)
    for row, column in np.argwhere(chosen).tolist():
        left, top = column * page.width / columns, row * page.height / rows
        right, bottom = (column + 1) * page.width / columns, (row + 1) * page.height / rows
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=_FRAME, width=2)
    return page
