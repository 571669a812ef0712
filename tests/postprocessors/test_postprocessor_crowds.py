"""Several questions at one postprocessor, and postprocessors in query engines."""

import asyncio
import threading
from io import BytesIO

import pytest
from llama_index.core import get_response_synthesizer
from llama_index.core.base.llms.types import ImageBlock, MessageRole
from llama_index.core.indices.prompt_helper import ChatPromptHelper
from llama_index.core.llms.mock import MockLLMWithChatMemoryOfLastCall
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle, TextNode
from PIL import Image
from reranked_pages import PAGES, QUERY, assert_alike, ids

from llama_index_ziprerank.postprocessors import ZipRerankPostprocessor
from llama_index_ziprerank.reranking import ListwiseReranker
from llama_index_ziprerank.reranking.page_keys import PageSource


class FixedRetriever(BaseRetriever):
    """Retrieves the same nodes for every question."""

    def __init__(self, nodes: list[NodeWithScore]) -> None:
        super().__init__()
        self._nodes = nodes

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._nodes

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._nodes


async def test_sixteen_concurrent_calls_give_the_serial_answers(
    postprocessor: ZipRerankPostprocessor, nodes: list[NodeWithScore]
) -> None:
    nodes, questions = nodes[:3], [f"{QUERY} {i}" for i in range(16)]
    serial = [postprocessor.postprocess_nodes(nodes, query_str=question) for question in questions]
    calls = (postprocessor.apostprocess_nodes(nodes, query_str=question) for question in questions)
    for answer, expected in zip(await asyncio.gather(*calls), serial, strict=True):
        assert_alike(answer, expected)


async def test_a_call_that_is_given_up_leaves_the_others_their_answers(
    postprocessor: ZipRerankPostprocessor, reranker: ListwiseReranker, nodes: list[NodeWithScore]
) -> None:
    expected = postprocessor.postprocess_nodes(nodes[:3], query_str=QUERY)
    with reranker._turn:
        calls = [asyncio.ensure_future(postprocessor.apostprocess_nodes(nodes[:3], query_str=QUERY)) for _ in range(6)]
        await asyncio.sleep(0.1)
        for call in calls[::2]:
            call.cancel()
        await asyncio.sleep(0)
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [True, False] * 3
    for answer in answers[1::2]:
        assert_alike(answer, expected)


async def test_waiting_calls_leave_the_loop_and_its_threads_free(
    postprocessor: ZipRerankPostprocessor, reranker: ListwiseReranker, nodes: list[NodeWithScore]
) -> None:
    """With the model held up, the loop still turns and its default threads still serve."""
    with reranker._turn:
        calls = [asyncio.ensure_future(postprocessor.apostprocess_nodes(nodes[:1], query_str=QUERY)) for _ in range(64)]
        for _ in range(5):
            assert await asyncio.wait_for(asyncio.to_thread(len, "free"), timeout=10) == 4
        assert not any(call.done() for call in calls)
    answers = await asyncio.gather(*calls)
    for answer in answers:
        assert_alike(answer, answers[0])


@pytest.mark.parametrize("given_up", ["cancelled", "left behind"])
async def test_a_call_that_is_given_up_reads_no_further_page(
    postprocessor: ZipRerankPostprocessor, nodes: list[NodeWithScore], monkeypatch: pytest.MonkeyPatch, given_up: str
) -> None:
    """Pages behind slow URLs would keep a thread for minutes, and there are few."""
    read: list[str] = []
    reading, go_on, real = threading.Event(), threading.Event(), ZipRerankPostprocessor._page

    def slowly(self: ZipRerankPostprocessor, node: BaseNode) -> PageSource:
        read.append(node.node_id)
        reading.set()
        assert go_on.wait(20)
        return real(self, node)

    monkeypatch.setattr(ZipRerankPostprocessor, "_page", slowly)
    call = postprocessor._apostprocess_nodes(nodes, QueryBundle(QUERY))
    if given_up == "cancelled":
        task = asyncio.create_task(call)
        await asyncio.to_thread(reading.wait, 20)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    else:  # as a loop does that is closed with work to do
        call.send(None)
        await asyncio.to_thread(reading.wait, 20)
        call.close()
    go_on.set()
    postprocessor._seat.threads.shutdown(wait=True)
    assert read == [nodes[0].node.node_id]


async def test_an_error_in_the_thread_reaches_the_caller(postprocessor: ZipRerankPostprocessor) -> None:
    bad = [NodeWithScore(node=TextNode(id_="the-bad-page", text=""))]
    with pytest.raises(ValueError, match="the-bad-page"):
        await postprocessor.apostprocess_nodes(bad, query_str=QUERY)


def engine_over(
    nodes: list[NodeWithScore], postprocessor: ZipRerankPostprocessor
) -> tuple[RetrieverQueryEngine, MockLLMWithChatMemoryOfLastCall]:
    llm = MockLLMWithChatMemoryOfLastCall(is_chat_model=True)
    synthesizer = get_response_synthesizer(
        llm,
        multimodal=True,
        chat_prompt_helper=ChatPromptHelper(context_window=32_000),  # room for all pages in one call
    )
    engine = RetrieverQueryEngine.from_args(
        FixedRetriever(nodes), llm=llm, response_synthesizer=synthesizer, node_postprocessors=[postprocessor]
    )
    return engine, llm


def images_shown_to(llm: MockLLMWithChatMemoryOfLastCall) -> list[bytes]:
    assert llm.last_chat_messages is not None
    return [
        BytesIO(block.resolve_image().read()).getvalue()
        for message in llm.last_chat_messages
        if message.role == MessageRole.USER
        for block in message.blocks
        if isinstance(block, ImageBlock)
    ]


async def test_the_llm_sees_exactly_the_best_pages_in_their_new_order(
    postprocessor: ZipRerankPostprocessor, reranker: ListwiseReranker, nodes: list[NodeWithScore]
) -> None:
    ranking = reranker.rerank(QUERY, [Image.open(path) for path in PAGES])
    expected = [PAGES[i].read_bytes() for i in ranking.order[:3]]
    engine, llm = engine_over(nodes, postprocessor)
    response = engine.query(QUERY)
    assert images_shown_to(llm) == expected
    assert ids(response.source_nodes) == [PAGES[i].stem for i in ranking.order[:3]]
    llm.reset_memory()
    await engine.aquery(QUERY)
    assert images_shown_to(llm) == expected


async def test_concurrent_questions_to_one_engine_get_the_serial_sources(
    postprocessor: ZipRerankPostprocessor, nodes: list[NodeWithScore]
) -> None:
    engine, _ = engine_over(nodes[:4], postprocessor)
    questions = [f"{QUERY} {i}" for i in range(16)]
    serial = [engine.query(question).source_nodes for question in questions]
    answers = await asyncio.gather(*(engine.aquery(question) for question in questions))
    for answer, expected in zip(answers, serial, strict=True):
        assert_alike(answer.source_nodes, expected)
