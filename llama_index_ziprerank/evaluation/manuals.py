"""Search real PDF manuals for the page of each heading: random, BM25, the first stage, and the reranked first stage.

Labels come from the PDF outlines (`headings`). All four rank the same candidates: every page of the heading's manual
that is not a contents or index page, or `pool` of them. The reranker reorders the first `top_k` pages of the first
stage; the rest keep their places behind them. BM25 reads the text layer, the other two see pictures only.
"""

import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, TypeVar

import bm25s
import numpy as np
from PIL import Image

from llama_index_ziprerank.debian import fetch_file
from llama_index_ziprerank.evaluation.headings import HeadingQuery, label_manual, read_outline
from llama_index_ziprerank.evaluation.results import QueryResult, ResultsFile, write_trec
from llama_index_ziprerank.pages.pdf import read_pages
from llama_index_ziprerank.reranking import ListwiseReranker, PageFeatures
from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder

DEVELOPMENT_MANUALS = {
    "nettle-dev": "nettle.pdf",
    "gle-graphics-manual": "gle-manual.pdf",
    "debmake-doc": "debmake-doc.en.pdf",
    "krb5-doc": "admin.pdf",
    "python-reportlab-doc": "reportlab-userguide.pdf",
    "slepc3.18-doc": "slepc.pdf",
}
"""Debian package → the manual in it. For measuring only: nothing of ours is ever trained on these."""

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG

T = TypeVar("T")


class Track(Protocol):
    """Shows progress over items, of which there are `total` if that is known, and gives them back."""

    def __call__(self, items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]: ...


def _silently(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    return items


@dataclass(frozen=True)
class Settings:
    """What is measured. Equal settings give equal results."""

    retriever: str = "nano"
    reranker: str = "nano"
    queries: int | None = None
    """Headings drawn from each manual; all of them by default."""
    pool: int | None = None
    """Candidate pages of a query: its answer and others drawn at random. The whole manual by default."""
    top_k: int = 20
    """Pages of the first stage that are reranked."""
    keep_ratio: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("queries", 1), ("pool", 2), ("top_k", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}.")


class _Models:
    """Both models of a configuration, loaded when a manual first needs them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def encoder(self) -> MultiVectorEncoder:
        return MultiVectorEncoder.from_pretrained(self._settings.retriever)

    @cached_property
    def reranker(self) -> ListwiseReranker:
        return ListwiseReranker.from_pretrained(self._settings.reranker)


@dataclass(frozen=True)
class _Manual:
    name: str
    queries: tuple[HeadingQuery, ...]
    candidates: tuple[int, ...]
    texts: list[str] = field(repr=False)  # texts[i] and pictures[i] belong to page i + 1
    pictures: list[bytes] = field(repr=False)  # PNG: as pixels, a long manual would take gigabytes

    def image(self, page: int) -> Image.Image:
        return Image.open(BytesIO(self.pictures[page - 1]))


def fetch_development_manuals(folder: Path, track: Track = _silently) -> list[Path]:
    """Download the six development manuals into `folder`, unless they are there; FetchError where that cannot be."""
    manuals = DEVELOPMENT_MANUALS.items()
    return [fetch_file(package, name, folder) for package, name in track(manuals, "fetching manuals", len(manuals))]


def evaluate_manuals(
    paths: Sequence[Path], settings: Settings, folder: Path, track: Track = _silently
) -> list[QueryResult]:
    """Measure on manuals; write `results.jsonl`, `qrels.trec` and one `<system>.trec` each into `folder`.

    Every query is written down when it is done, so that a second call goes on where the first was interrupted.

    Raises:
        ValueError: when manuals share a name, give no query, or `folder` holds results of other settings.
        PageError: when a manual cannot be read.
    """
    names = ["-".join(path.stem.split()) for path in paths]
    if len(set(names)) != len(names):
        raise ValueError(f"Manuals are told apart by their file names, got {', '.join(names)}. Rename one.")
    folder.mkdir(parents=True, exist_ok=True)
    file = ResultsFile(folder / "results.jsonl", asdict(settings))
    models = _Models(settings)
    for path, name in zip(paths, names, strict=True):
        if file.is_complete(name):
            continue
        manual = _read_manual(path, name, track)
        for result in _measure(manual, models, settings, file.query_ids(), track):
            file.add(result)
    results = [result for result in file.results if result.manual in names]
    if not results:
        raise ValueError("No manual has an outline with headings that can be asked. Name PDFs with bookmarks.")
    write_trec(results, folder)
    return results


def _read_manual(path: Path, name: str, track: Track) -> _Manual:
    texts, pictures = [], []
    for page in track(read_pages(path), f"{name}: reading"):
        picture = BytesIO()
        page.image.save(picture, "PNG", compress_level=1)
        texts.append(page.text)
        pictures.append(picture.getvalue())
    labelled = label_manual(read_outline(path), texts)
    return _Manual(name, labelled.queries, labelled.candidates, texts, pictures)


def _measure(
    manual: _Manual, models: _Models, settings: Settings, done: set[str], track: Track
) -> Iterator[QueryResult]:
    queries = _draw(manual, settings)
    waiting = {query_id: query for query_id, query in queries.items() if query_id not in done}
    if not waiting:
        return
    images = (manual.image(page) for page in manual.candidates)
    encoded = track(models.encoder.stream_images(images), f"{manual.name}: first stage", len(manual.candidates))
    vectors = dict(zip(manual.candidates, encoded, strict=True))
    seen: dict[int, PageFeatures] = {}  # a page is asked about by many queries, the vision tower reads it once
    rank_by_text = _text_ranker(manual)
    for query_id, query in track(waiting.items(), f"{manual.name}: queries", len(waiting)):
        pool = _pool(manual, query, query_id, settings)
        clock = [time.perf_counter()]
        by_text = rank_by_text(query.text, pool)
        clock.append(time.perf_counter())
        [asked] = models.encoder.encode_queries([query.text])
        first = _best_first(pool, [_maxsim(asked, vectors[page]) for page in pool])
        clock.append(time.perf_counter())
        head, tail = first[: settings.top_k], first[settings.top_k :]
        new = [page for page in head if page not in seen]
        seen.update(zip(new, models.reranker.encode_pages([manual.image(page) for page in new]), strict=True))
        ranking = models.reranker.rerank(query.text, [seen[page] for page in head], settings.keep_ratio)
        clock.append(time.perf_counter())
        rankings = {"bm25": by_text, "first_stage": first, "reranked": [head[i] for i in ranking.order] + tail}
        seconds = {system: end - start for system, start, end in zip(rankings, clock, clock[1:], strict=False)}
        yield QueryResult(manual.name, query_id, query.text, query.page, len(queries), rankings, seconds)


def _draw(manual: _Manual, settings: Settings) -> dict[str, HeadingQuery]:
    """The queries that are asked, by id, in the manual's order."""
    queries = {f"{manual.name}:{number:04d}": query for number, query in enumerate(manual.queries, start=1)}
    if settings.queries is None or settings.queries >= len(queries):
        return queries
    drawn = random.Random(f"{settings.seed} {manual.name}").sample(sorted(queries), settings.queries)
    return {query_id: queries[query_id] for query_id in sorted(drawn)}


def _pool(manual: _Manual, query: HeadingQuery, query_id: str, settings: Settings) -> list[int]:
    """The pages that compete, in the manual's order."""
    others = [page for page in manual.candidates if page != query.page]
    if settings.pool is not None and settings.pool - 1 < len(others):
        others = random.Random(f"{settings.seed} {query_id}").sample(others, settings.pool - 1)
    return sorted([query.page, *others])


def _maxsim(query: np.ndarray, page: np.ndarray) -> float:
    """Sum over query vectors of the best page vector's dot product: (T, D), (N, D) -> one number."""
    return float((query @ page.T).max(axis=1).sum())


def _text_ranker(manual: _Manual) -> Callable[[str, list[int]], list[int]]:
    """Build BM25 over the text layer of the manual's candidates, with the defaults of bm25s."""
    words: dict[str, Any] = {"stopwords": "en", "show_progress": False, "return_ids": False}
    index = bm25s.BM25()
    index.index(bm25s.tokenize([manual.texts[page - 1] for page in manual.candidates], **words), show_progress=False)

    def rank(query: str, pool: list[int]) -> list[int]:
        [asked] = bm25s.tokenize([query], **words)
        scores = dict(zip(manual.candidates, index.get_scores(asked).tolist(), strict=True))
        return _best_first(pool, [scores[page] for page in pool])

    return rank


def _best_first(pages: list[int], scores: Sequence[float]) -> list[int]:
    """Sort by falling score; equal scores keep the order of the pages."""
    return [page for _, page in sorted(zip(scores, pages, strict=True), key=lambda pair: -pair[0])]
