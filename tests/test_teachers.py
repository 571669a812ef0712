from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from llama_index.core.base.llms.types import ImageBlock
from llama_index.core.llms import MockLLM
from llama_index.core.llms.mock import MockLLMWithChatMemoryOfLastCall
from llm_server import COMPLETION_TOKENS, PROMPT_TOKENS, LLMServer, Reply, llm_server
from PIL import Image

from llama_index_ziprerank.reranking.prompt import prompt_words
from llama_index_ziprerank.teachers import LLMAnswer, LLMTeacher, openai_compatible_llm, seconds_before_retry
from llama_index_ziprerank.training.teacher import Teacher, TeacherSettings

SHADES = [Image.new("RGB", (30, 20), (grey, grey, grey)) for grey in (60, 200, 120)]
PROMPT = prompt_words("Which is bright?", 3).text


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_BASE", raising=False)


@pytest.fixture
def server() -> Iterator[LLMServer]:
    with llm_server() as server:
        yield server


@asynccontextmanager
async def teacher_at(server: LLMServer, timeout: float = 5.0) -> AsyncIterator[LLMTeacher]:
    async with openai_compatible_llm("grey", api_base=server.url, timeout=timeout) as llm:
        yield LLMTeacher(llm)


async def answer_of(server: LLMServer) -> LLMAnswer:
    async with teacher_at(server) as teacher:
        return await teacher(PROMPT, SHADES)


async def error_of(server: LLMServer, timeout: float = 5.0) -> Exception:
    async with teacher_at(server, timeout) as teacher:
        with pytest.raises(Exception) as caught:  # noqa: B017 - every LLM has its own
            await teacher(PROMPT, SHADES)
    return caught.value


async def test_the_llm_gets_the_prompt_then_the_pages_in_order_at_their_size(server: LLMServer) -> None:
    answer = await answer_of(server)

    assert answer.text == "[B] > [C] > [A]"
    assert server.prompts == [PROMPT] and server.models == {"grey"}
    assert server.sizes == [(30, 20)] * 3


async def test_the_tokens_are_those_that_the_server_counted(server: LLMServer) -> None:
    answer = await answer_of(server)

    assert (answer.prompt_tokens, answer.completion_tokens) == (PROMPT_TOKENS, COMPLETION_TOKENS)


async def test_any_llm_that_sees_images_does() -> None:
    llm = MockLLMWithChatMemoryOfLastCall(is_chat_model=True)
    answer = await LLMTeacher(llm)(PROMPT, SHADES)
    [message] = llm.last_chat_messages or []

    assert [type(block) for block in message.blocks[1:]] == [ImageBlock] * 3
    assert message.content == PROMPT
    assert (answer.prompt_tokens, answer.completion_tokens) == (None, None)


@pytest.mark.parametrize(
    ("reply", "seconds"),
    [
        (Reply(status=429, headers={"Retry-After": "7"}), 7.0),
        (Reply(status=429, headers={"Retry-After": "0.5"}), 0.5),
        (Reply(status=429, headers={"Retry-After": "soon"}), 0.0),
        (Reply(status=429), 0.0),
        (Reply(status=503, headers={"Retry-After": "3"}), 3.0),
        (Reply(status=500), 0.0),
        (Reply(status=408), 0.0),
        (Reply(hang_up=True), 0.0),
        (Reply(silent=True), 0.0),
        (Reply(body=b"{ no json"), 0.0),
        (Reply(body=b"<html>login</html>", headers={"content-type": "text/html"}), 0.0),
        (Reply(body=b'{"error": "overloaded"}'), 0.0),
        (Reply(body=b'{"choices": []}'), 0.0),
        (Reply(body=b'{"choices": "\xff"}'), 0.0),
        (Reply(body=b'{"choices": [{"message": {"role": "alien", "content": "[A]"}}]}'), 0.0),
        (Reply(body=b"no gzip", headers={"content-encoding": "gzip"}), 0.0),
        (Reply(status=400), None),
        (Reply(status=401), None),
        (Reply(status=404), None),
    ],
    ids=lambda value: "" if not isinstance(value, Reply) else f"{value.status} {value.headers} {value.body!r}",
)
async def test_what_may_pass_is_asked_again_and_what_will_not_pass_is_not(reply: Reply, seconds: float | None) -> None:
    with llm_server(lambda query, time: reply) as server:
        error = await error_of(server, timeout=0.5 if reply.silent else 5.0)

        assert seconds_before_retry(error) == seconds
        assert server.asked.total() == 1  # nobody but the teacher retries


async def test_a_server_that_is_not_there_may_come_back() -> None:
    with llm_server() as server:
        pass

    assert seconds_before_retry(await error_of(server)) == 0.0


async def test_a_server_may_name_the_hour_of_its_return() -> None:
    then = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=100), usegmt=True)
    with llm_server(lambda query, time: Reply(status=429, headers={"Retry-After": then})) as server:
        error = await error_of(server)

    assert 90 < (seconds_before_retry(error) or 0) <= 100


async def test_a_mistake_of_the_caller_is_not_tried_again() -> None:
    with pytest.raises(NotImplementedError) as caught:
        await LLMTeacher(BrokenLLM())(PROMPT, SHADES)

    assert seconds_before_retry(caught.value) is None


class BrokenLLM(MockLLM):
    async def achat(self, *_: object, **__: object) -> object:  # type: ignore[override]
        raise NotImplementedError("this model sees no images")


@pytest.mark.parametrize("trouble", [Reply(status=503), Reply(hang_up=True), Reply(silent=True), Reply(body=b"{")])
async def test_the_teacher_overcomes_what_passes(trouble: Reply) -> None:
    settings = TeacherSettings(attempts=3, timeout=0.5, first_wait=0.01)
    with llm_server(lambda query, time: trouble if time < 3 else Reply()) as server:
        async with teacher_at(server) as ask:
            teacher = Teacher(ask, settings, retry_rule=seconds_before_retry)
            ranking = await teacher.rank("Which is bright?", SHADES)

    assert ranking.order == [1, 2, 0]
    assert teacher.totals.requests == 3


async def test_openai_wants_a_key_and_other_servers_may_not() -> None:
    with pytest.raises(ValueError, match="Set OPENAI_API_KEY"):
        async with openai_compatible_llm("gpt-5-mini"):
            pass

    async with openai_compatible_llm("grey", api_base="http://127.0.0.1:1/v1") as llm:
        assert llm.metadata.is_chat_model
