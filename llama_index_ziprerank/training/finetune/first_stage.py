"""Candidates by the first stage: every question searches its own document by MaxSim.

A page's vectors are kept as a file of their own, so an interrupted run encodes no page twice.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder
from llama_index_ziprerank.retrieval.store import Vectors
from llama_index_ziprerank.training.finetune.documents import Document, Track
from llama_index_ziprerank.training.finetune.questions import Asked

Ranked = list[tuple[int, float]]
"""All candidate pages of a document with their scores, best first."""

_BLOCK = 64
"""Questions that are compared with a page at a time."""


def rank_pages(
    document: Document,
    questions: Sequence[Asked],
    encoder: MultiVectorEncoder,
    image: Callable[[str], Image.Image],
    folder: Path,
    track: Track,
) -> dict[str, Ranked]:
    """Return the ranking of each question about the document, by the question's id; vectors go into `folder`."""
    if not questions:
        return {}
    pages = document.labels.candidates
    vectors = _page_vectors(document, encoder, image, folder, track)
    texts = track([question.text for question in questions], f"{document.name}: encoding questions", len(questions))
    asked = [encoder.encode_queries([text])[0] for text in texts]  # (T, D) each
    scores = np.stack([max_sim(asked, page) for page in vectors], axis=1)  # (questions, pages)
    return {
        question.id: sorted(zip(pages, row, strict=True), key=lambda pair: -pair[1])
        for question, row in zip(questions, scores.tolist(), strict=True)
    }


def max_sim(asked: Sequence[Vectors], page: Vectors) -> np.ndarray:
    """Score a page for many questions: Q arrays (T, D), (P, D) -> (Q,). A page's vectors are read once for a block."""
    scores = []
    for start in range(0, len(asked), _BLOCK):
        block = asked[start : start + _BLOCK]
        best = (np.concatenate(block) @ page.T).max(axis=1)  # (T of all,)
        starts = np.cumsum([0, *(len(question) for question in block[:-1])])
        scores.append(np.add.reduceat(best, starts))
    return np.concatenate(scores)


def _page_vectors(
    document: Document,
    encoder: MultiVectorEncoder,
    image: Callable[[str], Image.Image],
    folder: Path,
    track: Track,
) -> Iterator[Vectors]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{document.page_id(page)}.npy" for page in document.labels.candidates]
    missing = [path for path in paths if not path.is_file()]
    encoded = encoder.stream_images(image(path.stem) for path in missing)
    for path, vectors in zip(missing, track(encoded, f"{document.name}: encoding pages", len(missing)), strict=True):
        unfinished = path.with_suffix(".partial")
        with unfinished.open("wb") as file:
            np.save(file, vectors)
        unfinished.replace(path)
    for path in paths:
        yield np.load(path, allow_pickle=False)
