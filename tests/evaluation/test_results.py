from pathlib import Path

import pytest

from llama_index_ziprerank.evaluation.results import QueryResult, ResultsFile, summarize, write_trec
from llama_index_ziprerank.evaluation.runs import read_qrels, read_run


def _result(query_id: str, page: int, of: int = 2) -> QueryResult:
    rankings = {"bm25": [1, 2, 3, 4], "first_stage": [4, 3, 2, 1], "reranked": [page, *({1, 2, 3, 4} - {page})]}
    return QueryResult("manual", query_id, "Bar graphs", page, of, rankings, {"bm25": 0.1})


def test_a_perfect_ranking_scores_1_and_the_others_what_their_orders_say() -> None:
    summary = summarize([_result("q1", 1), _result("q2", 2)])

    assert summary["reranked"]["R@1"].mean == 1.0
    assert summary["bm25"]["R@1"].mean == 0.5
    assert summary["first_stage"]["MRR"].mean == pytest.approx((1 / 4 + 1 / 3) / 2)


def test_random_is_the_mean_over_all_orders() -> None:
    random = summarize([_result("q1", 1)])["random"]

    assert random["R@1"].mean == 1 / 4
    assert random["R@5"].mean == 1.0
    assert random["MRR"].mean == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert random["nDCG@5"].mean == pytest.approx((1 + 0.63093 + 0.5 + 0.43068) / 4, abs=1e-5)


def test_results_survive_the_process_and_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    ResultsFile(path, {"seed": 0}).add(_result("q1", 1))
    with path.open("a") as file:
        file.write('{"manual": "man')

    reopened = ResultsFile(path, {"seed": 0})
    reopened.add(_result("q2", 2))

    assert ResultsFile(path, {"seed": 0}).results == [_result("q1", 1), _result("q2", 2)]


def test_results_of_other_settings_are_never_mixed(tmp_path: Path) -> None:
    ResultsFile(tmp_path / "results.jsonl", {"seed": 0})

    with pytest.raises(ValueError, match="other settings"):
        ResultsFile(tmp_path / "results.jsonl", {"seed": 1})


def test_a_manual_is_complete_when_all_its_queries_are_done(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path / "results.jsonl", {})
    assert not file.is_complete("manual")
    file.add(_result("q1", 1))
    assert not file.is_complete("manual")
    file.add(_result("q2", 1))
    assert file.is_complete("manual")


def test_trec_files_hold_the_same_rankings(tmp_path: Path) -> None:
    write_trec([_result("q1", 3)], tmp_path)

    assert read_qrels(tmp_path / "qrels.trec") == {"q1": {"manual:p3": 1}}
    assert read_run(tmp_path / "first_stage.trec") == {"q1": [f"manual:p{page}" for page in (4, 3, 2, 1)]}
