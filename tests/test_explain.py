import json
from pathlib import Path

import pytest
from llama_index.core.schema import BaseNode, ImageNode, NodeWithScore, QueryBundle, TextNode
from tiny_manual import tiny_manual
from tiny_retriever import PARITY, colqwen3

from llama_index_ziprerank import ColPaliIndex, PDFPageReader, ZipRerankPostprocessor
from llama_index_ziprerank.nodes import node_title
from llama_index_ziprerank.report import write_report
from llama_index_ziprerank.reranking import ListwiseReranker

QUERY = "Bar graphs"
PAGES = PARITY.parent / "pages"


@pytest.fixture(scope="module")
def reranker() -> ListwiseReranker:
    return ListwiseReranker.from_pretrained(str(PARITY), device="cpu")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ColPaliIndex:
    folder = tmp_path_factory.mktemp("explain")
    documents = PDFPageReader(dpi=100).load_data(tiny_manual(folder / "manual.pdf"))
    model = str(colqwen3(folder / "retriever"))
    return ColPaliIndex.from_documents(documents, model=model, persist_dir=folder / "index")


@pytest.mark.parametrize(
    "fields", [{}, {"keep_ratio": 0.5, "pruning": "query"}, {"window": 4, "stride": 2}, {"first_stage_weight": 2}]
)
def test_an_explanation_orders_the_nodes_as_the_postprocessor_does(
    reranker: ListwiseReranker, index: ColPaliIndex, fields: dict[str, object]
) -> None:
    postprocessor = ZipRerankPostprocessor.from_reranker(reranker, top_n=4, **fields)
    nodes = index.as_retriever(20).retrieve(QUERY)
    reranked = postprocessor.postprocess_nodes(nodes, query_str=QUERY)
    explanation = postprocessor.explain(QUERY, nodes)

    assert len(explanation.pages) == len(nodes)
    assert [page.title for page in explanation.best] == [node_title(node.node) for node in reranked]
    assert [page.rank_before for page in explanation.best] == [n.node.metadata["first_stage_rank"] for n in reranked]
    assert [page.probability for page in explanation.best] == pytest.approx([node.score for node in reranked])


@pytest.mark.parametrize("given", ["index", "retriever"])
def test_an_index_or_a_retriever_adds_what_the_first_stage_saw(
    reranker: ListwiseReranker, index: ColPaliIndex, given: str
) -> None:
    retriever = index.as_retriever(5)
    postprocessor = ZipRerankPostprocessor.from_reranker(reranker, top_n=2)
    explanation = postprocessor.explain(
        QueryBundle(f" {QUERY}\n"), retriever.retrieve(QUERY), index if given == "index" else retriever
    )

    assert [page.first_stage is not None for page in explanation.pages] == [True, True, False, False, False]
    assert explanation.query == QUERY


def test_the_callers_nodes_stay_as_they_were(reranker: ListwiseReranker, index: ColPaliIndex) -> None:
    nodes = index.as_retriever(3).retrieve(QUERY)
    before = [json.dumps(node.to_dict(), sort_keys=True) for node in nodes]
    ZipRerankPostprocessor.from_reranker(reranker).explain(QUERY, nodes, index)

    assert [json.dumps(node.to_dict(), sort_keys=True) for node in nodes] == before


def test_pages_and_text_are_explained_and_reported_alike(reranker: ListwiseReranker, tmp_path: Path) -> None:
    nodes = [ImageNode(image_path=str(PAGES / "small-012.png")), TextNode(id_="a-note", text="Bars and lines")]
    scored = [NodeWithScore(node=node) for node in nodes]
    explanation = ZipRerankPostprocessor.from_reranker(reranker).explain(QUERY, scored)
    write_report(explanation, tmp_path / "report.html")

    assert "a-note" in (tmp_path / "report.html").read_text()
    assert explanation.draw().width > 0


@pytest.mark.parametrize(
    ("query", "nodes", "sentence"),
    [
        (" ", [TextNode(text="text")], "got a blank one"),
        (QUERY, [], "no page to rank"),
        (QUERY, [TextNode(id_="the-bad-page", text="")], "the-bad-page"),
    ],
)
def test_what_cannot_be_explained_is_refused(
    reranker: ListwiseReranker, query: str, nodes: list[BaseNode], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        ZipRerankPostprocessor.from_reranker(reranker).explain(query, [NodeWithScore(node=node) for node in nodes])


@pytest.mark.parametrize(
    ("metadata", "title"),
    [
        ({"page_label": "iv", "page_number": 4, "file_name": "a.pdf"}, "page iv (PDF 4) · a.pdf"),
        ({"page_label": "4", "page_number": 4, "file_name": "a.pdf"}, "page 4 · a.pdf"),
        ({"page_label": "4", "file_name": "a.pdf"}, "page 4 · a.pdf"),
        ({"file_name": "a.pdf"}, "a.pdf"),
        ({}, "the-node"),
    ],
)
def test_a_title_says_label_place_and_file(metadata: dict[str, object], title: str) -> None:
    assert node_title(TextNode(id_="the-node", text="text", metadata=metadata)) == title
