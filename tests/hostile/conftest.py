"""The models of the hostile queries: the tiny reranker of the parity data, and one retriever of every family."""

from pathlib import Path

import pytest

from llama_index_ziprerank.reranking import ListwiseReranker

CHECKPOINT = Path(__file__).parents[1] / "data" / "parity" / "checkpoint"


@pytest.fixture(scope="session")
def reranker() -> ListwiseReranker:
    """The tiny random checkpoint of the parity data."""
    return ListwiseReranker.from_pretrained(str(CHECKPOINT), device="cpu")
