"""A served reranker answers as the one in this process, and refuses what it cannot read."""

import base64
import json
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from llama_index.core.schema import ImageNode, NodeWithScore, TextNode
from llama_index.core.storage.docstore.utils import doc_to_json, json_to_doc
from PIL import Image
from ray import serve
from tiny_retriever import PARITY

from llama_index_ziprerank import ZipRerankPostprocessor
from llama_index_ziprerank.pages.images import encode_png
from llama_index_ziprerank.scaling.serve import ServedReranker, reranker_app

FIELDS: dict[str, Any] = {"model": str(PARITY), "device": "cpu", "top_n": 2, "first_stage_weight": 0.5}
QUERY = "Which page is blue?"


@pytest.fixture(scope="module")
def served(port: int) -> Iterator[ServedReranker]:
    serve.run(reranker_app(**FIELDS), name="rerank", route_prefix="/rerank")
    yield ServedReranker(app="rerank")
    serve.delete("rerank")


@pytest.fixture
def nodes() -> list[NodeWithScore]:
    pages = [ImageNode(id_=colour, image=_png(colour)) for colour in ("red", "blue")]
    return [NodeWithScore(node=node, score=i / 4) for i, node in enumerate([*pages, TextNode(id_="text", text="Blue")])]


def _png(colour: str) -> str:
    return base64.b64encode(encode_png(Image.new("RGB", (64, 96), colour))).decode()


def _seen(nodes: list[NodeWithScore]) -> dict[str, float | None]:
    return {node.node.node_id: pytest.approx(node.score, abs=1e-5) for node in nodes}  # type: ignore[misc]


async def test_the_served_reranker_answers_as_one_in_this_process(
    served: ServedReranker, nodes: list[NodeWithScore]
) -> None:
    expected = ZipRerankPostprocessor(**FIELDS).postprocess_nodes(nodes, query_str=QUERY)
    for ranked in (
        served.postprocess_nodes(nodes, query_str=QUERY),  # in a running event loop, as in a notebook
        await served.apostprocess_nodes(nodes, query_str=QUERY),
    ):
        assert _seen(ranked) == _seen(expected)
        assert [node.node.node_id for node in ranked] == [node.node.node_id for node in expected]
        assert ranked[0].node.metadata.keys() == expected[0].node.metadata.keys()


def test_errors_are_those_of_the_postprocessor(served: ServedReranker, nodes: list[NodeWithScore]) -> None:
    with pytest.raises(ValueError, match="ranks nodes by a query"):
        served.postprocess_nodes(nodes)
    nodes[0].node = ImageNode(image="AAAA")
    with pytest.raises(ValueError, match="^Image of node .*: 3 bytes: not an image"):
        served.postprocess_nodes(nodes, query_str=QUERY)


def _post(port: int, body: Any) -> tuple[int, Any]:
    request = Request(f"http://127.0.0.1:{port}/rerank", json.dumps(body).encode())
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


def test_nodes_go_over_http(port: int, served: ServedReranker, nodes: list[NodeWithScore]) -> None:
    status, answer = _post(
        port, {"query": QUERY, "nodes": [{"node": doc_to_json(node.node), "score": node.score} for node in nodes]}
    )
    assert status == 200, answer
    ranked = [NodeWithScore(node=json_to_doc(sent["node"]), score=sent["score"]) for sent in answer["nodes"]]
    assert _seen(ranked) == _seen(served.postprocess_nodes(nodes, query_str=QUERY))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"nodes": []}, "query"),
        ({"query": QUERY, "nodes": [{"score": 1}]}, "node"),
        ({"query": QUERY, "nodes": 3}, "list"),
        ({"query": 3, "nodes": []}, "query"),
        ({"query": QUERY, "nodes": [{"node": {}}]}, "A node lacks"),
        ([], "_Request"),
        ("x", "_Request"),
    ],
    ids=str,
)
def test_what_is_no_request_is_refused(port: int, served: ServedReranker, body: Any, reason: str) -> None:
    status, answer = _post(port, body)
    assert status == 400
    assert reason in answer["error"]


def test_a_field_that_the_postprocessor_has_not_is_refused_before_anything_is_deployed() -> None:
    with pytest.raises(ValueError, match="keep_ration"):
        reranker_app(keep_ration=0.5)
