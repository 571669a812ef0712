"""What an index is given is taken for what it is, or refused before any work, saying what came and what is wanted."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import (
    Document,
    ImageDocument,
    ImageNode,
    MediaResource,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from PIL import Image
from tiny_retriever import PARITY

from llama_index_ziprerank import ColPaliIndex, PDFPageReader, ZipRerankPostprocessor
from llama_index_ziprerank.pages.images import encode_png
from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder

PNG = base64.b64encode(encode_png(Image.new("RGB", (64, 48), "navy")))


@pytest.fixture
def index(encoder: MultiVectorEncoder) -> Iterator[ColPaliIndex]:
    with ColPaliIndex.from_documents([], encoder) as index:
        yield index


def _found(index: ColPaliIndex) -> dict[str, TextNode]:
    return {node.node.node_id: node.node for node in index.as_retriever().retrieve("toner")}


# What is a page.


def test_a_node_with_an_image_resource_is_indexed_as_an_image_node(index: ColPaliIndex) -> None:
    manual = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="manual")}
    image = MediaResource(data=PNG, mimetype="image/png")
    page = Node(id_="page", image_resource=image, text_resource=MediaResource(text="Toner"), relationships=manual)
    bare, text = Node(id_="bare", image_resource=image), Node(id_="text", text_resource=MediaResource(text="Fuser"))
    index.insert_nodes([page, bare, text])
    found = _found(index)
    assert (type(found["bare"]), found["bare"].text) == (ImageNode, "")
    assert (type(found["page"]), found["page"].text, found["page"].ref_doc_id) == (ImageNode, "Toner", "manual")
    assert (type(found["text"]), found["text"].text) == (TextNode, "Fuser")
    index.delete_ref_doc("manual")
    assert sorted(_found(index)) == ["bare", "text"]


def test_a_page_whose_image_was_dropped_is_refused_and_not_drawn_from_its_text(index: ColPaliIndex) -> None:
    page = ImageDocument(id_="page", text="Toner", image=PNG.decode())
    with pytest.raises(ValueError, match="'page': its image resource is empty"):
        index.insert(ImageDocument.from_json(page.to_json()))
    assert not _found(index)


def test_documents_among_nodes_are_indexed_as_documents(index: ColPaliIndex) -> None:
    index.insert_nodes([ImageDocument(id_="image", text="", image=PNG.decode()), Document(id_="text", text="Toner")])
    assert {name: node.ref_doc_id for name, node in _found(index).items()} == {"image": "image", "text": "text"}


@pytest.mark.parametrize("thing", ["page.png", None, Path("page.png")])
def test_what_is_no_node_is_refused(index: ColPaliIndex, thing: Any) -> None:
    with pytest.raises(TypeError, match=rf"A node that holds a page is wanted.*got the {type(thing).__name__} "):
        index.insert_nodes([thing])
    assert _found(index) == {}


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([ImageNode(id_="n", text="a")], "A document is wanted, got the ImageNode 'n'.*pass nodes to insert_nodes"),
        (["x.pdf"], r"A document is wanted, got the str 'x.pdf'.*PDFPageReader\(\).load_data"),
        ("x.pdf", "Documents are wanted, a list or a generator, got the str 'x.pdf'"),
        (Path("x.pdf"), "Documents are wanted, a list or a generator, got the PosixPath"),
        (Document(id_="one", text="a"), "Documents are wanted, a list or a generator, got the Document 'one'"),
    ],
    ids=["nodes", "paths", "string", "path", "document"],
)
def test_what_is_no_list_of_documents_is_refused(
    encoder: MultiVectorEncoder, index: ColPaliIndex, documents: Any, message: str
) -> None:
    for use in (lambda: ColPaliIndex.from_documents(documents, encoder), lambda: index.refresh_ref_docs(documents)):
        with pytest.raises(TypeError, match=message):
            use()


# Metadata.


@pytest.mark.parametrize("value", [np.int64(3), b"\xff", [object()]], ids=["numpy", "bytes", "object"])
def test_metadata_that_json_cannot_hold_is_refused_by_document_and_key(
    index: ColPaliIndex, counted: Callable[[], int], value: Any
) -> None:
    metadata = {"good": 1, "page": value}
    with pytest.raises(ValueError, match="Document 'bad': its metadata 'page' is .*JSON cannot hold. Store it as"):
        index.insert(Document(id_="bad", text="Toner", metadata=metadata))
    with pytest.raises(ValueError, match="Document 'bad': its metadata 'page'"):
        index.insert_nodes([TextNode(id_="bad", text="Toner", metadata=metadata)])
    assert counted() == 0


def test_a_file_path_may_be_a_path(index: ColPaliIndex) -> None:
    path = Path("manuals") / "a.pdf"
    old, new = (Document(id_=name, text=name, metadata={"file_path": path}) for name in ("old", "new"))
    assert index.refresh_ref_docs([old]) == [True]
    assert index.refresh_ref_docs([new]) == [True]
    assert list(_found(index)) == ["new"]
    assert index.refresh_ref_docs([new]) == [False]
    assert index.delete_file(path) == 1


def test_a_list_of_file_paths_names_no_file_and_its_page_stays(index: ColPaliIndex) -> None:
    both = Document(id_="both", text="Toner", metadata={"file_path": ["a.pdf", "b.pdf"]})
    assert index.refresh_ref_docs([both]) == [True]
    assert index.refresh_ref_docs([Document(id_="a", text="Fuser", metadata={"file_path": "a.pdf"})]) == [True]
    assert sorted(_found(index)) == ["a", "both"]


def test_a_file_whose_name_is_no_utf8_is_deleted_by_that_name(index: ColPaliIndex, tmp_path: Path) -> None:
    path = tmp_path / "man\udcffual.pdf"
    Image.new("RGB", (64, 48)).save(tmp_path / "manual.pdf")
    try:
        (tmp_path / "manual.pdf").rename(path)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    assert index.refresh_ref_docs(PDFPageReader(dpi=72).lazy_load_data(path)) == [True]
    assert index.delete_file(path) == 1


# Streams.


def test_a_stream_of_documents_refreshes_its_file_once_all_of_it_is_there(index: ColPaliIndex) -> None:
    def pages(*names: str, broken: bool = False) -> Iterator[Document]:
        for name in names:
            yield Document(id_=name, text=name, metadata={"file_path": "a.pdf"})
        if broken:
            raise OSError("the file is gone")

    assert index.refresh_ref_docs(pages("one", "two")) == [True, True]
    with pytest.raises(OSError, match="the file is gone"):
        index.refresh_ref_docs(pages("one", "three", broken=True))
    assert {"one", "two"} <= _found(index).keys()
    assert index.refresh_ref_docs(pages("one", "three"))[0] is False
    assert sorted(_found(index)) == ["one", "three"]


# Features.


def test_a_reranker_that_keeps_nothing_is_refused_before_pages_are_encoded(
    encoder: MultiVectorEncoder, counted: Callable[[], int]
) -> None:
    keeper = ZipRerankPostprocessor(model=str(PARITY), device="cpu", cache_memory_bytes=0)
    with pytest.raises(ValueError, match="cache"):
        ColPaliIndex.from_documents([Document(text="Toner")], encoder, cache_features_for=keeper)
    assert counted() == 0
