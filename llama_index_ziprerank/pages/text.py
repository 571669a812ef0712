"""Text as a page image: how stage 1 of ZipRerank shows passages to the model, and how nodes without an image take part.

As in the reference, runs of white space become one space, and the letters are as large as the canvas allows, up to a
limit. Unlike it, the font ships with the package, and long text gets smaller letters before any of it is cut.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_FONT = Path(__file__).parent / "fonts" / "DejaVuSans.ttf"
_CANVAS = 280  # pixels a side, as in stage 1
_LARGEST = 48 / _CANVAS  # the reference's largest letters, as a share of the canvas
_SMALLEST = 5  # pixels; the stage 1 canvas then holds about 3,700 characters of English
_MARGIN = 8 / _CANVAS  # as a share of the canvas
_SMALLEST_CANVAS = 32
_REPLACEMENTS = {"Cc": " ", "Cf": "", "Cs": "\N{REPLACEMENT CHARACTER}"}  # control, format, lone surrogate


def render_text(text: str, size: int = _CANVAS) -> Image.Image:
    """Draw `text` black on white, as large as fits on a square canvas of `size` pixels a side.

    Text that does not fit even in the smallest letters is cut and ends in an ellipsis; without text the canvas is
    blank. Characters that DejaVu Sans lacks (Chinese, Japanese, Korean, most of India's scripts) show as boxes, and
    right-to-left scripts are drawn unshaped, from left to right.

    Raises:
        ValueError: `size` is below 32 pixels.
    """
    if size < _SMALLEST_CANVAS:
        raise ValueError(f"A text canvas has at least {_SMALLEST_CANVAS} pixels a side, got {size}.")
    margin = round(size * _MARGIN)
    font, lines = _largest_fit(_words(text), size - 2 * margin, largest=int(size * _LARGEST))
    canvas = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(canvas)
    for row, line in enumerate(lines):
        draw.text((margin, margin + row * _line_height(font)), line, font=font, fill="black")
    return canvas


def _words(text: str) -> list[str]:
    composed = unicodedata.normalize("NFC", text)
    return "".join(_REPLACEMENTS.get(unicodedata.category(letter), letter) for letter in composed).split()


def _largest_fit(words: list[str], side: int, largest: int) -> tuple[ImageFont.FreeTypeFont, list[str]]:
    """Find by bisection the largest font whose lines all fit into `side` pixels; cut the text when none does."""
    font = _font(_SMALLEST)
    lines, complete = _laid_out(words, font, side)
    if not complete:
        return font, _ending_in_ellipsis(lines, font, side)
    low, high = _SMALLEST, largest
    while low < high:
        middle = (low + high + 1) // 2
        candidate, complete = _laid_out(words, _font(middle), side)
        if complete:
            low, lines = middle, candidate
        else:
            high = middle - 1
    return _font(low), lines


def _laid_out(words: list[str], font: ImageFont.FreeTypeFont, side: int) -> tuple[list[str], bool]:
    """Return the lines that fit into a square of `side` pixels, and whether they are all."""
    room = side // _line_height(font)
    lines = list(islice(_lines(words, font, side), room + 1))
    return lines[:room], len(lines) <= room


def _lines(words: Iterable[str], font: ImageFont.FreeTypeFont, width: int) -> Iterator[str]:
    line: list[str] = []
    used = 0.0
    space = _length(" ", font)
    for word in words:
        for piece in _pieces(word, font, width):
            length = _length(piece, font)
            if line and used + space + length > width:
                yield " ".join(line)
                line, used = [], 0.0
            used += length + (space if line else 0.0)
            line.append(piece)
    if line:
        yield " ".join(line)


def _pieces(word: str, font: ImageFont.FreeTypeFont, width: int) -> Iterator[str]:
    """Break a word that is wider than a line after as many letters as fit."""
    while _length(word[: width + 1], font) > width:  # a letter is at least a pixel wide
        end = _fitting_letters(word[: width + 1], font, width)
        yield word[:end]
        word = word[end:]
    if word:
        yield word


def _fitting_letters(word: str, font: ImageFont.FreeTypeFont, width: int) -> int:
    """Return how many of the first letters fit into `width` pixels, at least one."""
    ends = range(1, len(word) + 1)
    return max(1, bisect_right(ends, float(width), key=lambda end: font.getlength(word[:end])))


@lru_cache(maxsize=65_536)  # most words of a text were measured before
def _length(word: str, font: ImageFont.FreeTypeFont) -> float:
    return font.getlength(word)


def _ending_in_ellipsis(lines: list[str], font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    last = lines[-1]
    while last and font.getlength(last + "…") > width:
        last = last[:-1]
    return [*lines[:-1], last + "…"]


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Load the shipped font; the basic layout engine draws alike everywhere, with or without libraqm."""
    return ImageFont.truetype(_FONT, size, layout_engine=ImageFont.Layout.BASIC)


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    ascent, descent = font.getmetrics()
    return ascent + descent
