import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from safetensors.torch import load_file, save_file
from tiny_manual import CHAPTERS, tiny_manual, write_pdf
from tiny_retriever import PARITY, colqwen3

from llama_index_ziprerank.evaluation.manual_settings import ABLATION, Settings
from llama_index_ziprerank.evaluation.manuals import evaluate_manuals
from llama_index_ziprerank.evaluation.results import QueryResult
from llama_index_ziprerank.pages.page import PageError
from llama_index_ziprerank.reranking import ListwiseReranker, Ranking

T = TypeVar("T")


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(colqwen3(tmp_path_factory.mktemp("retriever")))


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_manual(tmp_path_factory.mktemp("manual") / "tiny manual.pdf")


def _settings(retriever: str, **more: Any) -> Settings:
    return Settings(**{"retriever": retriever, "reranker": str(PARITY), "kinds": ("heading",), **more})


@pytest.fixture(scope="module")
def results(manual: Path, retriever: str, tmp_path_factory: pytest.TempPathFactory) -> list[QueryResult]:
    return evaluate_manuals([manual], _settings(retriever, top_k=4), tmp_path_factory.mktemp("results"))


def test_every_heading_is_asked_and_every_page_but_the_contents_competes(results: list[QueryResult]) -> None:
    assert [result.query for result in results] == list(CHAPTERS)
    for result in results:
        assert all(sorted(ranking) == list(range(2, 10)) for ranking in result.rankings.values())


def test_bm25_finds_the_only_page_that_has_the_words(results: list[QueryResult]) -> None:
    assert all([result.rankings["bm25"][0]] == result.pages for result in results)


def test_reranking_reorders_the_first_pages_and_leaves_the_rest(results: list[QueryResult]) -> None:
    for result in results:
        first, reranked = result.rankings["first_stage"], result.rankings["reranked"]
        assert sorted(first[:4]) == sorted(reranked[:4])
        assert first[4:] == reranked[4:]


def test_the_draw_of_queries_and_pools_is_that_of_the_seed(manual: Path, retriever: str, tmp_path: Path) -> None:
    settings = _settings(retriever, queries=3, pool=4)
    one, two = (evaluate_manuals([manual], settings, tmp_path / name) for name in ("one", "two"))

    assert [result.rankings for result in one] == [result.rankings for result in two]
    assert len(one) == 3
    for result in one:
        pool = result.rankings["first_stage"]
        assert len(pool) == 4 and set(result.pages) <= set(pool)


def test_an_interrupted_run_goes_on_where_it_stopped(manual: Path, retriever: str, tmp_path: Path) -> None:
    def interrupt(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        for position, item in enumerate(items):
            if description.endswith("queries") and position == 2:
                raise KeyboardInterrupt
            yield item

    settings = _settings(retriever, queries=4)
    with pytest.raises(KeyboardInterrupt):
        evaluate_manuals([manual], settings, tmp_path / "broken", interrupt)
    rest: list[int | None] = []

    def count(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
        if description.endswith("queries"):
            rest.append(total)
        return items

    resumed = evaluate_manuals([manual], settings, tmp_path / "broken", count)

    assert rest == [2]
    whole = evaluate_manuals([manual], settings, tmp_path / "whole")
    assert [result.rankings for result in resumed] == [result.rankings for result in whole]


def test_a_finished_manual_is_not_read_again(manual: Path, retriever: str, tmp_path: Path) -> None:
    copy = tmp_path / "manual.pdf"
    copy.write_bytes(manual.read_bytes())
    settings = _settings(retriever, queries=1)
    first = evaluate_manuals([copy], settings, tmp_path / "results")
    copy.unlink()

    assert evaluate_manuals([copy], settings, tmp_path / "results") == first


def test_results_of_another_file_of_the_name_are_not_taken_for_its_own(retriever: str, tmp_path: Path) -> None:
    settings = _settings(retriever, queries=1)
    path = tiny_manual(tmp_path / "manual.pdf")
    evaluate_manuals([path], settings, tmp_path / "results")
    write_pdf(path, [["1 Other things", "Words."], ["2 More", "Words."]], [("1 Other things", 1), ("2 More", 2)])

    with pytest.raises(ValueError, match="another file of the name 'manual'"):
        evaluate_manuals([path], settings, tmp_path / "results")


def test_results_of_other_weights_in_the_same_folder_are_not_taken_for_theirs(
    manual: Path, retriever: str, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(PARITY, model)
    settings = _settings(retriever, reranker=str(model), queries=1)
    evaluate_manuals([manual], settings, tmp_path / "results")
    weights = load_file(model / "model.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, model / "model.safetensors", {"format": "pt"})

    with pytest.raises(ValueError, match="other settings"):
        evaluate_manuals([manual], settings, tmp_path / "results")


def test_a_question_of_stop_words_alone_has_no_order_of_bm25(retriever: str, tmp_path: Path) -> None:
    pages = [["Words of the first page."], ["NOT IN", "Words of the second."], ["Words of the third."]]
    path = write_pdf(tmp_path / "sql.pdf", pages, [("NOT IN", 2)])

    [result] = evaluate_manuals([path], _settings(retriever, kinds=("heading",)), tmp_path / "results")
    assert (result.query, result.rankings["bm25"]) == ("NOT IN", [1, 2, 3])


def test_manuals_of_one_name_are_refused(manual: Path, retriever: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Rename one"):
        evaluate_manuals([manual, tmp_path / "tiny manual.pdf"], _settings(retriever), tmp_path / "results")


def test_manuals_without_queries_are_refused(retriever: str, tmp_path: Path) -> None:
    plain = write_pdf(tmp_path / "plain.pdf", [["some text"], ["more text"]])

    with pytest.raises(ValueError, match="no query|No manual gives a query"):
        evaluate_manuals([plain], _settings(retriever), tmp_path / "results")


def test_a_missing_manual_is_named_before_another_is_read(manual: Path, retriever: str, tmp_path: Path) -> None:
    with pytest.raises(PageError, match="gone.pdf"):
        evaluate_manuals([manual, tmp_path / "gone.pdf"], _settings(retriever), tmp_path / "results")

    assert len((tmp_path / "results" / "results.jsonl").read_text().splitlines()) == 1


def test_an_ablation_reranks_the_same_head_in_every_way(manual: Path, retriever: str, tmp_path: Path) -> None:
    settings = _settings(retriever, queries=1, ablation=True, keep_ratio=0.5)
    [result] = evaluate_manuals([manual], settings, tmp_path)

    assert list(result.rankings) == ["bm25", "first_stage", "reranked", *ABLATION]
    assert result.rankings["reranked"] == result.rankings["keep_0.50_prompt"]
    assert all(sorted(ranking) == list(range(2, 10)) for ranking in result.rankings.values())
    assert set(result.seconds) == set(result.rankings)


def test_where_the_first_stage_counts_the_order_of_the_model_alone_is_told_too(
    manual: Path, retriever: str, tmp_path: Path
) -> None:
    alone, fused, ruled = (
        evaluate_manuals([manual], _settings(retriever, first_stage_weight=weight), tmp_path / str(weight))
        for weight in (0, 1, 1000)
    )
    for without, with_scores, first in zip(alone, fused, ruled, strict=True):
        assert "model_alone" not in without.rankings
        assert with_scores.rankings["model_alone"] == first.rankings["model_alone"] == without.rankings["reranked"]
        assert first.rankings["reranked"] == first.rankings["first_stage"]
    assert any(result.rankings["reranked"] != result.rankings["model_alone"] for result in fused)
    long_lists = _settings(retriever, first_stage_weight=1, top_k=40)
    assert all(
        "model_alone" not in result.rankings for result in evaluate_manuals([manual], long_lists, tmp_path / "40")
    )


def test_lists_are_ranked_by_the_strategy_and_the_sides_of_the_settings(
    manual: Path, retriever: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, tuple[int, ...]]] = []
    rerank = ListwiseReranker.rerank

    def noted(self: ListwiseReranker, *arguments: Any, **options: Any) -> Ranking:
        asked.append((options["strategy"], self.sides))
        return rerank(self, *arguments, **options)

    monkeypatch.setattr(ListwiseReranker, "rerank", noted)
    evaluate_manuals([manual], _settings(retriever, queries=2, strategy="blocks", sides=(512, 256)), tmp_path)
    assert asked == [("blocks", (512, 256))] * 2


def test_degraded_pages_are_other_pages_for_the_eyes_and_the_same_for_bm25(
    manual: Path, retriever: str, results: list[QueryResult], tmp_path: Path
) -> None:
    degraded = evaluate_manuals([manual], _settings(retriever, top_k=4, degradation="scan"), tmp_path)

    assert [one.rankings["bm25"] for one in degraded] == [one.rankings["bm25"] for one in results]
    assert [one.rankings["first_stage"] for one in degraded] != [one.rankings["first_stage"] for one in results]


@pytest.mark.parametrize("wrong", [{"queries": 0}, {"pool": 1}, {"top_k": 0}])
def test_a_setting_out_of_bounds_is_named(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least"):
        Settings(**wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kinds": ("headings",)}, "choose from heading, term, caption, question, got headings"),
        ({"kinds": ()}, "got nothing"),
        ({"degradation": "fax"}, "choose from none, scan, got fax"),
        ({"keep_ratio": 0.0}, "keep_ratio"),
        ({"pruning": "both"}, "pruning"),
        ({"strategy": "random"}, "strategy is one of"),
        ({"sides": ()}, "sides are the longest sides"),
    ],
)
def test_an_unknown_choice_is_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings(**wrong)
