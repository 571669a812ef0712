"""Measure a retriever, and what reranking adds, on questions of your own.

    pip install 'llama-index-ziprerank[evaluation]'
    python examples/evaluate_engine.py

A question goes with the pages that answer it: `FILE:pN`, N the place in the file from 1. With two questions the
intervals are as wide as they can be; take fifty. `RetrievalDataset.from_manual("manual.pdf")` makes questions of a
PDF's own outline, index and captions.
"""

from itertools import islice
from pathlib import Path

from llama_index_ziprerank import ColPaliIndex, PDFPageReader, ZipRerankPostprocessor
from llama_index_ziprerank.evaluators import PageRetrievalEvaluator, RetrievalDataset, page_key

MANUAL = Path(__file__).parent.parent / "demo" / "gle-manual-chapters-4-9.pdf"
DATASET = RetrievalDataset.from_pairs(
    [
        ("How are error bars drawn?", [f"{MANUAL.name}:p4", f"{MANUAL.name}:p5"]),
        ("comments in a data file", [f"{MANUAL.name}:p3"]),
    ]
)


def main() -> None:
    """Ask six pages the questions and print the table."""
    with ColPaliIndex.from_documents(islice(PDFPageReader().lazy_load_data(MANUAL), 6)) as index:
        reranker = ZipRerankPostprocessor(model="nano", top_n=6)  # top_n: as deep as the metrics
        evaluator = PageRetrievalEvaluator(index.as_retriever(6), [reranker], key=page_key)
        print(evaluator.evaluate(DATASET))


if __name__ == "__main__":
    main()
