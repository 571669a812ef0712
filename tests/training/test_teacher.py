import asyncio
import json
import random
import resource
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_server import COMPLETION_TOKENS, GREYS, PROMPT_TOKENS, LLMServer, Reply, llm_server, write_pages, write_queries
from PIL import Image
from tiny_manual import tiny_manual

from llama_index_ziprerank.pages.page import PageError
from llama_index_ziprerank.pages.pdf import read_pages
from llama_index_ziprerank.reranking.permutation import complete_order, format_permutation
from llama_index_ziprerank.training.teacher import (
    LABEL_COLUMNS,
    LabelFile,
    PageImages,
    Teacher,
    TeacherSettings,
    TeacherStoppedError,
    TeacherTotals,
    check_queries,
    label_queries,
    read_order,
    read_queries,
)

SETTINGS = TeacherSettings(concurrency=3, attempts=3, timeout=5.0, first_wait=0.01, longest_wait=0.5)
BRIGHTEST_FIRST = [*reversed(range(len(GREYS)))]


@dataclass(frozen=True)
class Said:
    text: str
    prompt_tokens: int | None
    completion_tokens: int | None


class Asker:
    """An async callable that knows no LlamaIndex: one POST with httpx."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = httpx.AsyncClient(timeout=None)

    async def __call__(self, prompt: str, images: Sequence[Image.Image]) -> Said:
        content: list[dict[str, object]] = [{"type": "text", "text": prompt}]
        for image in images:
            buffer = BytesIO()
            image.save(buffer, "PNG")
            url = f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"
            content.append({"type": "image_url", "image_url": {"url": url}})
        message = {"model": "grey", "messages": [{"role": "user", "content": content}]}
        response = (await self._client.post(f"{self._url}/chat/completions", json=message)).raise_for_status().json()
        usage = response["usage"]
        return Said(response["choices"][0]["message"]["content"], usage["prompt_tokens"], usage["completion_tokens"])

    async def aclose(self) -> None:
        await self._client.aclose()


def retry_rule(error: BaseException) -> float | None:
    if isinstance(error, httpx.HTTPStatusError) and error.response.status_code in (429, 500):
        return float(error.response.headers.get("retry-after", 0))
    return 0.0 if isinstance(error, TimeoutError) else None


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageImages]:
    with PageImages(write_pages(tmp_path_factory.mktemp("teacher") / "pages")) as images:
        yield images


async def label(
    server: LLMServer,
    pages: PageImages,
    queries: Path,
    to: Path,
    settings: TeacherSettings = SETTINGS,
    on_done: Callable[[], object] = lambda: None,
) -> TeacherTotals:
    ask = Asker(server.url)
    teacher = Teacher(ask, settings, retry_rule=retry_rule)
    try:
        with LabelFile(to) as labels:
            await label_queries(read_queries(queries), pages.image, teacher, labels, on_done)
    finally:
        await ask.aclose()
    return teacher.totals


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_a_ranking_has_the_columns_of_the_distilled_data_set(pages: PageImages, tmp_path: Path) -> None:
    queries = write_queries(tmp_path / "queries.jsonl", 1, first_stage_scores=[7, 6, 5, 4, 3, 2, 1])
    with llm_server() as server:
        await label(server, pages, queries, tmp_path / "labels.jsonl")
    [row] = rows(tmp_path / "labels.jsonl")
    ids = [*GREYS]

    assert tuple(row) == LABEL_COLUMNS
    assert row == {
        "query_id": "q0",
        "query": "shade 0",
        "doc_name": "greys",
        "domain": "tests",
        "candidate_page_ids": ids,
        "gt_page_ids": [ids[2]],
        "neg_page_ids": ids[:2] + ids[3:],
        "openai_ranking": BRIGHTEST_FIRST,
        "ranked_page_ids": ids[::-1],
        "openai_response": "[G] > [F] > [E] > [D] > [C] > [B] > [A]",
        "first_stage_scores": [7, 6, 5, 4, 3, 2, 1],
    }


@pytest.mark.parametrize(
    ("trouble", "unreadable"),
    [
        (Reply(status=500), 0),
        (Reply(status=429, headers={"Retry-After": "0"}), 0),
        (Reply(silent=True), 0),
        (Reply(text="I am sorry, I cannot see any pages."), 1),
    ],
    ids=["500", "429", "silence", "garbage"],
)
async def test_trouble_that_passes_costs_another_request_and_nothing_else(
    pages: PageImages, tmp_path: Path, trouble: Reply, unreadable: int
) -> None:
    queries = write_queries(tmp_path / "queries.jsonl", 4)
    settings = replace(SETTINGS, timeout=0.4)
    with llm_server(lambda query, time: trouble if query == "shade 2" and time < 3 else Reply()) as server:
        totals = await label(server, pages, queries, tmp_path / "labels.jsonl", settings)

    assert [row["openai_ranking"] for row in rows(tmp_path / "labels.jsonl")] == [BRIGHTEST_FIRST] * 4
    assert (totals.labelled, totals.failed, totals.requests) == (4, 0, 6)
    assert totals.unreadable == 2 * unreadable
    assert server.asked["shade 2"] == 3


async def test_a_busy_server_is_left_alone_as_long_as_it_asks(pages: PageImages, tmp_path: Path) -> None:
    queries = write_queries(tmp_path / "queries.jsonl", 1)
    busy = Reply(status=429, headers={"Retry-After": "0.3"})
    with llm_server(lambda query, time: busy if time == 1 else Reply()) as server:
        await label(server, pages, queries, tmp_path / "labels.jsonl")

    assert server.times[1] - server.times[0] >= 0.3


async def test_a_server_that_asks_for_a_day_is_asked_again_before(pages: PageImages, tmp_path: Path) -> None:
    queries = write_queries(tmp_path / "queries.jsonl", 1)
    busy = Reply(status=429, headers={"Retry-After": "86400"})
    with llm_server(lambda query, time: busy if time == 1 else Reply()) as server:
        totals = await label(server, pages, queries, tmp_path / "labels.jsonl")

    assert totals.labelled == 1
    assert server.times[1] - server.times[0] >= SETTINGS.longest_wait


async def test_candidates_that_an_answer_misses_follow_as_they_were_given(pages: PageImages, tmp_path: Path) -> None:
    queries = write_queries(tmp_path / "queries.jsonl", 2)
    partial = Reply(text="[D] > [Z] > [B] > [D]")
    with llm_server(lambda query, time: partial if query == "shade 1" else Reply()) as server:
        totals = await label(server, pages, queries, tmp_path / "labels.jsonl")
    [row] = [row for row in rows(tmp_path / "labels.jsonl") if row["query_id"] == "q1"]

    assert row["openai_ranking"] == [3, 1, 0, 2, 4, 5, 6]
    assert row["openai_response"] == partial.text
    assert totals.completed_by_rule == 1


async def test_a_query_without_a_ranking_is_left_for_the_next_run(
    pages: PageImages, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queries, to = write_queries(tmp_path / "queries.jsonl", 3), tmp_path / "labels.jsonl"
    with llm_server(lambda query, time: Reply(text="?") if query == "shade 1" else Reply()) as server:
        first = await label(server, pages, queries, to)
        before = [row["query_id"] for row in rows(to)]
        server.behave = lambda query, time: Reply()
        second = await label(server, pages, queries, to)

    assert sorted(before) == ["q0", "q2"] and sorted(row["query_id"] for row in rows(to)) == ["q0", "q1", "q2"]
    assert (first.labelled, first.failed, first.unreadable) == (2, 1, SETTINGS.attempts)
    assert (second.labelled, second.already_labelled, second.requests) == (1, 2, 1)
    assert "query 'q1' of 'tests' got no ranking" in caplog.text


async def test_an_error_that_no_second_try_mends_is_not_tried_twice(pages: PageImages, tmp_path: Path) -> None:
    queries = write_queries(tmp_path / "queries.jsonl", 2)
    with llm_server(lambda query, time: Reply(status=400) if query == "shade 0" else Reply()) as server:
        totals = await label(server, pages, queries, tmp_path / "labels.jsonl")

    assert server.asked["shade 0"] == 1
    assert (totals.labelled, totals.failed) == (1, 1)


async def test_a_run_that_only_fails_stops_and_keeps_what_it_had(pages: PageImages, tmp_path: Path) -> None:
    queries, to = write_queries(tmp_path / "queries.jsonl", 50), tmp_path / "labels.jsonl"
    settings = replace(SETTINGS, concurrency=1, failures_in_a_row=4)
    with llm_server(lambda query, time: Reply() if query in ("shade 0", "shade 1") else Reply(status=401)) as server:
        with pytest.raises(TeacherStoppedError, match=r"4 queries failed in a row; query 'q5' .*401"):
            await label(server, pages, queries, to, settings)

    assert [row["query_id"] for row in rows(to)] == ["q0", "q1"]
    assert server.asked.total() == 6


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_the_server_never_sees_more_requests_at_a_time_than_allowed(
    pages: PageImages, tmp_path: Path, concurrency: int
) -> None:
    queries = write_queries(tmp_path / "queries.jsonl", 12)
    settings = replace(SETTINGS, concurrency=concurrency)
    with llm_server(lambda query, time: Reply(delay=0.1)) as server:
        await label(server, pages, queries, tmp_path / "labels.jsonl", settings)

    assert server.most_at_a_time == concurrency


async def test_totals_count_every_answer_that_was_paid_for(pages: PageImages, tmp_path: Path) -> None:
    queries = write_queries(tmp_path / "queries.jsonl", 5)
    with llm_server(lambda query, time: Reply(text="?") if time == 1 else Reply()) as server:
        totals = await label(server, pages, queries, tmp_path / "labels.jsonl")

    assert (totals.requests, totals.unreadable, totals.labelled) == (10, 5, 5)
    assert totals.prompt_tokens == 10 * PROMPT_TOKENS and totals.completion_tokens == 10 * COMPLETION_TOKENS
    assert totals.cost(2.5, 10.0) == pytest.approx(10 * (PROMPT_TOKENS * 2.5 + COMPLETION_TOKENS * 10.0) / 1e6)


async def test_a_callable_that_counts_no_tokens_may_answer_with_plain_text(pages: PageImages) -> None:
    async def ask(prompt: str, images: Sequence[Image.Image]) -> str:
        return f"{format_permutation(range(len(images))[::-1])}. Done."

    teacher = Teacher(ask)

    ranking = await teacher.rank("why", [pages.image(page) for page in GREYS])

    assert ranking.order == BRIGHTEST_FIRST
    assert teacher.totals.without_usage == 1


@pytest.mark.parametrize("seed", range(3))
async def test_an_interrupted_run_goes_on_and_has_every_row_once(pages: PageImages, tmp_path: Path, seed: int) -> None:
    queries, to = write_queries(tmp_path / "queries.jsonl", 12), tmp_path / "labels.jsonl"
    done, last = 0, random.Random(seed).randrange(2, 10)

    def count() -> None:
        nonlocal done
        done += 1
        if done == last:
            running.cancel()

    with llm_server(lambda query, time: Reply(delay=0.01)) as server:
        running = asyncio.create_task(label(server, pages, queries, to, on_done=count))
        with pytest.raises(asyncio.CancelledError):
            await running
        kept = len(rows(to))
        totals = await label(server, pages, queries, to)

    assert 0 < kept < 12
    assert (totals.already_labelled, totals.labelled) == (kept, 12 - kept)
    assert sorted(str(row["query"]) for row in rows(to)) == sorted(f"shade {number}" for number in range(12))


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


def test_a_file_of_something_else_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"a": 1}\n')

    with pytest.raises(ValueError, match=r"other\.jsonl: line 1 is no ranking"):
        LabelFile(other)

    assert other.read_text() == '{"a": 1}\n'


async def test_a_disk_that_fills_up_ends_the_run_and_loses_no_finished_row(pages: PageImages, tmp_path: Path) -> None:
    queries, to = write_queries(tmp_path / "queries.jsonl", 8), tmp_path / "labels.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with llm_server() as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # stands in for the disk: 3 rows and a bit
        try:
            with pytest.raises(OSError):
                await label(server, pages, queries, to)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        torn = to.read_bytes()
        totals = await label(server, pages, queries, to)

    assert len(torn) == 2000 and totals.already_labelled == torn.count(b"\n") > 0
    assert sorted(str(row["query_id"]) for row in rows(to)) == [f"q{number}" for number in range(8)]


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
        ("1. [B]\n2. [A]", [1, 0]),
        ("A page about Bees and Cats", []),
        ("[1] > [2]", []),
        ("", []),
    ],
)
def test_an_order_is_read_from_the_longest_chain_of_letters(text: str, order: list[int]) -> None:
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


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="attempts must be positive, got 0"):
        TeacherSettings(attempts=0)
