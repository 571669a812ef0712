"""What the teacher reads and writes: answers, files of queries and of rankings, and the images of pages."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_server import GREYS, write_queries
from PIL import Image
from tiny_manual import tiny_manual

from llama_index_ziprerank.pages.page import PageError
from llama_index_ziprerank.pages.pdf import read_pages
from llama_index_ziprerank.reranking.permutation import complete_order, format_permutation
from llama_index_ziprerank.training.teacher import LabelFile, PageImages, check_queries, read_order, read_queries

BRIGHTEST_FIRST = [*reversed(range(len(GREYS)))]


@pytest.mark.parametrize("cut", [1, 40, -2])
def test_a_torn_last_row_is_removed_and_asked_again(tmp_path: Path, cut: int) -> None:
    queries, to = [*read_queries(write_queries(tmp_path / "queries.jsonl", 2))], tmp_path / "labels.jsonl"
    with LabelFile(to) as labels:
        for query in queries:
            labels.add(query, BRIGHTEST_FIRST, "ü")
    first, second = to.read_bytes().splitlines(keepends=True)
    to.write_bytes(first + second[:cut])

    with LabelFile(to) as labels:
        assert [query in labels for query in queries] == [True, False]
        assert to.read_bytes() == first
        labels.add(queries[1], BRIGHTEST_FIRST, "ü")

    assert to.read_bytes() == first + second


def test_a_file_that_is_being_written_is_not_opened_a_second_time(tmp_path: Path) -> None:
    """Two runs would ask, and pay for, every query twice."""
    with LabelFile(tmp_path / "labels.jsonl"), pytest.raises(ValueError, match="Another process is at work"):
        LabelFile(tmp_path / "labels.jsonl")

    LabelFile(tmp_path / "labels.jsonl").__exit__(None, None, None)


def test_half_a_character_in_an_answer_is_kept_as_json_spells_it(tmp_path: Path) -> None:
    [query] = read_queries(write_queries(tmp_path / "queries.jsonl", 1))
    with LabelFile(tmp_path / "labels.jsonl") as labels:
        labels.add(query, BRIGHTEST_FIRST, "[B] > [A] \ud83d")

    [line] = (tmp_path / "labels.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["openai_response"] == "[B] > [A] \ud83d"
    with LabelFile(tmp_path / "labels.jsonl") as labels:
        assert query in labels


def test_a_last_row_that_lacks_only_its_newline_is_kept(tmp_path: Path) -> None:
    [query], to = [*read_queries(write_queries(tmp_path / "queries.jsonl", 1))], tmp_path / "labels.jsonl"
    with LabelFile(to) as labels:
        labels.add(query, BRIGHTEST_FIRST, "")
    whole = to.read_bytes()
    to.write_bytes(whole.rstrip())

    with LabelFile(to) as labels:
        assert query in labels

    assert to.read_bytes() == whole


def test_a_ranking_of_other_candidates_is_not_taken_for_this_one(tmp_path: Path) -> None:
    [query], to = [*read_queries(write_queries(tmp_path / "queries.jsonl", 1))], tmp_path / "labels.jsonl"
    with LabelFile(to) as labels:
        labels.add(query, BRIGHTEST_FIRST, "")

        with pytest.raises(ValueError, match="another question or other candidates"):
            replace(query, candidates=query.candidates[::-1]) in labels  # noqa: B015


@pytest.mark.parametrize("text", ['{"a": 1}\n', '{"a": 1}', "notes, and no newline", '{\n "indented": 1\n}'])
def test_a_file_of_something_else_is_refused_and_stays_as_it_is(text: str, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(text)

    with pytest.raises(ValueError, match=r"other\.jsonl: line 1 is no ranking"):
        LabelFile(other)

    assert other.read_text() == text


@pytest.mark.parametrize("end", ["", "\n"])
def test_queries_are_no_rankings(end: str, tmp_path: Path) -> None:
    queries = write_queries(tmp_path / "queries.jsonl", 1)
    text = queries.read_text().rstrip() + end
    queries.write_text(text)

    with pytest.raises(ValueError, match="line 1 is no ranking .*openai_ranking"):
        LabelFile(queries)

    assert queries.read_text() == text


def test_queries_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = write_queries(tmp_path / "queries.jsonl", 2)
    plain = [*read_queries(path)]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))

    assert [*read_queries(path)] == plain


def test_queries_in_another_encoding_are_named(tmp_path: Path) -> None:
    path = write_queries(tmp_path / "queries.jsonl", 2)
    path.write_bytes(path.read_bytes().replace(b"shade 1", b"sch\xe4de"))

    with pytest.raises(ValueError, match=r"queries\.jsonl: line 2: .*can't decode"):
        check_queries(path, lambda page: None)


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("[B] > [A] > [C]", [1, 0, 2]),
        ("[B]>[A]\n> [C]", [1, 0, 2]),
        ("B > A > C", [1, 0, 2]),
        ("**[B] > [A]**", [1, 0]),
        ("[C], then [A]", [2, 0]),
        ("Page [C] is blank, so [C] > [A] is wrong. I rank: [B] > [A] > [C].", [1, 0, 2]),
        ("[A] > [B] > [C]\nNo: [B] > [A] > [C]", [1, 0, 2]),
        ("[B] > [K] > [B] > [A]", [1, 0]),
        ("[B] = [A] > [C]", [1, 0, 2]),
        ("[C] > [B] = [A]", [2, 1, 0]),
        ("A = B holds. [C] > [A]", [2, 0]),
        ("1. [B]\n2. [A]", [1, 0]),
        ("[A] is a table. **[B]** > **[A]** > **[C]**", [1, 0, 2]),
        ("Of [A] and [C]: `[C]` > `[A]`", [2, 0]),
        ("A page about Bees and Cats", []),
        ("[1] > [2]", []),
        ("", []),
        ("First I thought A > B > C > D. Final: [C] > [A] > [B]", [2, 0, 1]),  # D is no candidate
        ("[A] > [B], not [C] > [D] > [E]", [0, 1]),
        (r"\[B\] > \[A\] > \[C\]", [1, 0, 2]),
    ],
)
def test_an_order_is_read_from_the_chain_that_names_most_candidates(text: str, order: list[int]) -> None:
    assert read_order(text, 3) == order


@given(st.permutations(range(20)), st.text(), st.text(alphabet="ABC []>\n"))
def test_whatever_an_answer_holds_it_becomes_an_order_of_all(order: list[int], noise: str, letters: str) -> None:
    assert read_order(format_permutation(order), 20) == order
    for text in (noise, letters):
        assert sorted(complete_order(read_order(text, 5), 5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": " "}, "line 1: query must be a question; got ' '"),
        ({"query_id": None}, "query_id must be a text or a number"),
        ({"doc_name": 3}, "doc_name must be a text; got 3"),
        ({"candidate_page_ids": "page-1"}, "candidate_page_ids must be a list of page ids"),
        ({"candidate_page_ids": ["a"]}, "2 to 20 page ids, each once"),
        ({"candidate_page_ids": ["a", "a"]}, "2 to 20 page ids, each once"),
        ({"candidate_page_ids": [*range(21)]}, "2 to 20 page ids, each once"),
        ({"gt_page_ids": [None]}, "gt_page_ids must be a list of page ids"),
        ({"first_stage_scores": [1.0]}, "one number for each candidate"),
    ],
)
def test_a_wrong_row_of_queries_names_its_line_its_column_and_what_was_wanted(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = write_queries(tmp_path / "queries.jsonl", 1, **changes)

    with pytest.raises(ValueError, match=message):
        list(read_queries(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "holds no query"), ("{", "line 1: "), ("[]\n", "a JSON object, got"), ('{"query": "a"}', "it is missing")],
)
def test_a_file_without_queries_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text(text)

    with pytest.raises(ValueError, match=message):
        check_queries(path, print)


def test_a_query_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    path = write_queries(tmp_path / "queries.jsonl", 2, query_id="q")

    with pytest.raises(ValueError, match="query 'q' of 'tests' stands there twice"):
        check_queries(path, print)


def test_pages_come_from_image_files_and_from_pdfs(tmp_path: Path) -> None:
    manual = tiny_manual(tmp_path / "manual.pdf")
    Image.new("RGB", (3000, 1500), "red").save(tmp_path / "wide.jpg")
    (tmp_path / "sub").mkdir()
    Image.new("L", (5, 5)).save(tmp_path / "sub" / "7.png")
    with PageImages(tmp_path, side=300) as pages:
        assert pages.image("wide").size == (300, 150)
        assert pages.image("sub/7").mode == "RGB"
        assert pages.image("sub/7.png").size == (5, 5)
        drawn = [page.image for page in read_pages(manual, max_side=300)]
        for number in (2, 9):
            assert pages.image(f"manual.pdf#{number}").size == drawn[number - 1].size


def test_a_pdf_is_drawn_once(tmp_path: Path) -> None:
    manual = tiny_manual(tmp_path / "manual.pdf")
    with PageImages(tmp_path) as pages:
        first = pages.image("manual.pdf#1")
        manual.write_bytes(b"gone")

        assert pages.image("manual.pdf#1") == first
        assert pages.image("manual.pdf#2") != first


@pytest.mark.parametrize(
    ("page_id", "message"),
    [
        ("missing", r"holds no missing\.png"),
        ("missing.pdf#1", r"holds no missing\.pdf\."),
        ("manual.pdf#99", "there is no page 99"),
        ("manual.pdf#0", "holds no"),
        ("../secret", "does not lie in"),
        ("/etc/passwd", "does not lie in"),
        ("a/../../manual.pdf#1", "does not lie in"),
    ],
)
def test_a_page_that_cannot_be_had_is_named(tmp_path: Path, page_id: str, message: str) -> None:
    tiny_manual(tmp_path / "manual.pdf")
    Image.new("L", (5, 5)).save(tmp_path.parent / "secret.png")
    with PageImages(tmp_path) as pages, pytest.raises(PageError, match=message):
        pages.image(page_id)


def test_a_page_number_is_as_good_an_id_as_a_name(tmp_path: Path) -> None:
    Image.new("L", (5, 5)).save(tmp_path / "7.png")
    with PageImages(tmp_path) as pages:
        assert pages.image(7) == pages.image("7")
