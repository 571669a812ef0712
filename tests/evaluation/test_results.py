from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest

from llama_index_ziprerank.evaluation.results import (
    QueryResult,
    ResultsFile,
    gain,
    is_complete,
    summarize,
    write_runs,
)
from llama_index_ziprerank.evaluation.runs import METRICS, read_qrels, read_run, write_jsonl


def _result(query_id: str, page: int, of: int = 2) -> QueryResult:
    rankings = {"bm25": [1, 2, 3, 4], "first_stage": [4, 3, 2, 1], "reranked": [page, *({1, 2, 3, 4} - {page})]}
    return QueryResult("manual", "0f1e2d", "heading", query_id, "Bar graphs", [page], of, rankings, {"bm25": 0.1})


def _file(path: Path, **settings: object) -> ResultsFile[QueryResult]:
    return ResultsFile(path, settings, QueryResult)


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
    _file(path, seed=0).add(_result("q1", 1))
    with path.open("a") as file:
        file.write('{"manual": "man')

    reopened = _file(path, seed=0)
    reopened.add(_result("q2", 2))

    assert _file(path, seed=0).results == [_result("q1", 1), _result("q2", 2)]


def test_a_query_that_two_processes_asked_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    for file in (_file(path, seed=0), _file(path, seed=0)):
        file.add(_result("q1", 3))

    assert _file(path, seed=0).results == [_result("q1", 3)]


def test_results_of_other_settings_are_never_mixed(tmp_path: Path) -> None:
    _file(tmp_path / "results.jsonl", seed=0)

    with pytest.raises(ValueError, match=r"other settings \(seed 0, now 1\)"):
        _file(tmp_path / "results.jsonl", seed=1)


def test_settings_are_compared_as_they_are_written_down(tmp_path: Path) -> None:
    _file(tmp_path / "results.jsonl", kinds=("heading", "term")).add(_result("q1", 1))

    assert _file(tmp_path / "results.jsonl", kinds=("heading", "term")).query_ids() == {"q1"}


def test_lines_of_another_kind_are_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "results.jsonl", [{"settings": {}}, {"manual": "m", "page": 3}])

    with pytest.raises(ValueError, match="another version"):
        _file(tmp_path / "results.jsonl")


def test_a_manual_is_complete_when_all_its_queries_are_done() -> None:
    assert not is_complete("manual", [])
    assert not is_complete("manual", [_result("q1", 1)])
    assert is_complete("manual", [_result("q1", 1), _result("q2", 1)])


def test_random_with_several_right_pages_is_the_mean_over_all_orders() -> None:
    result = replace(_result("q1", 1), pages=[1, 3])
    orders = [dict(result.rankings) | {"reranked": list(order)} for order in permutations([1, 2, 3, 4])]
    every = [replace(result, query_id=f"q{n}", rankings=order) for n, order in enumerate(orders)]
    scores = summarize(every)

    for metric in METRICS:
        assert scores["random"][metric].mean == pytest.approx(scores["reranked"][metric].mean, abs=1e-6), metric


def test_the_gain_is_paired_by_query() -> None:
    results = [_result("q1", 4), _result("q2", 1)]  # first stage: rank 1 and rank 4; reranked: rank 1 both times

    assert gain(results)["MRR"].mean == pytest.approx((0 + 3 / 4) / 2)
    assert gain(results, base="reranked")["MRR"].mean == 0.0


@pytest.mark.parametrize("suffix", [".trec", ".jsonl"])
def test_runs_and_qrels_hold_the_same_rankings(tmp_path: Path, suffix: str) -> None:
    write_runs([_result("q1", 3)], tmp_path)

    assert read_qrels(tmp_path / f"qrels{suffix}") == {"q1": {"manual:p3": 1}}
    assert read_run(tmp_path / f"first_stage{suffix}") == {"q1": [f"manual:p{page}" for page in (4, 3, 2, 1)]}
