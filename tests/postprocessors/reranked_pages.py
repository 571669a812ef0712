"""Pages to rerank and a tiny reranker, for the tests of the postprocessor."""

from pathlib import Path

import pytest
from llama_index.core.schema import ImageNode, NodeWithScore

from llama_index_ziprerank.reranking import ListwiseReranker

PARITY = Path(__file__).parents[1] / "data" / "parity"
PAGES = [PARITY / "pages" / f"small-{i:03d}.png" for i in range(12, 20)]
QUERY = "set the line width of an axis"


def load_reranker() -> ListwiseReranker:
    return ListwiseReranker.from_pretrained(str(PARITY / "checkpoint"), device="cpu")


def page_nodes() -> list[NodeWithScore]:
    return [
        NodeWithScore(node=ImageNode(id_=path.stem, image_path=str(path), text=f"page {i}"), score=1 - i / 10)
        for i, path in enumerate(PAGES)
    ]


def ids(nodes: list[NodeWithScore]) -> list[str]:
    return [node.node.node_id for node in nodes]


def assert_alike(answer: list[NodeWithScore], expected: list[NodeWithScore]) -> None:
    """The same nodes in the same order; calls that run together round differently in the seventh digit."""
    assert ids(answer) == ids(expected)
    assert [node.score for node in answer] == pytest.approx([node.score for node in expected], abs=1e-5)
    for ours, theirs in zip(answer, expected, strict=True):
        logits = [each.node.metadata["ziprerank_logit"] for each in (ours, theirs)]
        assert logits[0] == pytest.approx(logits[1], abs=1e-5)
