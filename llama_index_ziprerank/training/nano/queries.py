"""Queries for manual pages, made from their text layer: heading lines, phrases, keywords, and questions around them."""

import math
import random
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from llama_index_ziprerank.training.nano.corpus import CorpusPage, iterate_words

QUESTIONS = (
    "How do I use {}?",
    "What is {}?",
    "How does {} work?",
    "Where is {} described?",
    "What does {} mean?",
    "explain {}",
    "Which page is about {}?",
    "How can I change {}?",
)

_WORD = re.compile(r"[^\W_]{2,}")


@dataclass(frozen=True)
class PageWords:
    """The words of a page with their place. W words; places are fractions of the page's height and width."""

    manual: str
    words: list[str]  # as printed
    terms: list[str]  # lower-case, first alphanumeric run; "" when there is none
    places: np.ndarray  # (W, 2) float32: vertical and horizontal middle
    heights: np.ndarray  # (W,) float32, in fractions of the page


def page_words(page: CorpusPage) -> PageWords:
    """Collect the words of a page in reading order."""
    height, width = page.image.shape
    found = [(word, boxes) for word, boxes in iterate_words(page) if len(word) < 40]
    terms = [match.group().lower() if (match := _WORD.search(word)) else "" for word, _ in found]
    middles = [((b[0, 1] + b[0, 3]) / 2 / height, (b[0, 0] + b[-1, 2]) / 2 / width) for _, b in found]
    heights = [(b[0, 3] - b[0, 1]) / height for _, b in found]
    places = np.array(middles, np.float32).reshape(-1, 2)
    return PageWords(page.manual, [word for word, _ in found], terms, places, np.array(heights, np.float32))


def inverse_document_frequency(pages: list[PageWords]) -> dict[str, float]:
    """log((1 + pages) / (1 + pages with the term)) of every term."""
    counts = Counter(term for page in pages for term in set(page.terms))
    return {term: math.log((1 + len(pages)) / (1 + count)) for term, count in counts.items()}


def make_query(page: PageWords, within: np.ndarray, rarity: dict[str, float], rng: random.Random) -> str | None:
    """Make one query that the words at `within` (indices in reading order) answer; None when they hold too little."""
    useful = [index for index in within if page.terms[index] and rarity.get(page.terms[index], 0) > 1.5]
    if len(useful) < 2:
        return None
    kind = rng.random()
    if kind < 0.35 and (heading := _heading(page, within, rng)):
        words = heading
    elif kind < 0.65:
        start = rng.choice(useful)
        run = [index for index in range(start, start + rng.randint(2, 6)) if index in set(within.tolist())]
        words = [page.words[index] for index in run]
    else:
        anchor = rng.randrange(len(useful))
        near = useful[max(0, anchor - 6) : anchor + 6]
        weights = [rarity[page.terms[index]] for index in near]
        chosen = sorted(set(rng.choices(near, weights, k=rng.randint(2, 5))))
        words = [page.terms[index] for index in chosen]
    text = " ".join(words).strip(" .,:;()[]")
    if sum(rarity.get(term, 0) > 1.5 for term in terms_of(text)) < 1 or len(text) < 4:
        return None
    text = text if rng.random() < 0.5 else text.lower()
    return rng.choice(QUESTIONS).format(text) if rng.random() < 0.25 else text


def _heading(page: PageWords, within: np.ndarray, rng: random.Random) -> list[str] | None:
    """A run of words set at least a tenth larger than the page's common size, numbering left off."""
    large = page.heights[within] > 1.1 * np.median(page.heights)
    runs: list[list[int]] = []
    for index, is_large in zip(within, large, strict=True):
        if is_large and runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        elif is_large:
            runs.append([index])
    headings = [run for run in runs if 2 <= len(run) <= 12]
    if not headings:
        return None
    words = [page.words[index] for index in rng.choice(headings)]
    while words and re.fullmatch(r"[\dA-Z]?[\d.]*", words[0]):
        words = words[1:]
    return words or None


def terms_of(text: str) -> list[str]:
    """Lower-case words of a query."""
    return [match.group().lower() for match in _WORD.finditer(text)]
