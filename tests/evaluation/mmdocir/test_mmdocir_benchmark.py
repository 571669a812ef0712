import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_mmdocir import DOMAINS, LAYOUT_RUN, PAGE_RUN, PAGES, write_mmdocir
from tiny_retriever import PARITY

from llama_index_ziprerank.evaluation.first_stage import RerankSettings
from llama_index_ziprerank.evaluation.mmdocir.benchmark import Settings, evaluate_mmdocir, summarize
from llama_index_ziprerank.evaluation.mmdocir.metrics import Part
from llama_index_ziprerank.evaluation.mmdocir.runs import run_settings
from llama_index_ziprerank.evaluation.runs import read_qrels, read_run, write_run

RUNS = {"page": PAGE_RUN, "layout": LAYOUT_RUN}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mmdocir(tmp_path_factory.mktemp("mmdocir"))


def _settings(level: str, **more: Any) -> Settings:
    return Settings(**{"level": level, "rerank": RerankSettings(str(PARITY)), **more})


def _run_file(level: str, tmp_path: Path, name: str = "run.jsonl") -> Path:
    write_run(tmp_path / name, RUNS[level], tag="by-hand")
    return tmp_path / name


@pytest.mark.parametrize("name", ["run.jsonl", "run.trec"])
def test_page_recalls_are_those_computed_by_hand(folder: Path, tmp_path: Path, name: str) -> None:
    run = _run_file("page", tmp_path, name)
    parts = summarize(evaluate_mmdocir(folder, _settings("page"), run, tmp_path / "to"))

    assert [(part.name, part.questions) for part in parts] == [
        ("Academic paper", 2), ("Laws", 3), ("macro", 5), ("micro", 5),
    ]  # fmt: skip
    assert _column(parts, "R@1") == pytest.approx([1 / 4, 2 / 3, 11 / 24, 1 / 2])
    assert _column(parts, "R@3") == _column(parts, "R@5") == [1.0, 1.0, 1.0, 1.0]


def test_layout_recalls_by_area_are_those_computed_by_hand(folder: Path, tmp_path: Path) -> None:
    run = _run_file("layout", tmp_path)
    parts = summarize(evaluate_mmdocir(folder, _settings("layout"), run, tmp_path / "to"))

    assert _column(parts, "R@1") == pytest.approx([0.41, 0.5, 0.455, 0.464])
    assert _column(parts, "R@5") == pytest.approx([1.66, 2 / 3, (1.66 + 2 / 3) / 2, 1.064])
    assert _column(parts, "R@10") == _column(parts, "R@5")


def _column(parts: list[Part], metric: str, system: str = "first_stage") -> list[float]:
    return [part.recalls[system][metric] for part in parts]


@pytest.mark.parametrize("level", ["page", "layout"])
def test_reranking_reorders_the_head_and_both_runs_are_written(folder: Path, tmp_path: Path, level: str) -> None:
    settings = _settings(level, rerank=RerankSettings(str(PARITY), top_k=2))
    results = evaluate_mmdocir(folder, settings, _run_file(level, tmp_path), tmp_path / "to")

    for result in results:
        before, after = result.rankings["first_stage"], result.rankings["reranked"]
        assert sorted(before[:2]) == sorted(after[:2]) and before[2:] == after[2:]
        assert result.domain == DOMAINS[result.document]
    for suffix in ("jsonl", "trec"):
        assert read_run(tmp_path / "to" / f"first_stage-{level}.{suffix}") == RUNS[level]
    if level == "page":
        assert read_qrels(tmp_path / "to" / "qrels-page.trec")["a%20report.pdf:q1"] == {
            "a%20report.pdf:p0": 1, "a%20report.pdf:p3": 1,
        }  # fmt: skip


class FirstStage:
    """Puts the darkest page first, and remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[list[str]] = []

    def __call__(
        self, images: Iterable[tuple[str, Image.Image]], queries: Mapping[str, str], top_k: int
    ) -> dict[str, list[str]]:
        greys = {name: image.convert("L").getpixel((0, 0)) for name, image in images}
        self.shown.append(list(greys))
        order = sorted(greys, key=greys.__getitem__)
        return {query: order[:top_k] for query in queries}


def test_a_first_stage_sees_each_document_alone_with_its_own_pages(folder: Path, tmp_path: Path) -> None:
    first = FirstStage()
    results = evaluate_mmdocir(folder, _settings("page"), first, tmp_path)

    assert [len(shown) for shown in first.shown] == [3, 4, 2]  # in the order of the rows
    assert all(one.rankings["first_stage"] == list(range(PAGES[one.document])) for one in results)
    assert [one.query_id for one in results] == list(PAGE_RUN)  # in the order of the annotations


def test_an_interrupted_run_asks_only_the_rest(folder: Path, tmp_path: Path) -> None:
    def interrupt(items: Iterable[Any], description: str, total: int | None = None) -> Iterable[Any]:
        for position, item in enumerate(items):
            yield item
            if position == 0:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_mmdocir(folder, _settings("page"), FirstStage(), tmp_path, interrupt)
    first = FirstStage()
    resumed = evaluate_mmdocir(folder, _settings("page"), first, tmp_path)

    assert [len(shown) for shown in first.shown] == [4, 2]
    whole = evaluate_mmdocir(folder, _settings("page"), FirstStage(), tmp_path / "whole")
    assert [one.rankings for one in resumed] == [one.rankings for one in whole]


def test_results_by_other_annotations_are_not_taken_for_theirs(tmp_path: Path) -> None:
    folder, run = write_mmdocir(tmp_path / "set"), _run_file("page", tmp_path)
    evaluate_mmdocir(folder, _settings("page"), run, tmp_path / "to")
    annotations = folder / "MMDocIR_annotations.jsonl"
    annotations.write_text(annotations.read_text().replace('"page_id": [2]', '"page_id": [0]'))

    with pytest.raises(ValueError, match="other settings"):
        evaluate_mmdocir(folder, _settings("page"), run, tmp_path / "to")


def test_a_draw_of_questions_is_that_of_the_seed(folder: Path, tmp_path: Path) -> None:
    one, two = (
        evaluate_mmdocir(folder, _settings("page", queries=2, seed=3), FirstStage(), tmp_path / name) for name in "ab"
    )

    assert len(one) == 2 and [result.query_id for result in one] == [result.query_id for result in two]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"laws.pdf:q0": None}, "no ranking for 1 of 5 questions, such as 'laws.pdf:q0'"),
        (
            {"laws.pdf:q0": ["laws.pdf:p3"]},
            "'laws.pdf:p3' is no page of .* 'laws.pdf:p0' to 'laws.pdf:p2'",
        ),
        ({"laws.pdf:q0": ["laws.pdf:p0", "laws.pdf:p0"]}, "names a page twice"),
    ],
)
def test_a_run_that_does_not_fit_is_refused_before_the_work(
    folder: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    lines = [{"query_id": query, "ranking": pages} for query, pages in (PAGE_RUN | change).items() if pages]
    (tmp_path / "run.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    with pytest.raises(ValueError, match=said):
        evaluate_mmdocir(folder, _settings("page"), tmp_path / "run.jsonl", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_run_is_named_by_its_content(tmp_path: Path) -> None:
    page = run_settings(_run_file("page", tmp_path))

    assert page.startswith("run run.jsonl ") and page != run_settings(_run_file("layout", tmp_path))


def test_a_level_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="page, layout"):
        Settings(level="word")


@pytest.mark.parametrize("rows", [[4, 3], [1, 6]])
def test_a_document_with_questions_and_without_rows_of_its_own_is_named(tmp_path: Path, rows: list[int]) -> None:
    folder = write_mmdocir(tmp_path / "mmdocir")
    path = folder / "MMDocIR_annotations.jsonl"
    documents = [json.loads(line) for line in path.read_text().splitlines()]
    documents[0]["layout_indices"] = rows
    path.write_text("".join(f"{json.dumps(document)}\n" for document in documents))

    with pytest.raises(ValueError, match=f"has questions and the rows {rows[0]} to {rows[1]}; wanted is at least one"):
        evaluate_mmdocir(folder, _settings("layout"), lambda images, queries, top_k: {}, tmp_path / "to")
