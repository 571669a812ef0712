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


def rank_pages(
    document: Document,
    questions: Sequence[Asked],
    encoder: MultiVectorEncoder,
    image: Callable[[str], Image.Image],
    folder: Path,
    track: Track,
) -> dict[str, Ranked]:
    """Return the ranking of each question about the document, by the question's id; vectors go into `folder`."""
    pages = document.labels.candidates
    vectors = dict(zip(pages, _page_vectors(document, encoder, image, folder, track), strict=True))
    rankings = {}
    for question in track(questions, f"{document.name}: first stage", len(questions)):
        [asked] = encoder.encode_queries([question.text])
        scored = [(page, float((asked @ vectors[page].T).max(axis=1).sum())) for page in pages]
        rankings[question.id] = sorted(scored, key=lambda pair: -pair[1])
    return rankings


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
