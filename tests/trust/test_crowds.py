"""Many callers of one index and one postprocessor: each gets the answer that it would have got alone."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers.no_text import NoText
from llama_index.core.schema import ImageDocument, ImageNode, NodeWithScore
from PIL import Image
from tiny_retriever import colqwen3

from llama_index_ziprerank.indices import ColPaliIndex
from llama_index_ziprerank.postprocessors import ZipRerankPostprocessor
from llama_index_ziprerank.reranking import ListwiseReranker
from llama_index_ziprerank.reranking.reranker import RerankMemoryError

PARITY = Path(__file__).parents[1] / "data" / "parity"
QUESTIONS = [f"set the line width of axis {number}" for number in range(64)]
SECONDS = 600  # before a deadlock is called one, on a busy machine

Answer = list[tuple[str, float]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six small pictures."""
    folder = tmp_path_factory.mktemp("pages")
    paths = [folder / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        Image.open(PARITY / "pages" / f"small-{number + 12:03d}.png").convert("RGB").crop((0, 0, 128, 96)).save(path)
    return paths


@pytest.fixture(scope="module")
def reranker() -> ListwiseReranker:
    return ListwiseReranker.from_pretrained(str(PARITY / "checkpoint"), device="cpu")


@pytest.fixture
def postprocessor(reranker: ListwiseReranker) -> ZipRerankPostprocessor:
    return ZipRerankPostprocessor.from_reranker(reranker, top_n=3)


@pytest.fixture
def nodes(files: list[Path]) -> list[NodeWithScore]:
    return [NodeWithScore(node=ImageNode(id_=path.stem, image_path=str(path)), score=1.0) for path in files[:2]]


@pytest.fixture(scope="module")
def index(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ColPaliIndex]:
    model = str(colqwen3(tmp_path_factory.mktemp("model")))
    documents = [ImageDocument(id_=path.stem, image_path=str(path), text=path.stem) for path in files]
    with ColPaliIndex.from_documents(documents, model, device="cpu") as built:
        yield built


def answer(nodes: list[NodeWithScore]) -> Answer:
    return [(node.node.node_id, node.get_score()) for node in nodes]


def assert_alike(found: list[Answer], serial: list[Answer]) -> None:
    assert [[name for name, _ in one] for one in found] == [[name for name, _ in one] for one in serial]
    for one, other in zip(found, serial, strict=True):
        assert [score for _, score in one] == pytest.approx([score for _, score in other], abs=1e-4)


def reranked(postprocessor: ZipRerankPostprocessor, nodes: list[NodeWithScore], questions: list[str]) -> list[Answer]:
    """The answers one after the other."""
    return [answer(postprocessor.postprocess_nodes(nodes, query_str=question)) for question in questions]


@contextmanager
def little_memory(module: torch.nn.Module, fits: Callable[[Any], bool]) -> Iterator[list[int]]:
    """Let a part of the model run out of memory when its input does not fit; yields how often it did."""
    refused = [0]

    def check(_: torch.nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not fits(named.get("inputs_embeds", positional[0] if positional else None)):
            refused[0] += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    hook = module.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield refused
    finally:
        hook.remove()


def engine(index: ColPaliIndex, postprocessor: ZipRerankPostprocessor) -> RetrieverQueryEngine:
    """One that writes no text: LlamaIndex's making of prompts would take most of the time."""
    return RetrieverQueryEngine(index.as_retriever(2), NoText(MockLLM()), [postprocessor])


async def test_sixty_four_concurrent_queries_get_the_serial_answers(
    index: ColPaliIndex, postprocessor: ZipRerankPostprocessor
) -> None:
    asked = engine(index, postprocessor)
    serial = [answer(asked.query(question).source_nodes) for question in QUESTIONS]
    together = await asyncio.wait_for(asyncio.gather(*(asked.aquery(question) for question in QUESTIONS)), SECONDS)
    assert_alike([answer(response.source_nodes) for response in together], serial)


def test_sixteen_threads_get_the_serial_answers(
    postprocessor: ZipRerankPostprocessor, nodes: list[NodeWithScore]
) -> None:
    questions = QUESTIONS[:20]
    serial = reranked(postprocessor, nodes, questions)
    with ThreadPoolExecutor(16) as threads:
        calls = [threads.submit(postprocessor.postprocess_nodes, nodes, query_str=question) for question in questions]
        assert_alike([answer(call.result(SECONDS)) for call in calls], serial)


async def test_cancelled_and_late_calls_disturb_no_other(
    postprocessor: ZipRerankPostprocessor, nodes: list[NodeWithScore]
) -> None:
    questions = QUESTIONS[:12]
    serial = reranked(postprocessor, nodes, questions)
    calls = [asyncio.create_task(postprocessor.apostprocess_nodes(nodes, query_str=one)) for one in questions]
    await asyncio.sleep(0.05)
    for call in calls[::3]:
        call.cancel()
    late = [asyncio.wait_for(postprocessor.apostprocess_nodes(nodes, query_str=one), 1e-3) for one in questions[:4]]
    outcomes = await asyncio.gather(*late, return_exceptions=True)
    assert all(isinstance(outcome, TimeoutError | asyncio.TimeoutError) for outcome in outcomes)
    finished = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), SECONDS)
    kept = [number for number in range(len(questions)) if number % 3]
    assert_alike([answer(finished[number]) for number in kept], [serial[number] for number in kept])
    assert all(isinstance(one, asyncio.CancelledError) or answer(one) for one in finished[::3])
    assert_alike([answer(await postprocessor.apostprocess_nodes(nodes, query_str=questions[0]))], serial[:1])


async def test_a_call_that_fails_fails_alone(postprocessor: ZipRerankPostprocessor, nodes: list[NodeWithScore]) -> None:
    [serial] = reranked(postprocessor, nodes, QUESTIONS[:1])
    bad = [NodeWithScore(node=ImageNode(id_="bad", image_path="/no/such/page.png"))]
    calls = [
        postprocessor.apostprocess_nodes(bad if number % 2 else nodes, query_str=QUESTIONS[0]) for number in range(8)
    ]
    outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), SECONDS)
    assert all(isinstance(outcome, ValueError) and "'bad'" in str(outcome) for outcome in outcomes[1::2])
    assert_alike([answer(outcome) for outcome in outcomes[::2]], [serial] * 4)


def _tokens_of_one(reranker: ListwiseReranker, nodes: list[NodeWithScore]) -> int:
    images = [Image.open(node.node.image_path).convert("RGB") for node in nodes]  # type: ignore[attr-defined]
    return reranker.rerank(QUESTIONS[0], images).sequence_length


async def test_with_room_for_one_call_at_a_time_many_get_the_serial_answers(
    postprocessor: ZipRerankPostprocessor, reranker: ListwiseReranker, nodes: list[NodeWithScore]
) -> None:
    questions = QUESTIONS[:8]
    serial = reranked(postprocessor, nodes, questions)
    most = _tokens_of_one(reranker, nodes) + 20  # the questions differ a little in length
    language_model = reranker.model.model.language_model
    with little_memory(language_model, lambda embedded: embedded.shape[0] * embedded.shape[1] <= most):
        calls = (postprocessor.apostprocess_nodes(nodes, query_str=question) for question in questions)
        together = await asyncio.wait_for(asyncio.gather(*calls), SECONDS)
    assert_alike([answer(one) for one in together], serial)


@pytest.mark.parametrize("part", ["language model", "vision tower"])
async def test_with_room_for_none_each_call_gets_one_clear_error_and_the_next_is_served(
    files: list[Path], nodes: list[NodeWithScore], reranker: ListwiseReranker, part: str
) -> None:
    postprocessor = ZipRerankPostprocessor(model=str(PARITY / "checkpoint"), device="cpu", cache_memory_bytes=0)
    serial = reranked(postprocessor, nodes, QUESTIONS[:1])
    model = postprocessor._seat.reranker(postprocessor._load).model.model
    with little_memory(model.language_model if part == "language model" else model.visual, lambda _: False) as refused:
        calls = (postprocessor.apostprocess_nodes(nodes, query_str=question) for question in QUESTIONS[:4])
        outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), SECONDS)
        assert refused[0]
    for outcome in outcomes:
        assert isinstance(outcome, RerankMemoryError), outcome
        assert "Lower" in str(outcome) and "Tried to allocate" in str(outcome)
        assert outcome.__context__ is None or not isinstance(outcome.__context__, torch.OutOfMemoryError)
    assert_alike(reranked(postprocessor, nodes, QUESTIONS[:1]), serial)


def test_indexing_with_room_for_one_page_at_a_time_gives_the_same_index(index: ColPaliIndex, files: list[Path]) -> None:
    encoder = index.encoder
    images = [Image.open(path).convert("RGB") for path in files]
    plain = encoder.encode_images(images, batch_size=6)
    alone: list[int] = []
    visual = encoder.model.visual
    with little_memory(visual, lambda patches: alone.append(len(patches)) or True):  # type: ignore[func-returns-value]
        encoder.encode_images(images[:1])
    with little_memory(visual, lambda patches: len(patches) <= max(alone)) as refused:
        small = encoder.encode_images(images, batch_size=6)
    assert refused[0]
    for one, other in zip(plain, small, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    with little_memory(visual, lambda _: False), pytest.raises(torch.OutOfMemoryError, match="One page of 128x96"):
        encoder.encode_images(images)
    assert encoder.encode_images(images[:1])[0] == pytest.approx(plain[0], abs=1e-4)


@pytest.mark.slow
def test_the_memory_of_sixty_four_calls_is_that_of_a_few(tmp_path: Path) -> None:
    script = Path(__file__).with_name("memory_round.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    grown = json.loads(done.stdout)
    print(grown)
    assert grown["megabytes of pages"] > 2900
    assert grown["megabytes grown"] < 1000
