"""Reranking in an engine that you have already: two lines, marked below.

    python examples/existing_engine.py

The engine is LlamaIndex's own vector index over page nodes. MockEmbedding and MockLLM stand for your models, so that
this runs offline; a mock embedding finds nothing, which shows what the reranker does alone.
"""

from itertools import islice
from pathlib import Path

from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.llms import MockLLM

from llama_index_ziprerank import PDFPageReader, ZipRerankPostprocessor  # line one: this import
from llama_index_ziprerank.nodes import document_to_page_node, node_title

MANUAL = Path(__file__).parent.parent / "demo" / "gle-manual-chapters-4-9.pdf"


def main() -> None:
    """Ask six pages and print them in their new order."""
    pages = islice(PDFPageReader().lazy_load_data(MANUAL), 6)
    index = VectorStoreIndex([document_to_page_node(page) for page in pages], embed_model=MockEmbedding(8))
    engine = index.as_query_engine(
        llm=MockLLM(max_tokens=8),
        similarity_top_k=6,
        node_postprocessors=[ZipRerankPostprocessor(model="nano", top_n=3)],  # line two
    )
    for found in engine.query("How are error bars drawn?").source_nodes:
        before = found.metadata["first_stage_rank"]
        print(f"{found.score:.3f}  {node_title(found.node)}, before: rank {before}")


if __name__ == "__main__":
    main()
