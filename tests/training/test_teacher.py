"""`ziprerank label`'s teacher against a server that also fails: over HTTP on loopback, as any callable."""

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
from llm_server import COMPLETION_TOKENS, GREYS, PROMPT_TOKENS, LLMServer, Reply, llm_server, write_pages, write_queries
from PIL import Image

from llama_index_ziprerank.reranking.permutation import format_permutation
from llama_index_ziprerank.training.teacher import (
    LABEL_COLUMNS,
    LabelFile,
    PageImages,
    Teacher,
    TeacherSettings,
    TeacherStoppedError,
    TeacherTotals,
    label_queries,
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


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="attempts must be positive, got 0"):
        TeacherSettings(attempts=0)
