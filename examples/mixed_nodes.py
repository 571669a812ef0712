"""Text nodes and page images in one list: the reranker draws the text, as in its training, and ranks all together.

python examples/mixed_nodes.py
"""

from itertools import islice
from pathlib import Path

from llama_index.core.schema import ImageNode, NodeWithScore, TextNode

from llama_index_ziprerank import PDFPageReader, ZipRerankPostprocessor
from llama_index_ziprerank.nodes import document_to_page_node

MANUAL = Path(__file__).parent.parent / "demo" / "gle-manual-chapters-4-9.pdf"
NOTES = (
    "Release notes: error bars may now be given as a percentage of the y value.",
    "Our printers are in room 12. Toner is in the cupboard behind the door.",
)


def main() -> None:
    """Rank three pages and two texts."""
    pages = [document_to_page_node(page) for page in islice(PDFPageReader().lazy_load_data(MANUAL), 3)]
    nodes = [NodeWithScore(node=node) for node in [*pages, *(TextNode(text=note) for note in NOTES)]]
    reranker = ZipRerankPostprocessor(model="nano", top_n=5)
    for found in reranker.postprocess_nodes(nodes, query_str="How are error bars drawn?"):
        is_page = isinstance(found.node, ImageNode)
        name = f"page {found.metadata['page_label']}" if is_page else found.node.get_content()
        print(f"{found.score:.3f}  {'picture' if is_page else 'text':<8} {name:.70}")


if __name__ == "__main__":
    main()
