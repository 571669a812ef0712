import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from tiny_manual import CHAPTERS, tiny_manual
from tiny_retriever import PARITY, colqwen3

from llama_index_ziprerank import ColPaliIndex, PDFPageReader, ZipRerankPostprocessor
from llama_index_ziprerank.evaluation.runs import read_qrels, read_run
from llama_index_ziprerank.evaluators import (
    EvaluationError,
    PageRetrievalEvaluator,
    RetrievalDataset,
    node_key,
    page_key,
)

DATASET = RetrievalDataset({"q1": "alpha", "q2": "beta"}, {"q1": {"a": 1}, "q2": {"b": 1, "c": 1}})
FOUND = {"alpha": ["x", "a", "y"], "beta": ["b", "x", "c"]}


class ListRetriever(BaseRetriever):
    """Returns the nodes that it was given for a question, and counts how many are under way."""

    def __init__(self, found: dict[str, list[str]]) -> None:
        super().__init__()
        self.found = found
        self.asked: list[str] = []
        self.under_way = self.most_under_way = 0

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        raise NotImplementedError

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self.asked.append(query_bundle.query_str)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0.001)
        self.under_way -= 1
        return [NodeWithScore(node=TextNode(id_=name), score=1.0) for name in self.found[query_bundle.query_str]]


class Backwards(BaseNodePostprocessor):
    @classmethod
    def class_name(cls) -> str:
        return "Backwards"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return nodes[::-1]


async def test_the_scores_are_what_one_computes_by_hand() -> None:
    evaluator = PageRetrievalEvaluator(ListRetriever(FOUND), metrics=["Hit@1", "MRR", "R@2", "nDCG@5", "AP"])
    scores = (await evaluator.aevaluate(DATASET)).scores["first_stage"]

    assert scores["Hit@1"].mean == 0.5
    assert scores["MRR"].mean == (1 / 2 + 1) / 2
    assert scores["R@2"].mean == (1 + 1 / 2) / 2
    assert scores["nDCG@5"].mean == pytest.approx((0.63093 + 1.5 / 1.63093) / 2, abs=1e-4)
    assert scores["AP"].mean == pytest.approx((1 / 2 + (1 + 2 / 3) / 2) / 2)
    assert scores["MRR"].low <= scores["MRR"].mean <= scores["MRR"].high


async def test_postprocessors_are_measured_beside_the_retriever() -> None:
    evaluator = PageRetrievalEvaluator(ListRetriever({**FOUND, "alpha": ["x", "y", "a"]}), [Backwards()])
    report = await evaluator.aevaluate(DATASET)

    assert report.results[0].rankings == {"first_stage": ["x", "y", "a"], "reranked": ["a", "y", "x"]}
    assert report.scores["first_stage"]["MRR"].mean == pytest.approx((1 / 3 + 1) / 2)
    assert report.scores["reranked"]["MRR"].mean == 1.0
    assert report.gain["MRR"].mean == pytest.approx((2 / 3 + 0) / 2)


async def test_a_report_prints_as_a_table_of_stages() -> None:
    report = await PageRetrievalEvaluator(ListRetriever(FOUND), [Backwards()]).aevaluate(DATASET)
    title, head, *lines = str(report).splitlines()

    assert title == "2 questions; percent, with 95 % intervals"
    assert head.split() == ["Hit@5", "MRR", "R@5", "nDCG@5", "AP"]
    assert [line[:12].strip() for line in lines] == ["first stage", "reranked", "gain"]
    assert len({len(line) for line in [head, *lines]}) == 1


async def test_no_more_questions_are_under_way_than_workers() -> None:
    found = {f"question {number}": ["a"] for number in range(12)}
    dataset = RetrievalDataset.from_pairs([(question, ["a"]) for question in found])
    retriever = ListRetriever(found)

    await PageRetrievalEvaluator(retriever).aevaluate(dataset, workers=3)

    assert retriever.most_under_way == 3
    with pytest.raises(ValueError, match="workers must be at least 1"):
        await PageRetrievalEvaluator(retriever).aevaluate(dataset, workers=0)


async def test_a_question_that_fails_costs_no_other(tmp_path: Path) -> None:
    retriever = ListRetriever({"alpha": ["a"]})
    evaluator = PageRetrievalEvaluator(retriever)

    with pytest.raises(EvaluationError, match="1 of 2 questions failed, the first with KeyError") as failed:
        await evaluator.aevaluate(DATASET, to=tmp_path)
    assert [result.query_id for result in failed.value.results] == ["q1"]

    retriever.found["beta"] = ["b"]
    report = await evaluator.aevaluate(DATASET, to=tmp_path)
    assert retriever.asked == ["alpha", "beta", "beta"]
    assert [result.query_id for result in report.results] == ["q1", "q2"]


async def test_runs_and_qrels_are_written(tmp_path: Path) -> None:
    dataset = RetrievalDataset({"q 1": "alpha"}, {"q 1": {"a": 1}})
    await PageRetrievalEvaluator(ListRetriever(FOUND), [Backwards()]).aevaluate(dataset, to=tmp_path)

    for suffix in ("trec", "jsonl"):
        assert read_qrels(tmp_path / f"qrels.{suffix}") == {"q%201": {"a": 1}}
        assert read_run(tmp_path / f"reranked.{suffix}") == {"q%201": ["y", "a", "x"]}


@pytest.mark.parametrize(
    ("postprocessors", "name", "dataset"),
    [
        ([Backwards()], "", DATASET),
        ([], "other", DATASET),
        ([], "", RetrievalDataset({"q1": "alpha"}, {"q1": {"a": 1}})),
    ],
)
async def test_results_of_something_else_are_never_mixed(
    tmp_path: Path, postprocessors: list[Any], name: str, dataset: RetrievalDataset
) -> None:
    await PageRetrievalEvaluator(ListRetriever(FOUND)).aevaluate(DATASET, to=tmp_path)

    with pytest.raises(ValueError, match="other settings"):
        await PageRetrievalEvaluator(ListRetriever(FOUND), postprocessors).aevaluate(dataset, to=tmp_path, name=name)


def test_it_works_outside_an_event_loop_too() -> None:
    assert PageRetrievalEvaluator(ListRetriever(FOUND)).evaluate(DATASET).scores["first_stage"]["Hit@5"].mean == 1.0


def test_outside_an_event_loop_what_failed_is_told_too() -> None:
    with pytest.raises(EvaluationError, match="1 of 2 questions failed") as failed:
        PageRetrievalEvaluator(ListRetriever({"alpha": ["a"]})).evaluate(DATASET)
    assert [result.query_id for result in failed.value.results] == ["q1"]


async def test_results_of_a_postprocessor_with_other_fields_are_not_taken_for_its_own(tmp_path: Path) -> None:
    class Cut(Backwards):
        top_n: int
        api_key: str = "secret"

    await PageRetrievalEvaluator(ListRetriever(FOUND), [Cut(top_n=2)]).aevaluate(DATASET, to=tmp_path)

    assert "secret" not in (tmp_path / "results.jsonl").read_text()
    with pytest.raises(ValueError, match="other settings"):
        await PageRetrievalEvaluator(ListRetriever(FOUND), [Cut(top_n=3)]).aevaluate(DATASET, to=tmp_path)
    deeper = ListRetriever(FOUND)
    deeper._similarity_top_k = 7  # as LlamaIndex's own retrievers call it
    with pytest.raises(ValueError, match="other settings"):
        await PageRetrievalEvaluator(deeper, [Cut(top_n=2)]).aevaluate(DATASET, to=tmp_path)


async def test_results_of_a_postprocessor_with_another_list_are_not_taken_for_its_own(tmp_path: Path) -> None:
    """Sides of pages are a tuple, required keywords a list."""

    class Sized(Backwards):
        sides: tuple[int, ...] | None = None
        required_keywords: list[str] = []
        api_keys: list[str] = ["secret"]

    async def ask(step: Sized) -> None:
        await PageRetrievalEvaluator(ListRetriever(FOUND), [step]).aevaluate(DATASET, to=tmp_path)

    await ask(Sized(sides=(768, 1024), required_keywords=["bar"]))
    await ask(Sized(sides=(768, 1024), required_keywords=["bar"]))
    assert "secret" not in (tmp_path / "results.jsonl").read_text()
    for other in (Sized(sides=(512,), required_keywords=["bar"]), Sized(sides=(768, 1024), required_keywords=["pie"])):
        with pytest.raises(ValueError, match="other settings"):
            await ask(other)


async def test_results_by_other_weights_of_the_same_name_are_not_taken_for_theirs(tmp_path: Path) -> None:
    class Weighted(Backwards):
        model: str

    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "model.safetensors").write_bytes(b"before")
    evaluator = PageRetrievalEvaluator(ListRetriever(FOUND), [Weighted(model=str(tmp_path / "own"))])
    await evaluator.aevaluate(DATASET, to=tmp_path / "results")
    await evaluator.aevaluate(DATASET, to=tmp_path / "results")
    (tmp_path / "own" / "model.safetensors").write_bytes(b"after")
    with pytest.raises(ValueError, match="other settings"):
        await evaluator.aevaluate(DATASET, to=tmp_path / "results")


def test_an_unknown_metric_is_refused_before_any_question() -> None:
    with pytest.raises(ValueError, match="No metric 'Recall'"):
        PageRetrievalEvaluator(ListRetriever({}), metrics=["Recall"])


async def test_nodes_of_one_page_count_once() -> None:
    retriever = ListRetriever({"alpha": ["a-1", "x-1", "a-2"], "beta": ["b-1"]})
    evaluator = PageRetrievalEvaluator(retriever, key=lambda node: node.node_id.partition("-")[0])

    assert (await evaluator.aevaluate(DATASET)).results[0].rankings["first_stage"] == ["a", "x"]


def test_a_page_is_named_by_its_file_and_number() -> None:
    node = TextNode(id_="id", metadata={"file_name": "manual.pdf", "page_number": 7})

    assert (page_key(node), node_key(node)) == ("manual.pdf:p7", "id")
    with pytest.raises(ValueError, match="Node 'bare' has no file_name"):
        page_key(TextNode(id_="bare"))


async def test_a_manual_is_asked_for_its_own_headings(tmp_path: Path) -> None:
    manual = tiny_manual(tmp_path / "manual.pdf")
    dataset = RetrievalDataset.from_manual(manual, kinds=["heading"])
    documents = [page for page in PDFPageReader().load_data(manual) if page_key(page) in dataset.candidates]
    reranker = ZipRerankPostprocessor(model=str(PARITY), top_n=8)
    model = str(colqwen3(tmp_path / "retriever"))
    with ColPaliIndex.from_documents(documents, model=model) as index:
        evaluator = PageRetrievalEvaluator(index.as_retriever(), [reranker], key=page_key, metrics=["R@8"])
        report = await evaluator.aevaluate(dataset)

    assert list(dataset.queries.values()) == list(CHAPTERS)
    assert len(documents) == len(CHAPTERS)  # the contents page does not compete
    assert report.scores["first_stage"]["R@8"].mean == report.scores["reranked"]["R@8"].mean == 1.0


def test_without_the_extra_the_error_says_how_to_get_it() -> None:
    program = (
        "import sys\nsys.modules['ir_measures'] = None\n"
        "try:\n    import llama_index_ziprerank.evaluators\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert "pip install 'llama-index-ziprerank[evaluation]'" in done.stdout
