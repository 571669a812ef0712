"""`PageRetrievalEvaluator`: a data set asked of a retriever and its postprocessors, many questions at a time.

LlamaIndex's core lost its loop over data sets in 0.14.21. This one awaits `aretrieve` and `apostprocess_nodes`, names
page nodes as the labels do, writes every question down when it is done, and measures before and after postprocessing::

    dataset = RetrievalDataset.from_manual("manual.pdf", count=50)
    evaluator = PageRetrievalEvaluator(index.as_retriever(), [reranker], key=page_key)
    print(await evaluator.aevaluate(dataset, show_progress=True))
"""

import asyncio
import re
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any

from llama_index.core.async_utils import asyncio_run
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from llama_index.core.utils import get_tqdm_iterable

from llama_index_ziprerank.checkpoints import resolve_reranker
from llama_index_ziprerank.nodes import FILE_NAME, PAGE_NUMBER
from llama_index_ziprerank.retrievers import ColPaliRetriever

try:
    from llama_index_ziprerank.evaluation.digests import folder_digest
    from llama_index_ziprerank.evaluation.results import FIRST_STAGE, RERANKED
    from llama_index_ziprerank.evaluation.retrieval_dataset import RetrievalDataset
    from llama_index_ziprerank.evaluation.retrieval_report import (
        EvaluationError,
        EvaluationReport,
        QuestionResult,
        report,
        results_file,
        write_runs,
    )
    from llama_index_ziprerank.evaluation.runs import parse_metric
except ModuleNotFoundError as error:
    raise ImportError(f"{error}. Install it with: pip install 'llama-index-ziprerank[evaluation]'") from error

__all__ = [
    "EvaluationError",
    "EvaluationReport",
    "PageRetrievalEvaluator",
    "QuestionResult",
    "RetrievalDataset",
    "node_key",
    "page_key",
]

_SECRET = re.compile("key(?!word)|token|secret|password")

METRICS = ("Hit@5", "MRR", "R@5", "nDCG@5", "AP")


def node_key(node: BaseNode) -> str:
    """Name a node by its id."""
    return node.node_id


def page_key(node: BaseNode) -> str:
    """Name a node by its page, ``manual.pdf:p17``, as `RetrievalDataset.from_manual` does.

    Raises:
        ValueError: when the node's metadata has no file name or page number.
    """
    if FILE_NAME not in node.metadata or PAGE_NUMBER not in node.metadata:
        raise ValueError(
            f"Node {node.node_id!r} has no {FILE_NAME} or no {PAGE_NUMBER} in its metadata. Read pages with "
            "PDFPageReader, or pass your own `key`."
        )
    return f"{node.metadata[FILE_NAME]}:p{node.metadata[PAGE_NUMBER]}"


class PageRetrievalEvaluator:
    """Asks the questions of a data set, and compares what comes back with what answers them.

    Postprocessors that cut a list (`top_n`) cut its recall too: give a reranker a `top_n` at least as large as the
    deepest metric.
    """

    def __init__(
        self,
        retriever: BaseRetriever,
        node_postprocessors: Sequence[BaseNodePostprocessor] = (),
        *,
        metrics: Sequence[str] = METRICS,
        key: Callable[[BaseNode], str] = node_key,
    ) -> None:
        """Measure `retriever`, then what the postprocessors make of its nodes.

        Args:
            retriever: any of LlamaIndex's.
            node_postprocessors: applied in order, as a query engine does.
            metrics: names such as "Hit@5", "MRR", "R@10", "nDCG@5", "AP" (`evaluation.runs.measure`).
            key: names a node as the data set does. Nodes of one name count once, where the first of them stands.

        Raises:
            ValueError: for an unknown metric.
        """
        for metric in metrics:
            parse_metric(metric)
        self._retriever = retriever
        self._postprocessors = list(node_postprocessors)
        self._metrics = tuple(metrics)
        self._key = key

    def evaluate(
        self,
        dataset: RetrievalDataset,
        *,
        workers: int = 4,
        show_progress: bool = False,
        to: str | Path | None = None,
        name: str = "",
    ) -> EvaluationReport:
        """Do the same as `aevaluate`, outside an event loop."""
        return asyncio_run(self.aevaluate(dataset, workers=workers, show_progress=show_progress, to=to, name=name))

    async def aevaluate(
        self,
        dataset: RetrievalDataset,
        *,
        workers: int = 4,
        show_progress: bool = False,
        to: str | Path | None = None,
        name: str = "",
    ) -> EvaluationReport:
        """Ask every question, at most `workers` at a time.

        Args:
            dataset: the questions.
            workers: questions under way at once.
            show_progress: a progress bar.
            to: a folder for `results.jsonl` (a question a line, as they come: a second call asks only the rest), and
                at the end qrels and runs as TREC and JSONL. None: nothing is written.
            name: says what is measured, so that the results of two pipelines are never mixed in one folder. Plain
                fields of the postprocessors (a model's name, a number, a list of them) are noted too, the retriever's
                top k, and what lies in the folders of their models.

        Raises:
            EvaluationError: when questions failed; the others were asked, and are in `to`.
            ValueError: for `workers` below 1, or when `to` holds results of something else.
        """
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}.")
        file = results_file(
            to, dataset, name, [_retriever(self._retriever), *map(_postprocessor, self._postprocessors)]
        )
        done = {result.query_id: result for result in file.results} if file else {}
        turns = asyncio.Semaphore(workers)

        async def ask(query_id: str) -> None:
            async with turns:
                done[query_id] = await self._ask(query_id, dataset.queries[query_id])
                if file:
                    file.add(done[query_id])

        waiting = [query_id for query_id in dataset.queries if query_id not in done]
        failures = await _all_done([ask(query_id) for query_id in waiting], show_progress)
        results = [done[query_id] for query_id in dataset.queries if query_id in done]
        if failures:
            kept = (
                f"The others are in {to}: call again for the rest." if to else "`results` of this error has the others."
            )
            raise EvaluationError(
                f"{len(failures)} of {len(dataset.queries)} questions failed, the first with "
                f"{type(failures[0]).__name__}: {failures[0]}. {kept}",
                results,
            ) from failures[0]
        if to is not None:
            write_runs(Path(to), dataset, results)
        return report(dataset, results, self._metrics)

    async def _ask(self, query_id: str, query: str) -> QuestionResult:
        bundle = QueryBundle(query)
        started = time.perf_counter()
        nodes = await self._retriever.aretrieve(bundle)
        rankings, seconds = {FIRST_STAGE: self._keys(nodes)}, {FIRST_STAGE: time.perf_counter() - started}
        if self._postprocessors:
            started = time.perf_counter()
            for postprocessor in self._postprocessors:
                nodes = await postprocessor.apostprocess_nodes(nodes, query_bundle=bundle)
            rankings[RERANKED], seconds[RERANKED] = self._keys(nodes), time.perf_counter() - started
        return QuestionResult(query_id, query, rankings, seconds)

    def _keys(self, nodes: Iterable[NodeWithScore]) -> list[str]:
        return list(dict.fromkeys(self._key(node.node) for node in nodes))


def _retriever(step: BaseRetriever) -> dict[str, Any]:
    """Say what can be said of any retriever."""
    names = ("similarity_top_k", "_similarity_top_k")
    return {
        "class": type(step).__name__,
        "similarity_top_k": next((vars(step)[n] for n in names if n in vars(step)), None),
        "weights": step.encoder.fingerprint if isinstance(step, ColPaliRetriever) else None,
    }


def _postprocessor(step: BaseNodePostprocessor) -> dict[str, Any]:
    """Say what a postprocessor is, by its plain fields: they are the same in every process, and nothing secret."""
    fields = {name: getattr(step, name) for name in type(step).model_fields if not _SECRET.search(name)}
    plain = {name: value for name, value in fields.items() if _is_plain(value)}
    folder = Path(resolve_reranker(str(plain.get("model", ""))))
    weights = {"weights": folder_digest(folder)} if "model" in plain and folder.is_dir() else {}
    return {"class": step.class_name(), **plain, **weights}


def _is_plain(value: object) -> bool:
    """Say whether a field is a text, a number, or a list of such, as the sides of pages are."""
    return isinstance(value, str | int | float) or (isinstance(value, list | tuple) and all(map(_is_plain, value)))


async def _all_done(questions: Sequence[Coroutine[Any, Any, None]], show_progress: bool) -> list[Exception]:
    """Await all; return what was raised. A cancellation, or the interpreter's end, is not held back."""
    tasks = [asyncio.ensure_future(question) for question in questions]
    failures: list[Exception] = []
    try:
        for next_done in get_tqdm_iterable(asyncio.as_completed(tasks), show_progress, "Asking", total=len(tasks)):
            outcome: BaseException | None = (await asyncio.gather(next_done, return_exceptions=True))[0]
            if isinstance(outcome, Exception):
                failures.append(outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
    finally:
        for task in tasks:
            task.cancel()
    return failures
