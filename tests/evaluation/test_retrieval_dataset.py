from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import pytest
from pypdf import PdfWriter
from tiny_manual import tiny_manual, write_pdf

from llama_index_ziprerank.evaluation.retrieval_dataset import RetrievalDataset
from llama_index_ziprerank.evaluation.runs import write_qrels

T = TypeVar("T")


def test_a_set_reads_back_as_written_whatever_lay_there(tmp_path: Path) -> None:
    write_qrels(tmp_path / "qrels.trec", {"q1": {"z": 1}})
    for candidates in (frozenset({"a", "b", "c"}), None):
        dataset = RetrievalDataset({"q1": "a question?"}, {"q1": {"a": 2, "b": 1}}, candidates)
        dataset.save(tmp_path)
        assert RetrievalDataset.load(tmp_path) == dataset


def test_trec_qrels_do_too(tmp_path: Path) -> None:
    (tmp_path / "queries.jsonl").write_text('{"query_id": "q1", "query": "a question?"}\n')
    write_qrels(tmp_path / "qrels.trec", {"q1": {"a": 1}})

    assert RetrievalDataset.load(tmp_path).qrels == {"q1": {"a": 1}}


def test_pairs_and_llama_indexs_former_fields_make_a_set() -> None:
    pairs = RetrievalDataset.from_pairs([("first?", ["a"]), ("second?", ["b", "c"])])

    assert pairs.queries == {"q1": "first?", "q2": "second?"}
    assert pairs.qrels == {"q1": {"a": 1}, "q2": {"b": 1, "c": 1}}
    assert RetrievalDataset.from_relevant_docs(pairs.queries, {"q1": ["a"], "q2": ["b", "c"]}) == pairs


@pytest.mark.parametrize(
    ("queries", "qrels", "said"),
    [
        ({}, {}, "at least one query"),
        ({"q1": "?", "q2": "?"}, {"q1": {"a": 1}}, "1 of 2 queries have no relevant page, such as 'q2'"),
        ({"q1": "?"}, {"q1": {"a": 0}}, "no relevant page"),
    ],
)
def test_a_query_without_an_answer_is_refused(
    queries: dict[str, str], qrels: dict[str, dict[str, int]], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        RetrievalDataset(queries, qrels)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RetrievalDataset.from_pairs([("How?", "three.pdf:p2")]),
        lambda: RetrievalDataset.from_relevant_docs({"How?": "How?"}, {"How?": "three.pdf:p2"}),
    ],
)
def test_a_text_in_place_of_ids_is_not_taken_apart(make: Callable[[], RetrievalDataset]) -> None:
    with pytest.raises(ValueError, match=r"'How\?' is a list of ids, got the text 'three\.pdf:p2'"):
        make()


def test_a_title_cannot_say_how_many_pages_a_manual_has(tmp_path: Path) -> None:
    manual = tiny_manual(tmp_path / "manual.pdf")
    writer = PdfWriter(clone_from=manual)
    writer.add_metadata({"/Title": "Report\nPages:           1"})
    writer.write(manual)
    totals: list[int | None] = []

    def track(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
        totals.append(total)
        return items

    dataset = RetrievalDataset.from_manual(manual, kinds=["heading"], track=track)
    assert len(dataset.queries) == 8
    assert totals == [9]


def test_a_line_that_is_no_query_or_page_is_named(tmp_path: Path) -> None:
    RetrievalDataset.from_pairs([("How?", ["a"])]).save(tmp_path)
    (tmp_path / "candidates.jsonl").write_text('{"page": "a"}\n')
    with pytest.raises(ValueError, match=r'candidates\.jsonl: wanted \{"page_id": …\}, got .*page'):
        RetrievalDataset.load(tmp_path)
    (tmp_path / "queries.jsonl").write_text('{"id": "q1"}\n')
    with pytest.raises(ValueError, match=r'queries\.jsonl: wanted \{"query_id": …, "query": …\}'):
        RetrievalDataset.load(tmp_path)


def test_a_manual_labels_itself_and_its_contents_do_not_compete(tmp_path: Path) -> None:
    dataset = RetrievalDataset.from_manual(tiny_manual(tmp_path / "manual.pdf"), kinds=["heading"], count=3, seed=1)

    assert len(dataset.queries) == 3
    assert {page for pages in dataset.qrels.values() for page in pages} <= (dataset.candidates or set())
    assert dataset.candidates == {f"manual.pdf:p{page}" for page in range(2, 10)}


def test_a_manual_without_labels_is_refused(tmp_path: Path) -> None:
    plain = write_pdf(tmp_path / "plain.pdf", [["some text"]])

    with pytest.raises(ValueError, match="no query of the kinds heading, term"):
        RetrievalDataset.from_manual(plain)
