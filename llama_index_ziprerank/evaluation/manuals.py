"""Search real PDF manuals: random, BM25, the first stage, and the reranked first stage.

Queries and their pages come from the manuals themselves (`labels`). All systems rank the same candidates: every page of
the query's manual that is not a contents or index page, or `pool` of them. The reranker reorders the first `top_k`
pages of the first stage, whose scores count as much as the checkpoint says (`fusion`); the rest keep their places
behind them. BM25 reads the text layer, the other two see pictures only. A page is drawn and encoded once for each
stage, whatever the number of queries and of ways to prune.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
from PIL import Image

from llama_index_ziprerank.debian import fetch_file
from llama_index_ziprerank.evaluation.degradation import degrade
from llama_index_ziprerank.evaluation.digests import checkpoint_digests, file_digest
from llama_index_ziprerank.evaluation.manual_settings import Pruning, Settings
from llama_index_ziprerank.evaluation.results import (
    BM25,
    FIRST_STAGE,
    MODEL_ALONE,
    RERANKED,
    QueryResult,
    ResultsFile,
    is_complete,
    write_runs,
)
from llama_index_ziprerank.evaluation.tracking import Track, silently
from llama_index_ziprerank.labels import ManualQuery, draw, label_manual
from llama_index_ziprerank.labels.headings import read_outline
from llama_index_ziprerank.pages.pdf import count_pages, read_pages
from llama_index_ziprerank.reranking import ListwiseReranker, PageFeatures, Ranking
from llama_index_ziprerank.reranking.permutation import WINDOW_SIZE
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


class _Models:
    """Both models of a configuration, loaded when a manual first needs them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def encoder(self) -> MultiVectorEncoder:
        return MultiVectorEncoder.from_pretrained(self._settings.retriever)

    @cached_property
    def reranker(self) -> ListwiseReranker:
        return ListwiseReranker.from_pretrained(self._settings.reranker, sides=self._settings.sides)


@dataclass(frozen=True)
class _Manual:
    name: str
    document: str  # digest of the file
    queries: dict[str, ManualQuery]  # those that are asked, by id
    candidates: tuple[int, ...]
    texts: list[str] = field(repr=False)  # texts[i] and pictures[i] belong to page i + 1
    pictures: list[bytes] = field(repr=False)  # PNG: as pixels, a long manual would take gigabytes

    def image(self, page: int) -> Image.Image:
        return Image.open(BytesIO(self.pictures[page - 1]))


def fetch_development_manuals(folder: Path, track: Track = silently) -> list[Path]:
    """Download the six development manuals into `folder`, unless they are there; FetchError where that cannot be."""
    manuals = DEVELOPMENT_MANUALS.items()
    return [fetch_file(package, name, folder) for package, name in track(manuals, "fetching manuals", len(manuals))]


def evaluate_manuals(
    paths: Sequence[Path], settings: Settings, folder: Path, track: Track = silently
) -> list[QueryResult]:
    """Measure on manuals; write `results.jsonl`, and qrels and one run for each system, into `folder`.

    Every query is written down when it is done, so that a second call goes on where the first was interrupted.

    Raises:
        ValueError: when manuals share a name, give no query, or `folder` holds results of other settings, other weights
            or another manual of the same name.
        PageError: when a manual cannot be read.
    """
    names = ["-".join(path.stem.split()) for path in paths]
    if len(set(names)) != len(names):
        raise ValueError(f"Manuals are told apart by their file names, got {', '.join(names)}. Rename one.")
    documents = {name: file_digest(path) for path, name in zip(paths, names, strict=True) if path.is_file()}
    folder.mkdir(parents=True, exist_ok=True)
    weights = checkpoint_digests(reranker=settings.reranker, retriever=settings.retriever)
    file = ResultsFile(folder / "results.jsonl", {**asdict(settings), "weights": weights}, QueryResult)
    for result in file.results:
        if documents.get(result.manual, result.document) != result.document:
            raise ValueError(
                f"{file.path} holds results of another file of the name {result.manual!r}. Name another folder, or "
                "rename the PDF."
            )
    waiting = [(path, name) for path, name in zip(paths, names, strict=True) if not is_complete(name, file.results)]
    for path, _ in waiting:
        read_pages(path)  # opens it: what is wrong with a file is told before the work begins
        read_outline(path)
    models = _Models(settings)
    for path, name in waiting:
        manual = _read_manual(path, name, documents[name], settings, track)
        for result in _measure(manual, models, settings, file.query_ids(), track):
            file.add(result)
    results = [result for result in file.results if result.manual in names]
    if not results:
        raise ValueError(
            f"No manual gives a query of the kinds {', '.join(settings.kinds)}. "
            "Name PDFs with bookmarks, an index at the back, or captions."
        )
    write_runs(results, folder)
    return results


def _read_manual(path: Path, name: str, document: str, settings: Settings, track: Track) -> _Manual:
    texts, printed, pictures = [], [], []
    for page in track(read_pages(path), f"{name}: reading", count_pages(path)):
        picture = BytesIO()
        image = degrade(page.image, settings.degradation, f"{settings.seed} {name} {page.number}")
        image.save(picture, "PNG", compress_level=1)
        texts.append(page.text)
        printed.append(page.label)
        pictures.append(picture.getvalue())
    labelled = label_manual(read_outline(path), texts, printed, settings.kinds)
    queries = draw(name, labelled.queries, settings.queries, settings.seed)
    return _Manual(name, document, queries, labelled.candidates, texts, pictures)


def _measure(
    manual: _Manual, models: _Models, settings: Settings, done: set[str], track: Track
) -> Iterator[QueryResult]:
    waiting = {query_id: query for query_id, query in manual.queries.items() if query_id not in done}
    if not waiting:
        return
    images = (manual.image(page) for page in manual.candidates)
    encoded = track(models.encoder.stream_images(images), f"{manual.name}: first stage", len(manual.candidates))
    vectors = dict(zip(manual.candidates, encoded, strict=True))
    rank_by_text = _text_ranker(manual)
    rerank = _Reranking(manual, models.reranker, settings)
    for query_id, query in track(waiting.items(), f"{manual.name}: queries", len(waiting)):
        pool = _pool(manual, query, query_id, settings)
        started = time.perf_counter()
        rankings = {BM25: rank_by_text(query.text, pool)}
        seconds = {BM25: time.perf_counter() - started}
        started = time.perf_counter()
        [asked] = models.encoder.encode_queries([query.text])
        scores = {page: _maxsim(asked, vectors[page]) for page in pool}
        rankings[FIRST_STAGE] = _best_first(pool, [scores[page] for page in pool])
        seconds[FIRST_STAGE] = time.perf_counter() - started
        for system, (order, taken) in rerank(query.text, rankings[FIRST_STAGE], scores).items():
            rankings[system], seconds[system] = order, taken
        yield QueryResult(
            manual.name,
            manual.document,
            query.kind,
            query_id,
            query.text,
            list(query.pages),
            len(manual.queries),
            rankings,
            {system: round(taken, 4) for system, taken in seconds.items()},
        )


class _Reranking:
    """Reranks the head of a ranking in every way of the settings; the vision tower reads a page once."""

    def __init__(self, manual: _Manual, reranker: ListwiseReranker, settings: Settings) -> None:
        self._manual = manual
        self._reranker = reranker
        self._settings = settings
        fuses = reranker.options(first_stage_weight=settings.first_stage_weight).first_stage_weight > 0
        self._tells_alone = fuses and settings.top_k <= WINDOW_SIZE  # logits of several windows cannot be compared
        self._seen: dict[int, PageFeatures] = {}

    def __call__(self, query: str, first: list[int], scores: Mapping[int, float]) -> dict[str, tuple[list[int], float]]:
        """System → its order of all pages, and its seconds without those of the vision tower.

        Args:
            query: the question.
            first: all pages in the first stage's order.
            scores: page → the first stage's score.
        """
        head, tail = first[: self._settings.top_k], first[self._settings.top_k :]
        for page in head:
            if page not in self._seen:
                [self._seen[page]] = self._reranker.encode_pages([self._manual.image(page)])
        pages = [self._seen[page] for page in head]
        ways = self._settings.rerankings()
        found: dict[Pruning, tuple[Ranking, float]] = {}
        for keep_ratio, pruning in dict.fromkeys(ways.values()):
            started = time.perf_counter()
            ranking = self._reranker.rerank(
                query,
                pages,
                keep_ratio,
                pruning,
                strategy=self._settings.strategy,
                first_stage_scores=[scores[page] for page in head],
                first_stage_weight=self._settings.first_stage_weight,
            )
            found[keep_ratio, pruning] = ranking, time.perf_counter() - started
        answers = {
            system: ([head[i] for i in found[way][0].order] + tail, found[way][1]) for system, way in ways.items()
        }
        if self._tells_alone:
            main, taken = found[ways[RERANKED]]
            answers[MODEL_ALONE] = _best_first(head, main.logits) + tail, taken
        return answers


def _pool(manual: _Manual, query: ManualQuery, query_id: str, settings: Settings) -> list[int]:
    """The pages that compete, in the manual's order."""
    others = [page for page in manual.candidates if page not in query.pages]
    room = len(others) if settings.pool is None else max(0, settings.pool - len(query.pages))
    if room < len(others):
        others = random.Random(f"{settings.seed} {query_id}").sample(others, room)
    return sorted([*query.pages, *others])


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
        if not asked:  # nothing but stop words and signs
            return list(pool)
        scores = dict(zip(manual.candidates, index.get_scores(asked).tolist(), strict=True))
        return _best_first(pool, [scores[page] for page in pool])

    return rank


def _best_first(pages: list[int], scores: Sequence[float]) -> list[int]:
    """Sort by falling score; equal scores keep the order of the pages."""
    return [page for _, page in sorted(zip(scores, pages, strict=True), key=lambda pair: -pair[0])]
