"""Small PDFs, their pages, and all that an index says of them."""

from pathlib import Path

import numpy as np
from llama_index.core.schema import Document
from PIL import Image

from llama_index_ziprerank.indices import ColPaliIndex
from llama_index_ziprerank.nodes import node_image
from llama_index_ziprerank.readers import PDFPageReader

QUESTION = "How is the toner changed?"


def draw(seed: int, width: int = 96, height: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def write_pdf(path: Path, *seeds: int) -> Path:
    first, *rest = [draw(seed) for seed in seeds]
    first.save(path, save_all=True, append_images=rest)
    return path


def read_pages(*paths: Path) -> list[Document]:
    return [document for path in paths for document in PDFPageReader(dpi=72).load_data(path)]


def answers(index: ColPaliIndex) -> list[tuple[str, float, str, dict[str, object]]]:
    """Everything that a question brings back, but for where the index lies."""
    found = index.as_retriever(similarity_top_k=50).retrieve(QUESTION)
    for node in found:
        assert node_image(node.node) is not None
    return [(n.node.node_id, round(n.score, 4), n.node.ref_doc_id, n.node.metadata) for n in found]


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
