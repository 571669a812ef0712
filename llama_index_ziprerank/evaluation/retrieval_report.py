"""What a data set showed of a retriever and its postprocessors: kept question by question, summed up with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_index_ziprerank.evaluation.digests import content_digest
from llama_index_ziprerank.evaluation.results import FIRST_STAGE, RERANKED, ResultsFile, Score, Summary
from llama_index_ziprerank.evaluation.retrieval_dataset import RetrievalDataset
from llama_index_ziprerank.evaluation.runs import measure, without_space, write_qrels, write_run


@dataclass(frozen=True)
class QuestionResult:
    """One question: what was retrieved, and what postprocessing made of it, as keys, best first."""

    query_id: str
    query: str
    rankings: dict[str, list[str]]
    """ "first_stage" and, with postprocessors, "reranked"."""
    seconds: dict[str, float]


class EvaluationError(Exception):
    """Some questions failed; `results` holds the others.

    No RuntimeError, which LlamaIndex's `asyncio_run` takes for a nested event loop and replaces.
    """

    def __init__(self, message: str, results: list[QuestionResult]) -> None:
        """Keep what was found."""
        super().__init__(message)
        self.results = results


@dataclass(frozen=True)
class EvaluationReport:
    """What a data set showed."""

    results: list[QuestionResult]
    scores: Summary
    """ "first_stage" and "reranked" → metric → mean with its 95 % bootstrap interval over questions."""
    gain: dict[str, Score]
    """Metric → reranked minus first stage, paired by question; empty without postprocessors."""

    def __str__(self) -> str:
        """Return a table: a line a stage, then what postprocessing gained."""
        parts = [*self.scores.items(), *([("gain", self.gain)] if self.gain else [])]
        width = max(len(_spoken(score)) for _, scores in parts for score in scores.values())
        head = " " * 12 + "".join(f"{metric:>{width + 2}}" for metric in self.scores[FIRST_STAGE])
        body = [
            f"{name.replace('_', ' '):<12}" + "".join(f"{_spoken(score):>{width + 2}}" for score in scores.values())
            for name, scores in parts
        ]
        return "\n".join([f"{len(self.results)} questions; percent, with 95 % intervals", head, *body])


def report(dataset: RetrievalDataset, results: list[QuestionResult], metrics: Sequence[str]) -> EvaluationReport:
    """Measure the rankings of at least one question."""
    systems = list(results[0].rankings)
    qrels = {result.query_id: dataset.qrels[result.query_id] for result in results}
    values = {
        system: measure(qrels, {result.query_id: result.rankings[system] for result in results}, metrics)
        for system in systems
    }
    scores = {
        system: {metric: Score.of(list(found.values())) for metric, found in of_system.items()}
        for system, of_system in values.items()
    }
    gain = {
        metric: Score.of([after - values[FIRST_STAGE][metric][query] for query, after in found.items()])
        for metric, found in values.get(RERANKED, {}).items()
    }
    return EvaluationReport(results, scores, gain)


def results_file(
    to: str | Path | None, dataset: RetrievalDataset, name: str, steps: Sequence[Mapping[str, Any]]
) -> ResultsFile[QuestionResult] | None:
    """Open the results of `name`, a pipeline of `steps`, on a data set; None where nothing is to be written.

    Raises:
        ValueError: when the folder holds results of another name, other steps or another data set.
    """
    if to is None:
        return None
    Path(to).mkdir(parents=True, exist_ok=True)
    settings = {
        "name": name,
        "pipeline": [dict(step) for step in steps],
        "data set": content_digest(dataset.queries, dataset.qrels),
    }
    return ResultsFile(Path(to) / "results.jsonl", settings, QuestionResult)


def write_runs(to: Path, dataset: RetrievalDataset, results: Sequence[QuestionResult]) -> None:
    """Write qrels and runs of at least one question; only TREC's files cannot hold white space in an id."""
    qrels = {
        without_space(one.query_id): {without_space(page): grade for page, grade in dataset.qrels[one.query_id].items()}
        for one in results
    }
    for suffix in (".trec", ".jsonl"):
        write_qrels(to / f"qrels{suffix}", qrels)
        for system in results[0].rankings:
            run = {without_space(one.query_id): [*map(without_space, one.rankings[system])] for one in results}
            write_run(to / f"{system}{suffix}", run, tag=system)


def _spoken(score: Score) -> str:
    return f"{100 * score.mean:.1f} [{100 * score.low:.0f}, {100 * score.high:.0f}]"
