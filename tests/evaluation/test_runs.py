from pathlib import Path

import pytest

from llama_index_ziprerank.evaluation.intervals import bootstrap_interval
from llama_index_ziprerank.evaluation.runs import (
    append_jsonl,
    measure,
    parse_metric,
    read_jsonl,
    read_qrels,
    read_run,
    without_space,
    write_jsonl,
    write_qrels,
    write_run,
)

QRELS = {"q1": {"a": 1}, "q2": {"b": 1, "c": 1}}
RUN = {"q1": ["x", "a", "y"], "q2": ["b", "x", "c"]}


def test_the_metrics_are_what_one_computes_by_hand() -> None:
    values = measure(QRELS, RUN)

    assert values["R@1"] == {"q1": 0.0, "q2": 0.5}
    assert values["R@5"] == {"q1": 1.0, "q2": 1.0}
    assert values["MRR"] == {"q1": 0.5, "q2": 1.0}
    assert values["nDCG@5"]["q1"] == pytest.approx(0.6309, abs=1e-4)  # 1 / log2(3)
    assert values["nDCG@5"]["q2"] == pytest.approx(1.5 / 1.6309, abs=1e-4)  # (1 + 1/log2(4)) / (1 + 1/log2(3))


def test_one_metric_under_two_names_has_its_values_under_both() -> None:
    values = measure(QRELS, RUN, ("MRR", "RR", "R@5", "Recall@5"))

    assert values["MRR"] == values["RR"] == {"q1": 0.5, "q2": 1.0}
    assert values["R@5"] == values["Recall@5"] == {"q1": 1.0, "q2": 1.0}


def test_a_query_without_a_ranking_scores_nothing() -> None:
    assert measure(QRELS, {"q1": ["a"]})["R@1"] == {"q1": 1.0, "q2": 0.0}


def test_the_order_of_a_run_decides_whatever_the_names_of_its_pages() -> None:
    assert measure({"q": {"z": 1}}, {"q": ["z", "a"]})["R@1"] == {"q": 1.0}
    assert measure({"q": {"a": 1}}, {"q": ["a", "z"]})["R@1"] == {"q": 1.0}


def test_a_page_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="once"):
        measure({"q": {"a": 1}}, {"q": ["a", "a"]})


def test_an_interval_is_that_of_normal_theory_for_many_queries_and_a_point_when_all_agree() -> None:
    half = 1.96 * 0.5 / 100**0.5

    assert bootstrap_interval([0.0, 1.0] * 50) == pytest.approx((0.5 - half, 0.5 + half), abs=0.01)
    assert bootstrap_interval([0.25] * 7) == (0.25, 0.25)


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([])


def test_trec_files_read_back_as_written(tmp_path: Path) -> None:
    write_qrels(tmp_path / "qrels", QRELS)
    write_run(tmp_path / "run", RUN, tag="test")

    assert read_qrels(tmp_path / "qrels") == QRELS
    assert read_run(tmp_path / "run") == RUN


def test_trec_files_have_the_columns_of_trec_eval(tmp_path: Path) -> None:
    write_qrels(tmp_path / "qrels", {"q1": {"a": 1}})
    write_run(tmp_path / "run", {"q1": ["a", "b"]}, tag="test")

    assert (tmp_path / "qrels").read_text() == "q1 0 a 1\n"
    assert (tmp_path / "run").read_text() == "q1 Q0 a 1 2 test\nq1 Q0 b 2 1 test\n"


def test_jsonl_files_read_back_as_written(tmp_path: Path) -> None:
    write_qrels(tmp_path / "qrels.jsonl", QRELS)
    write_run(tmp_path / "run.jsonl", RUN, tag="test")

    assert read_qrels(tmp_path / "qrels.jsonl") == QRELS
    assert read_run(tmp_path / "run.jsonl") == RUN


@pytest.mark.parametrize(
    "line", ['{"query": "q1", "ranking": []}', '{"query_id": "q1", "ranking": "a"}', '{"query_id": 1, "ranking": []}']
)
def test_a_line_of_jsonl_that_is_no_ranking_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "run.jsonl").write_text(f'{{"query_id": "q0", "ranking": ["a"]}}\n{line}\n')

    with pytest.raises(ValueError, match="line 2 should be"):
        read_run(tmp_path / "run.jsonl")


def test_a_query_ranked_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.jsonl").write_text('{"query_id": "q", "ranking": ["a"]}\n' * 2)

    with pytest.raises(ValueError, match="line 2 should be"):
        read_run(tmp_path / "run.jsonl")


def test_hits_and_average_precision_are_what_one_computes_by_hand() -> None:
    values = measure(QRELS, RUN, ["Hit@1", "Hit@2", "AP", "MRR@1"])

    assert values["Hit@1"] == {"q1": 0.0, "q2": 1.0}
    assert values["Hit@2"] == {"q1": 1.0, "q2": 1.0}
    assert values["AP"] == pytest.approx({"q1": 1 / 2, "q2": (1 + 2 / 3) / 2})
    assert values["MRR@1"] == {"q1": 0.0, "q2": 1.0}


@pytest.mark.parametrize("name", ["Precision@five", "R@", "nothing", "MRR@x", "Recall", "Hit"])
def test_an_unknown_metric_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="No metric"):
        measure(QRELS, RUN, [name])


def test_a_name_without_space_stays_and_others_stay_apart() -> None:
    assert without_space("report-1.pdf") == "report-1.pdf"
    assert without_space("my report.pdf") == "my%20report.pdf"
    assert without_space("my%20report.pdf") != without_space("my report.pdf")


def test_an_id_with_white_space_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="white space"):
        write_run(tmp_path / "run", {"q 1": ["a"]}, tag="test")


def test_a_line_with_a_column_too_few_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("q1 Q0 a 1 2 test\nq1 Q0 b 2 1\n")

    with pytest.raises(ValueError, match="line 2 has 5 columns"):
        read_run(tmp_path / "run")


def test_jsonl_reads_back_as_written(tmp_path: Path) -> None:
    rows = [{"a": 1}, {"b": "zwei\u2028Zeilen\n"}]
    write_jsonl(tmp_path / "rows", rows[:1])
    append_jsonl(tmp_path / "rows", rows[1])

    assert read_jsonl(tmp_path / "rows") == rows


def test_half_a_character_in_a_question_is_written_as_json_spells_it(tmp_path: Path) -> None:
    rows = [{"query": "caf\udce9 \U0001f600"}, {"query": "\ud83d"}]
    write_jsonl(tmp_path / "rows.jsonl", rows[:1])
    append_jsonl(tmp_path / "rows.jsonl", rows[1])

    assert read_jsonl(tmp_path / "rows.jsonl") == rows


def test_a_line_cut_off_at_the_end_is_left_out_and_one_in_the_middle_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_text('{"a": 1}\n{"a"')
    assert read_jsonl(file) == [{"a": 1}]

    file.write_text('{"a"\n{"a": 1}\n')
    with pytest.raises(ValueError, match="line 1"):
        read_jsonl(file)


@pytest.mark.parametrize("name", ["R@0", "nDCG@0", "Hit@0", "MRR@0", "R@-1"])
def test_a_metric_at_no_rank_is_refused_before_it_ends_the_process(name: str) -> None:
    with pytest.raises(ValueError, match="No metric"):
        parse_metric(name)


def test_a_last_line_counts_without_a_newline_when_it_is_whole(tmp_path: Path) -> None:
    (tmp_path / "whole.jsonl").write_text('{"a": 1}\n\n{"a": 2}')
    (tmp_path / "cut.jsonl").write_text('{"a": 1}\n{"a": ')

    assert read_jsonl(tmp_path / "whole.jsonl") == [{"a": 1}, {"a": 2}]
    assert read_jsonl(tmp_path / "cut.jsonl") == [{"a": 1}]


def test_a_line_that_is_json_but_no_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n[1]\n')

    with pytest.raises(ValueError, match="line 2 is no JSON object"):
        read_jsonl(tmp_path / "rows.jsonl")


def test_grades_are_whole_numbers_however_they_are_spelled(tmp_path: Path) -> None:
    (tmp_path / "qrels").write_text("q1 0 a 1.0\nq1 0 b 2\n")
    assert read_qrels(tmp_path / "qrels") == {"q1": {"a": 1, "b": 2}}

    (tmp_path / "half").write_text("q1 0 a 1\nq1 0 b 0.5\n")
    with pytest.raises(ValueError, match="half: line 2: a grade of relevance is a whole number, got '0.5'"):
        read_qrels(tmp_path / "half")
    (tmp_path / "half.jsonl").write_text('{"query_id": "q1", "relevant": {"a": null}}\n')
    with pytest.raises(ValueError, match="query 'q1': a grade of relevance is a whole number, got None"):
        read_qrels(tmp_path / "half.jsonl")


def test_a_score_that_is_no_number_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("q1 Q0 a 1 9.5 x\nq1 Q0 b 2 high x\n")

    with pytest.raises(ValueError, match="line 2 has the score 'high', wanted a number"):
        read_run(tmp_path / "run")
