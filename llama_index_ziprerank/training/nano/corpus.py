"""Pages with the place of every character: what nano learns to read from.

Each page is stored as one ``.npz``: ``image`` (H, W) uint8 gray, ``codes`` (C,) uint32 code points and ``boxes`` (C, 4)
float32 pixels (x0, y0, x1, y1) of the characters, spaces included without area. pdfium gives pixels and places.
"""

import multiprocessing
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pypdfium2 as pdfium
from PIL import Image

RENDER_DPI = 150
INFERENCE_SIDE = 1024
"""The longest side that the reranker sees (FACTS of the checkpoint: images above it are scaled down)."""


@dataclass(frozen=True)
class CorpusPage:
    """One page with its characters. C characters, image of H x W pixels."""

    manual: str
    number: int
    image: np.ndarray  # (H, W) uint8
    codes: np.ndarray  # (C,) uint32
    boxes: np.ndarray  # (C, 4) float32: x0, y0, x1, y1 in pixels

    @property
    def text(self) -> str:
        """The page's text layer in reading order."""
        return "".join(map(chr, self.codes))


def render_page(pdf_page: pdfium.PdfPage, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Render one page to gray with `side` pixels on its longer side; return (image, codes, boxes)."""
    bitmap = pdf_page.render(scale=RENDER_DPI / 72)
    picture = bitmap.to_pil().convert("RGB")
    scale = side / max(picture.size)
    width, height = int(picture.width * scale), int(picture.height * scale)
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS), np.float32).mean(2)
    text = pdf_page.get_textpage()
    characters = text.get_text_range()
    count = text.count_chars()
    characters = characters[:count]
    points = width / pdf_page.get_width()
    boxes = np.zeros((len(characters), 4), np.float32)
    for index, character in enumerate(characters):
        if not character.isspace():
            left, bottom, right, top = text.get_charbox(index, loose=True)
            boxes[index] = left * points, height - top * points, right * points, height - bottom * points
    codes = np.array([ord(character) for character in characters], np.uint32)
    return pixels.round().astype(np.uint8), codes, boxes


def build_manual(pdf: Path, folder: Path, *, most_pages: int, seed: int = 0) -> int:
    """Render up to `most_pages` pages of one manual, most at the size of inference, some larger or smaller.

    Returns the number of pages that are there afterwards; pages of an earlier call are kept.
    """
    target = folder / pdf.stem
    target.mkdir(parents=True, exist_ok=True)
    document = pdfium.PdfDocument(pdf)
    numbers = sorted(random.Random(seed).sample(range(len(document)), min(most_pages, len(document))))
    for number in numbers:
        path = target / f"{number:05d}.npz"
        if not path.exists():
            rng = random.Random(f"{pdf.stem}-{number}")
            side = INFERENCE_SIDE if rng.random() < 0.6 else rng.randint(850, 1350)
            image, codes, boxes = render_page(document[number], side)
            np.savez(target / "partial.npz", image=image, codes=codes, boxes=boxes)
            (target / "partial.npz").rename(path)
    return len(numbers)


def build_corpus(pdfs: list[Path], folder: Path, *, most_pages: int, processes: int = 2) -> None:
    """Render all manuals, one process a manual at a time; says what it did."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        tasks = [(pdf, pool.apply_async(build_manual, (pdf, folder), {"most_pages": most_pages})) for pdf in pdfs]
        for pdf, task in tasks:
            print(f"{pdf.stem}: {task.get()} pages", flush=True)


def load_page(path: Path) -> CorpusPage:
    """Read one stored page."""
    with np.load(path) as stored:
        return CorpusPage(path.parent.name, int(path.stem), stored["image"], stored["codes"], stored["boxes"])


def load_text(path: Path) -> str:
    """Read the text layer of one stored page, and not its image."""
    with np.load(path) as stored:
        return "".join(map(chr, stored["codes"]))


def corpus_paths(folder: Path) -> list[Path]:
    """All stored pages, sorted by manual and number."""
    return sorted(path for path in folder.glob("*/*.npz") if path.stem.isdigit())


def iterate_words(page: CorpusPage) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each run of characters without space: (word, boxes of its characters (n, 4))."""
    start = None
    characters = page.text
    for index, character in enumerate(characters + " "):
        if character.isspace():
            if start is not None:
                yield characters[start:index], page.boxes[start:index]
            start = None
        elif start is None:
            start = index
