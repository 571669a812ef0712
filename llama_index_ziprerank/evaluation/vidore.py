"""Measure a first stage and its reranked order on a BEIR-like set of page images, as ViDoRe's are (arXiv:2407.01449).

The first stage's run is written down when it is there (`first_stage.jsonl`), then every query when it is reranked
(`results.jsonl`): a second call goes on behind both. nDCG@5 is ViDoRe's own metric, nDCG@10 that of its later versions.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llama_index_ziprerank.evaluation.digests import checkpoint_digests, content_digest
from llama_index_ziprerank.evaluation.first_stage import FirstStage, HeadReranker, RerankSettings
from llama_index_ziprerank.evaluation.image_sets import ImageSet
from llama_index_ziprerank.evaluation.results import FIRST_STAGE, RERANKED, ResultsFile, Score, Summary
from llama_index_ziprerank.evaluation.runs import measure, read_run, write_qrels, write_run
from llama_index_ziprerank.evaluation.tracking import Track, silently

METRICS = ("nDCG@5", "nDCG@10", "R@1", "R@5", "MRR")
DEPTH = 100
"""Pages of the first stage that are kept for every query."""


@dataclass(frozen=True)
class Settings:
    """What is measured. Equal settings give equal results."""

    name: str
    split: str | None = None
    """Of the set; "test", or the only one, by default."""
    retriever: str = "nano"
    rerank: RerankSettings = RerankSettings()
    queries: int | None = None
    """Queries drawn; all of them by default."""
    seed: int = 0


@dataclass(frozen=True)
class ImageSetResult:
    """One query and its two rankings."""

    query_id: str
    query: str
    relevant: dict[str, int]
    rankings: dict[str, list[str]]
    seconds: float
    """For reranking, vision tower included where it saw a page for the first time."""


def evaluate_image_set(
    image_set: ImageSet, settings: Settings, first_stage: FirstStage, to: Path, track: Track = silently
) -> list[ImageSetResult]:
    """Measure on one set; results, qrels and runs are written into `to`.

    Raises:
        ValueError: when `to` holds results of other settings, or of a set that has changed since.
        PageError: when an image cannot be read.
    """
    to.mkdir(parents=True, exist_ok=True)
    path, run_path = to / "results.jsonl", to / f"{FIRST_STAGE}.jsonl"
    if not path.exists() or not path.stat().st_size:  # then nothing says what made the run
        run_path.unlink(missing_ok=True)
    told = {
        **asdict(settings),
        "weights": checkpoint_digests(reranker=settings.rerank.model, retriever=settings.retriever),
        "data set": content_digest(
            image_set.queries, image_set.qrels, [(page, image_set.image_digest(page)) for page in image_set.images]
        ),
    }
    file = ResultsFile(path, told, ImageSetResult)
    asked = _drawn(image_set, settings)
    if not run_path.exists():
        images = track(image_set.pages(), f"{image_set.name}: first stage", len(image_set.images))
        queries = {query: image_set.queries[query] for query in asked}
        write_run(run_path, first_stage(images, queries, max(DEPTH, settings.rerank.top_k)), tag=FIRST_STAGE)
    run, done = read_run(run_path), file.query_ids()
    rerank = HeadReranker(settings.rerank)
    waiting = [query for query in asked if query not in done]
    for query in track(waiting, f"{image_set.name}: queries", len(waiting)):
        started = time.perf_counter()
        order = rerank(image_set.queries[query], run[query], image_set.image)
        seconds = round(time.perf_counter() - started, 4)
        rankings = {FIRST_STAGE: run[query], RERANKED: order}
        file.add(ImageSetResult(query, image_set.queries[query], image_set.qrels[query], rankings, seconds))
    _write_runs(file.results, to)
    return file.results


def summarize(results: Sequence[ImageSetResult]) -> Summary:
    """Return system → metric → score over all queries."""
    qrels = {result.query_id: result.relevant for result in results}
    summary: Summary = {}
    for system in (FIRST_STAGE, RERANKED):
        values = measure(qrels, {result.query_id: result.rankings[system] for result in results}, METRICS)
        summary[system] = {metric: Score.of(list(found.values())) for metric, found in values.items()}
    return summary


def _drawn(image_set: ImageSet, settings: Settings) -> list[str]:
    ids = list(image_set.queries)
    if settings.queries is None or settings.queries >= len(ids):
        return ids
    drawn = set(random.Random(settings.seed).sample(ids, settings.queries))
    return [query for query in ids if query in drawn]


def _write_runs(results: Sequence[ImageSetResult], to: Path) -> None:
    for suffix in (".trec", ".jsonl"):
        write_qrels(to / f"qrels{suffix}", {result.query_id: result.relevant for result in results})
        for system in (FIRST_STAGE, RERANKED):
            run = {result.query_id: result.rankings[system] for result in results}
            write_run(to / f"{system}{suffix}", run, tag=system)
