"""What stands where on a page, as labels for reading: characters under points, word pieces under merged tokens."""

import multiprocessing
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from rich.progress import track
from transformers import PreTrainedTokenizerFast

from llama_index_ziprerank.training.nano.corpus import CorpusPage, iterate_words, load_page
from llama_index_ziprerank.training.nano.synthetic import set_page

GLYPHS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;-_()[]{}<>=+*/\\'\"#$%&@!?|~^`"
"""Characters told apart when reading; case is folded. Class 0 is blank, the last class is any other character."""

GLYPH_CLASSES = len(GLYPHS) + 2
POINT_STEP = 4
"""Pixels between the points along a line at which the character is asked for."""

_GLYPH_CLASS = {character: index + 1 for index, character in enumerate(GLYPHS)}


@dataclass(frozen=True)
class LabelledPage:
    """A page with its labels. H x W pixels, N word pieces."""

    image: np.ndarray  # (H, W) uint8
    glyphs: np.ndarray  # (H / 4, W / 4) uint8, class under the middle of each 4 x 4 square
    pieces: np.ndarray  # (N,) int32 token ids
    spans: np.ndarray  # (N, 3) float32: left, right, vertical middle in pixels


def label_page(page: CorpusPage, tokenizer: PreTrainedTokenizerFast) -> LabelledPage:
    """Label one page; words of a single character own no token, they say nothing about the page."""
    height, width = page.image.shape
    glyphs = np.zeros((height // POINT_STEP, width // POINT_STEP), np.uint8)
    for code, box in zip(page.codes, page.boxes, strict=True):
        if box[2] > box[0]:
            left, top, right, bottom = (max(0, int(round(edge / POINT_STEP))) for edge in box)
            glyphs[top:bottom, left : max(right, left + 1)] = _GLYPH_CLASS.get(chr(code).lower(), GLYPH_CLASSES - 1)
    words = [(word, boxes) for word, boxes in iterate_words(page) if len(word) > 1]
    pieces: list[int] = []
    spans: list[tuple[float, float, float]] = []
    if words:
        encoded = tokenizer([word for word, _ in words], add_special_tokens=False, return_offsets_mapping=True)
        for (_, boxes), ids, offsets in zip(words, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            for token, (start, end) in zip(ids, offsets, strict=True):
                span = boxes[start:end]
                if len(span):
                    pieces.append(token)
                    spans.append((span[0, 0], span[-1, 2], (span[0, 1] + span[0, 3]) / 2))
    return LabelledPage(page.image, glyphs, np.array(pieces, np.int32), np.array(spans, np.float32).reshape(-1, 3))


def label_pages(
    stored: Sequence[Path],
    drawn: Sequence[tuple[list[str], Path, int]],
    tokenizer: PreTrainedTokenizerFast,
    processes: int,
) -> list[LabelledPage]:
    """Label pages of the corpus, and set and label those that `synthetic.draw_pages` drew, in several processes."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        real = pool.imap(partial(_label_stored, tokenizer), stored, chunksize=16)
        synthetic = pool.imap(partial(_label_drawn, tokenizer), drawn, chunksize=4)
        return list(track(chain(real, synthetic), "Labelling pages", len(stored) + len(drawn)))


def _label_stored(tokenizer: PreTrainedTokenizerFast, path: Path) -> LabelledPage:
    return label_page(load_page(path), tokenizer)


def _label_drawn(tokenizer: PreTrainedTokenizerFast, drawn: tuple[list[str], Path, int]) -> LabelledPage:
    words, font, seed = drawn
    return label_page(set_page(words, font, random.Random(seed)), tokenizer)
