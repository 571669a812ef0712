"""Text set as page images in many fonts, with the place of every character known: breadth for reading (stage 0)."""

import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from llama_index_ziprerank.training.nano.corpus import CorpusPage

LONGEST_WORD = 30
"""Characters; longer words are cut."""

_SHUFFLED, _NAMES = 0.25, 0.35
"""Shares of the pages whose words are shuffled, and joined to names."""


def set_page(words: list[str], font_path: Path, rng: random.Random, width: int = 768, height: int = 1024) -> CorpusPage:
    """Set `words` in one font with random size, leading, indents and ink on one page of width x height pixels."""
    paper, ink = rng.choice([255, 255, 255, rng.randint(225, 255)]), rng.choice([0, 0, rng.randint(0, 90)])
    picture = Image.new("L", (width, height), paper)
    draw = ImageDraw.Draw(picture)
    codes: list[int] = []
    boxes: list[tuple[float, float, float, float]] = []
    margin = rng.randint(16, 110)
    top, source = float(rng.randint(10, 80)), iter(words)
    while top < height - 40:
        font = ImageFont.truetype(str(font_path), rng.choice([11, 12, 12, 13, 13, 14, 15, 16, 18, 22, 30]))
        length = cache(font.getlength)
        leading = font.size * rng.uniform(1.12, 1.6)
        for _ in range(rng.randint(1, 9)):  # a paragraph of one size
            left = float(margin + rng.choice([0, 0, 0, rng.randint(0, 60)]))
            while left < width - margin and top < height - leading:
                word = next(source, None)
                if word is None:
                    return CorpusPage(font_path.stem, 0, np.asarray(picture), np.array(codes, np.uint32), _array(boxes))
                edges = left + _edges(word, length)
                if edges[-1] > width - 8:
                    break
                draw.text((left, top), word, fill=ink, font=font)
                ascent, descent = font.getmetrics()
                for character, (start, end) in zip(word, pairwise(edges), strict=True):
                    codes.append(ord(character))
                    boxes.append((start, top, end, top + ascent + descent))
                codes.append(ord(" "))
                boxes.append((0.0, 0.0, 0.0, 0.0))
                left = edges[-1] + length(" ")
            top += leading
        top += rng.uniform(0, 1.5) * leading
    return CorpusPage(font_path.stem, 0, np.asarray(picture), np.array(codes, np.uint32), _array(boxes))


def _edges(word: str, length: Callable[[str], float]) -> np.ndarray:
    """Where the characters of a word begin and end, from 0: those of each alone, stretched to the whole. (n + 1,)"""
    edges = np.cumsum([0.0, *map(length, word)])
    return edges * (length(word) / edges[-1]) if edges[-1] else edges


def _array(boxes: list[tuple[float, float, float, float]]) -> np.ndarray:
    return np.array(boxes, np.float32).reshape(-1, 4)


def draw_pages(texts: list[str], fonts: list[Path], count: int, seed: int = 0) -> Iterator[tuple[list[str], Path, int]]:
    """Draw what `count` pages are set from: words, one of `fonts`, a seed.

    The words are those of `texts` in reading order, shuffled, or joined to names.
    """
    rng = random.Random(seed)
    for number in range(count):
        words = " ".join(rng.sample(texts, min(3, len(texts)))).split()
        words = [word[:LONGEST_WORD] for word in words if word.isascii()]
        order = rng.random()
        if order < _SHUFFLED + _NAMES:
            rng.shuffle(words)
        yield join_names(words, rng) if order < _NAMES else words, rng.choice(fonts), seed + number


def join_names(words: list[str], rng: random.Random) -> list[str]:
    """Join most words to names as programs have them: fileName, file_name, file.name, filename, FILE_NAME.

    Names are made of several word pieces each. Running text has few of them, and indexes at the back are full of them.
    """
    rest, names = iter(words), []
    for word in rest:
        parts = [part for part in (re.sub(r"\W", "", word), re.sub(r"\W", "", next(rest, ""))) if part]
        way = rng.choice(("plain", "", "_", "-", ".", "capitals"))
        if way == "plain" or len(parts) < 2:
            name = word
        else:
            name = "".join(map(str.capitalize, parts)) if way == "capitals" else way.join(parts)
        names.append(name.upper() if rng.random() < 0.1 else name)
    return [name[:LONGEST_WORD] for name in names]
