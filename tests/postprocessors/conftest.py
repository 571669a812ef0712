"""A small reranker behind a postprocessor, and the nodes of a few pages."""

import pytest
from llama_index.core.schema import NodeWithScore
from reranked_pages import load_reranker, page_nodes

from llama_index_ziprerank.postprocessors import ZipRerankPostprocessor
from llama_index_ziprerank.reranking import ListwiseReranker


@pytest.fixture(scope="session")
def reranker() -> ListwiseReranker:
    return load_reranker()


@pytest.fixture
def postprocessor(reranker: ListwiseReranker) -> ZipRerankPostprocessor:
    return ZipRerankPostprocessor.from_reranker(reranker, top_n=3)


@pytest.fixture
def nodes() -> list[NodeWithScore]:
    return page_nodes()
