"""The retriever gives the pages of an exact search as nodes, sync and async, and translates LlamaIndex's filters."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.schema import (
    Document,
    ImageDocument,
    ImageNode,
    MetadataMode,
    NodeRelationship,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from PIL import Image
from tiny_retriever import colqwen3

from llama_index_ziprerank.indices import ColPaliIndex
from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder
from llama_index_ziprerank.retrieval.store import StoredPage
from llama_index_ziprerank.retrievers import ColPaliRetriever

PAGES = 12


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> MultiVectorEncoder:
    return MultiVectorEncoder.from_pretrained(str(colqwen3(tmp_path_factory.mktemp("model"))), device="cpu")


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (64, 96, 3), dtype=np.uint8)) for _ in range(PAGES)]


@pytest.fixture(scope="module")
def index(
    encoder: MultiVectorEncoder, images: list[Image.Image], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ColPaliIndex]:
    folder = tmp_path_factory.mktemp("images")
    documents = []
    for number, image in enumerate(images):
        image.save(folder / f"{number}.png")
        metadata: dict[str, Any] = {
            "page_number": number,
            "file_name": "ab"[number % 2],
            "tags": [number, f"t{number}"],
        }
        if number < 3:
            metadata["early"] = "yes"
        documents.append(
            ImageDocument(
                id_=str(number), text=f"page {number}", image_path=str(folder / f"{number}.png"), metadata=metadata
            )
        )
    with ColPaliIndex.from_documents(documents, encoder) as index:
        yield index


def _ids(retriever: ColPaliRetriever, question: str = "toner") -> list[str]:
    return [found.node.node_id for found in retriever.retrieve(question)]


def test_pages_come_by_maxsim_with_image_text_and_metadata(
    index: ColPaliIndex, encoder: MultiVectorEncoder, images: list[Image.Image]
) -> None:
    query = encoder.encode_queries(["toner"])[0]
    scores = [float((query @ page.T).max(axis=1).sum()) for page in encoder.encode_images(images)]
    found = index.as_retriever(similarity_top_k=5).retrieve("toner")
    order = sorted(range(PAGES), key=lambda page: -scores[page])[:5]
    assert [node.node.node_id for node in found] == [str(page) for page in order]
    assert [node.score for node in found] == pytest.approx([scores[page] for page in order], rel=1e-4)
    for node, page in zip(found, order, strict=True):
        assert isinstance(node.node, ImageNode)
        assert np.array_equal(np.asarray(Image.open(node.node.image_path)), np.asarray(images[page]))
        assert node.node.text == f"page {page}"
        assert node.node.metadata["page_number"] == page
        assert node.node.ref_doc_id == str(page)


def test_what_a_query_transformation_gives_to_be_embedded_is_searched_for(index: ColPaliIndex) -> None:
    retriever = index.as_retriever(similarity_top_k=PAGES)
    asked = [
        {found.node.node_id: found.get_score() for found in retriever.retrieve(text)} for text in ("toner", "drum unit")
    ]
    found = retriever.retrieve(QueryBundle("jam", custom_embedding_strs=["toner", " ", "drum unit"]))
    assert {one.node.node_id: one.get_score() for one in found} == pytest.approx(
        {page: asked[0][page] + asked[1][page] for page in asked[0]}, rel=1e-4
    )


def test_spaces_around_a_question_mean_nothing(index: ColPaliIndex) -> None:
    retriever = index.as_retriever()
    assert retriever.retrieve("\n toner ") == retriever.retrieve("toner")


@pytest.mark.parametrize("question", ["", " \n"])
def test_a_question_without_text_is_refused(index: ColPaliIndex, question: str) -> None:
    with pytest.raises(ValueError, match="A question must contain text"):
        index.as_retriever().retrieve(QueryBundle(question))


def test_a_top_k_below_one_is_refused(index: ColPaliIndex) -> None:
    with pytest.raises(ValueError, match="similarity_top_k must be at least 1, got 0"):
        index.as_retriever(similarity_top_k=0)


async def test_sixteen_concurrent_questions_give_the_serial_answers(index: ColPaliIndex) -> None:
    retriever = index.as_retriever(similarity_top_k=4)
    questions = [f"question {number}" for number in range(16)]
    serial = [retriever.retrieve(question) for question in questions]
    assert await asyncio.gather(*(retriever.aretrieve(question) for question in questions)) == serial


async def test_an_asynchronous_question_does_not_hold_up_the_loop(
    index: ColPaliIndex, encoder: MultiVectorEncoder
) -> None:
    started = threading.Event()

    def slow(*_: Any) -> None:
        started.set()
        time.sleep(0.5)

    hook = encoder.model.register_forward_pre_hook(slow)
    try:
        running = asyncio.create_task(index.as_retriever().aretrieve("toner"))
        ticks = 0
        while not running.done():
            await asyncio.sleep(0.01)
            ticks += started.is_set()
        assert len(await running) == PAGES
        assert ticks > 10
    finally:
        hook.remove()


def test_retrieval_reports_to_the_callback_manager(index: ColPaliIndex) -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    ColPaliRetriever(index, 3, callback_manager=CallbackManager([handler])).retrieve("toner")
    (pair,) = handler.get_event_pairs(CBEventType.RETRIEVE)
    assert len(pair[1].payload["nodes"]) == 3


def _filter(key: str, operator: FilterOperator, value: Any) -> MetadataFilter:
    return MetadataFilter(key=key, operator=operator, value=value)


F = FilterOperator
ALL = set(range(PAGES))


@pytest.mark.parametrize(
    ("part", "pages"),
    [
        (_filter("file_name", F.EQ, "a"), {0, 2, 4, 6, 8, 10}),
        (_filter("file_name", F.NE, "a"), {1, 3, 5, 7, 9, 11}),
        (_filter("page_number", F.EQ, 3), {3}),
        (_filter("page_number", F.EQ, 3.0), {3}),
        (_filter("page_number", F.GT, 9), {10, 11}),
        (_filter("page_number", F.GTE, 9), {9, 10, 11}),
        (_filter("page_number", F.LT, 1), {0}),
        (_filter("page_number", F.LTE, 1.0), {0, 1}),
        (_filter("page_number", F.IN, [1, 5, 99]), {1, 5}),
        (_filter("page_number", F.NIN, [1, 5]), ALL - {1, 5}),
        (_filter("tags", F.CONTAINS, "t4"), {4}),
        (_filter("tags", F.CONTAINS, 4), {4}),
        (_filter("tags", F.ANY, ["t4", "t5"]), {4, 5}),
        (_filter("tags", F.ALL, ["t4", "t5"]), set()),
        (_filter("early", F.IS_EMPTY, None), ALL - {0, 1, 2}),
        (_filter("early", F.NE, "yes"), ALL - {0, 1, 2}),
        (_filter("unknown", F.EQ, "a"), set()),
    ],
)
def test_every_operator_passes_exactly_its_pages(index: ColPaliIndex, part: MetadataFilter, pages: set[int]) -> None:
    filters = MetadataFilters(filters=[part])
    assert set(_ids(index.as_retriever(filters=filters))) == {str(page) for page in pages}


@pytest.mark.parametrize(
    ("condition", "pages"),
    [
        (FilterCondition.AND, {2, 4}),
        (FilterCondition.OR, {0, 1, 2, 3, 4, 6, 8, 10}),
        (FilterCondition.NOT, {5, 7, 9, 11}),
    ],
)
def test_conditions_combine_and_nest(index: ColPaliIndex, condition: FilterCondition, pages: set[int]) -> None:
    inner = MetadataFilters(filters=[_filter("page_number", F.GTE, 1), _filter("page_number", F.LTE, 4)])
    filters = MetadataFilters(filters=[_filter("file_name", F.EQ, "a"), inner], condition=condition)
    assert set(_ids(index.as_retriever(filters=filters))) == {str(page) for page in pages}


@pytest.mark.parametrize("condition", list(FilterCondition))
def test_no_filter_passes_every_page_whatever_its_condition(index: ColPaliIndex, condition: FilterCondition) -> None:
    nothing = MetadataFilters(filters=[], condition=condition)
    assert len(_ids(index.as_retriever(filters=nothing))) == PAGES
    also = MetadataFilters(filters=[_filter("page_number", F.LT, 2), nothing])
    assert set(_ids(index.as_retriever(filters=also))) == {"0", "1"}


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (_filter("text", F.TEXT_MATCH, "a"), "'text' text_match is not supported"),
        (_filter("page_number", F.GT, "3"), "'page_number' > needs a number, got '3'"),
        (_filter("page_number", F.LT, float("nan")), "'page_number' < needs a number, got nan"),
        (_filter("page_number", F.EQ, [3]), "'page_number' == needs one string or number"),
        (_filter("page_number", F.IN, 3), "'page_number' in needs a list, got 3"),
        (_filter("page_number", F.GT, 2**53), "got the bound 9007199254740992"),
        (_filter("page_number", F.EQ, 2**64), "integers of 64 bits"),
        (_filter("page\\number", F.EQ, 3), "cannot contain a backslash, got 'page"),
        (_filter('page"number', F.IS_EMPTY, None), "cannot contain a double quote"),
    ],
)
def test_a_filter_that_cannot_be_expressed_is_refused_at_once(
    index: ColPaliIndex, part: MetadataFilter, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        index.as_retriever(filters=MetadataFilters(filters=[part]))


def test_the_found_nodes_are_the_callers_own(index: ColPaliIndex) -> None:
    retriever = index.as_retriever(similarity_top_k=1)
    first = retriever.retrieve("toner")[0]
    before = first.model_copy(deep=True)
    first.node.metadata["note"] = "mine"
    assert retriever.retrieve("toner")[0] == before
    assert Path(before.node.image_path).parent == index.image_dir


# Copies: the same page under several paths, told apart by metadata.

_A = {"file_path": "a.pdf", "tenant": "A", "tag": "x", "size": 1}
_B = {"file_path": "b.pdf", "tenant": "B", "tag": "y", "note": "b's own"}


@pytest.fixture(scope="module", params=[2, 1], ids=["format 2", "format 1"])
def shared(request: pytest.FixtureRequest, encoder: MultiVectorEncoder) -> Iterator[ColPaliIndex]:
    """Three pages of both tenants, and one of A alone, which may be of an index of the first format."""
    names = [*"123", "alone"]
    with ColPaliIndex.from_documents(
        [Document(id_=name, text=f"page {name}", metadata=dict(_A)) for name in names], encoder
    ) as index:
        later = RelatedNodeInfo(node_id="next", metadata=dict(_B))
        for name in "123":
            document = Document(id_=name, text=f"page {name}", metadata=dict(_B))
            document.relationships[NodeRelationship.NEXT] = later
            index.insert(document)
        if request.param == 1:
            for page in index.store.fetch(["alone"]):
                payload = {key: value for key, value in page.payload.items() if key != "copies"}
                index.store.update([StoredPage(page.id, page.document_id, payload)])
        yield index


@pytest.mark.parametrize(
    ("parts", "condition", "shown"),
    [
        ([_filter("tenant", F.EQ, "A")], FilterCondition.AND, _A),
        ([_filter("tenant", F.EQ, "B")], FilterCondition.AND, _B),
        ([_filter("tenant", F.NE, "B")], FilterCondition.AND, _A),
        ([_filter("tenant", F.NIN, ["A", "C"])], FilterCondition.AND, _B),
        ([_filter("tenant", F.EQ, "A"), _filter("tag", F.EQ, "y")], FilterCondition.AND, None),
        ([_filter("tenant", F.EQ, "A"), _filter("tag", F.EQ, "x")], FilterCondition.AND, _A),
        ([_filter("tenant", F.EQ, "C"), _filter("size", F.GTE, 1)], FilterCondition.OR, _A),
        ([_filter("tenant", F.EQ, "B")], FilterCondition.NOT, _A),
        ([_filter("size", F.IS_EMPTY, None)], FilterCondition.AND, _B),
        ([_filter("tenant", F.ALL, ["A", "B"])], FilterCondition.AND, None),
    ],
)
def test_a_page_of_several_copies_is_shown_as_a_copy_that_passes_the_whole_filter(
    shared: ColPaliIndex, parts: list[MetadataFilter], condition: FilterCondition, shown: dict[str, Any] | None
) -> None:
    filters = MetadataFilters(filters=parts, condition=condition)
    found = shared.as_retriever(filters=filters).retrieve("toner")
    names = set() if shown is None else {*"123", *(["alone"] if shown is _A else [])}
    assert {node.node.node_id for node in found} == names
    for node in found:
        assert node.node.metadata == shown
        assert node.node.source_node is not None and node.node.source_node.metadata == shown
        said = node.node.model_dump_json()
        other = _B if shown is _A else _A
        assert other["file_path"] not in said and f'"{other["tenant"]}"' not in said
    assert len(shared.as_retriever(similarity_top_k=2, filters=filters).retrieve("toner")) == min(2, len(names))


def test_integers_are_told_apart_whatever_their_size(encoder: MultiVectorEncoder) -> None:
    documents = [Document(id_=str(n), text=f"page {n}", metadata={"big": 2**53 + n}) for n in range(2)]
    with ColPaliIndex.from_documents(documents, encoder) as index:
        for operator in (F.EQ, F.IN):
            value = 2**53 + 1 if operator == F.EQ else [2**53 + 1]
            filters = MetadataFilters(filters=[_filter("big", operator, value)])
            assert _ids(index.as_retriever(filters=filters)) == ["1"]


# What else a document says: it is as new as the document that came last.


def _document(file: str, hidden: list[str]) -> Document:
    metadata = {"file_path": file, "owner": f"owner of {file}"}
    return Document(id_="page", text="Toner", metadata=metadata, excluded_llm_metadata_keys=hidden)


def _prompt(index: ColPaliIndex, filters: MetadataFilters | None = None) -> str:
    """What a language model would read of the one page."""
    [found] = index.as_retriever(filters=filters).retrieve("toner")
    return found.node.get_content(MetadataMode.LLM)


def test_a_document_inserted_again_may_hide_more_show_more_and_have_other_neighbours(
    encoder: MultiVectorEncoder,
) -> None:
    with ColPaliIndex.from_documents([_document("a.pdf", [])], encoder) as index:
        assert "owner of a.pdf" in _prompt(index)
        hiding = _document("a.pdf", ["owner"])
        hiding.relationships[NodeRelationship.NEXT] = RelatedNodeInfo(node_id="next")
        assert [index.refresh_ref_docs([hiding]) for _ in range(2)] == [[True], [False]]
        [found] = index.as_retriever().retrieve("toner")
        assert found.node.next_node is not None and found.node.next_node.node_id == "next"
        assert _prompt(index) == "file_path: a.pdf\n\nToner"
        index.insert(_document("a.pdf", ["file_path"]))
        assert _prompt(index) == "owner: owner of a.pdf\n\nToner"


def test_what_one_copy_hides_is_hidden_whichever_copy_is_shown(encoder: MultiVectorEncoder) -> None:
    copies = [_document("a.pdf", ["owner"]), _document("b.pdf", [])]
    with ColPaliIndex.from_documents(copies, encoder) as index:
        for name in ("a.pdf", "b.pdf"):
            shown = _prompt(index, MetadataFilters(filters=[_filter("file_path", F.EQ, name)]))
            assert shown == f"file_path: {name}\n\nToner"
        assert index.refresh_ref_docs(copies) == [False, False]
        index.delete_file("b.pdf")
        assert _prompt(index) == "file_path: a.pdf\n\nToner"


def test_a_node_inserted_again_belongs_to_the_document_that_it_names_now(encoder: MultiVectorEncoder) -> None:
    with ColPaliIndex.from_documents([], encoder) as index:
        for name in ("old", "new"):
            source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=name)}
            index.insert_nodes([TextNode(id_="page", text="Toner", relationships=source)])
        index.delete_ref_doc("old")
        assert _ids(index.as_retriever()) == ["page"]
        index.delete_ref_doc("new")
        assert _ids(index.as_retriever()) == []
