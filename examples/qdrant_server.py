"""Page vectors on a Qdrant server; without an address in Qdrant's memory, so that it runs anywhere.

    python examples/qdrant_server.py http://localhost:6333
    python examples/qdrant_server.py

A key is read from QDRANT_API_KEY. The page images stay in a folder of yours, `persist_dir`; the vectors go to the
server.
"""

import os
import sys
import warnings
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from qdrant_client import QdrantClient

from llama_index_ziprerank import ColPaliIndex, PDFPageReader, ZipRerankPostprocessor
from llama_index_ziprerank.nodes import node_title
from llama_index_ziprerank.retrieval.qdrant import QdrantStore

MANUAL = Path(__file__).parent.parent / "demo" / "gle-manual-chapters-4-9.pdf"
QUESTION = "How are error bars drawn?"


def open_store(url: str | None) -> QdrantStore:
    """Connect to a server, or make a store that lives as long as this program."""
    if url is None:
        warnings.filterwarnings("ignore", message="Local mode performs exact")  # so does our search on a server
        return QdrantStore(client=QdrantClient(":memory:"), collection="manuals")
    return QdrantStore(url=url, collection="manuals", api_key=os.environ.get("QDRANT_API_KEY"))


def main(url: str | None = None) -> None:
    """Index six pages, find three, rerank them."""
    pages = list(islice(PDFPageReader().lazy_load_data(MANUAL), 6))
    reranker = ZipRerankPostprocessor(model="nano", top_n=3)
    with (
        TemporaryDirectory() as folder,
        ColPaliIndex.from_documents(pages, persist_dir=Path(folder) / "index", store=open_store(url)) as index,
    ):
        found = index.as_retriever(similarity_top_k=6).retrieve(QUESTION)
        for node in reranker.postprocess_nodes(found, query_str=QUESTION):
            print(f"{node.score:.3f}  {node_title(node.node)}, before: rank {node.metadata['first_stage_rank']}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
