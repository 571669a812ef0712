"""An index is what a fresh build of its documents would be, whatever happened to it in between."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from llama_index.core import SimpleDirectoryReader
from llama_index.core.base.llms.types import ImageBlock, LLMMetadata
from llama_index.core.llms.mock import MockLLMWithChatMemoryOfLastCall
from llama_index.core.schema import Document, ImageDocument, ImageNode, TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from PIL import Image
from qdrant_client import QdrantClient
from tiny_retriever import colqwen3

from llama_index_ziprerank.indices import ColPaliIndex
from llama_index_ziprerank.nodes import NodeImageError, document_to_page_node, node_image
from llama_index_ziprerank.readers import PDFPageReader
from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder
from llama_index_ziprerank.retrieval.qdrant import QdrantStore
from llama_index_ziprerank.retrieval.store import StoredPage, StoreError

QUESTION = "How is the toner changed?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(colqwen3(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def encoder(model: str) -> MultiVectorEncoder:
    return MultiVectorEncoder.from_pretrained(model, device="cpu")


@pytest.fixture
def counted(encoder: MultiVectorEncoder) -> Iterator[Callable[[], int]]:
    """Number of pages that went through the model since the test began."""
    pages: list[int] = []
    hook = encoder.model.register_forward_pre_hook(
        lambda _, positional, named: pages.append(len(named["input_ids"]) if "pixel_values" in named else 0),
        with_kwargs=True,
    )
    yield lambda: sum(pages)
    hook.remove()


def _image(seed: int, width: int = 96, height: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def _pdf(path: Path, *seeds: int) -> Path:
    first, *rest = [_image(seed) for seed in seeds]
    first.save(path, save_all=True, append_images=rest)
    return path


def _pages(*paths: Path) -> list[Document]:
    return [document for path in paths for document in PDFPageReader(dpi=72).load_data(path)]


def _answers(index: ColPaliIndex) -> list[tuple[str, float, str, dict[str, object]]]:
    """Everything that a question brings back, but for where the index lies."""
    found = index.as_retriever(similarity_top_k=50).retrieve(QUESTION)
    for node in found:
        assert node_image(node.node) is not None
    return [(n.node.node_id, round(n.score, 4), n.node.ref_doc_id, n.node.metadata) for n in found]


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


_EDIT = """
import sys
from llama_index_ziprerank import ColPaliIndex, PDFPageReader
folder, new, deleted, changed = sys.argv[1:]
reader = PDFPageReader(dpi=72)
with ColPaliIndex.load(folder, device="cpu") as index:
    for page in reader.load_data(new):
        index.insert(page)
    index.delete_ref_doc(deleted)
    print(index.refresh_ref_docs(reader.load_data(changed)))
"""


def test_an_index_edited_in_another_process_equals_a_fresh_build(model: str, tmp_path: Path) -> None:
    a, b, c = _pdf(tmp_path / "a.pdf", 1, 2), _pdf(tmp_path / "b.pdf", 3, 4, 5), _pdf(tmp_path / "c.pdf", 6)
    with ColPaliIndex.from_documents(_pages(a, b), model, tmp_path / "index", device="cpu"):
        pass
    deleted = _pages(a)[0].id_
    _pdf(b, 3, 40)  # its second page is another one, its third is gone
    done = subprocess.run(
        [sys.executable, "-c", _EDIT, str(tmp_path / "index"), str(c), deleted, str(b)],
        env=os.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[True, True]\n"
    documents = [page for page in _pages(a, b, c) if page.id_ != deleted]
    with ColPaliIndex.load(tmp_path / "index", device="cpu") as edited:
        with ColPaliIndex.from_documents(documents, model, tmp_path / "fresh", device="cpu") as fresh:
            assert _answers(edited) == _answers(fresh)
            assert len(_answers(edited)) == 4
            assert _files(edited.image_dir) == _files(fresh.image_dir)


def test_refreshing_unchanged_pages_encodes_nothing(
    encoder: MultiVectorEncoder, tmp_path: Path, counted: Callable[[], int]
) -> None:
    path = _pdf(tmp_path / "a.pdf", 1, 2)
    with ColPaliIndex.from_documents(_pages(path), encoder) as index:
        assert counted() == 2
        assert index.refresh_ref_docs(_pages(path)) == [False, False]
        assert counted() == 2


def test_refreshing_compares_documents_without_a_file_by_their_content(encoder: MultiVectorEncoder) -> None:
    one, two = Document(id_="one", text="first"), Document(id_="two", text="second")
    with ColPaliIndex.from_documents([one, two], encoder) as index:
        changed = Document(id_="two", text="second, longer")
        assert index.refresh_ref_docs([one, changed, Document(id_="three", text="third")]) == [False, True, True]
        assert {node.node.text for node in index.as_retriever().retrieve("x")} == {"first", "second, longer", "third"}


def test_a_new_image_or_new_metadata_under_an_old_id_is_a_change(encoder: MultiVectorEncoder, tmp_path: Path) -> None:
    file = tmp_path / "page.png"
    _image(1).save(file)
    with ColPaliIndex.from_documents([], encoder) as index:
        assert index.refresh_ref_docs([ImageDocument(id_="x", image_path=str(file))]) == [True]
        _image(2).save(file)
        assert index.refresh_ref_docs([ImageDocument(id_="x", image_path=str(file))]) == [True]
        found = index.as_retriever().retrieve("x")[0].node
        assert np.array_equal(np.asarray(node_image(found)), np.asarray(_image(2)))
        assert index.refresh_ref_docs([ImageDocument(id_="x", image_path=str(file), metadata={"a": 1})]) == [True]
        assert len(list(index.nodes())) == 1


def test_building_again_continues_where_it_was_interrupted(
    encoder: MultiVectorEncoder, tmp_path: Path, counted: Callable[[], int]
) -> None:
    documents = _pages(_pdf(tmp_path / "a.pdf", 1, 2, 3, 4))

    def interrupted() -> Iterator[Document]:
        yield from documents[:2]
        raise KeyboardInterrupt

    folder = tmp_path / "index"
    one_a_batch = encoder.stream_images
    encoder.stream_images = lambda images: one_a_batch(images, batch_size=1)  # type: ignore[method-assign]
    try:
        with pytest.raises(KeyboardInterrupt):
            ColPaliIndex.from_documents(interrupted(), encoder, folder)
        with ColPaliIndex.load(folder, model=encoder) as index:
            assert [page for page, *_ in sorted(_answers(index))] == [page.id_ for page in documents[:2]]
        with ColPaliIndex.from_documents(documents, encoder, folder) as index:
            assert counted() == 4
            with ColPaliIndex.from_documents(documents, encoder) as fresh:
                assert _answers(index) == _answers(fresh)
    finally:
        del encoder.stream_images  # type: ignore[method-assign]


def test_deleting_a_file_removes_its_pages_and_their_images(encoder: MultiVectorEncoder, tmp_path: Path) -> None:
    a, b = _pdf(tmp_path / "a.pdf", 1, 2), _pdf(tmp_path / "b.pdf", 3)
    with ColPaliIndex.from_documents(_pages(a, b), encoder) as index:
        assert len(_files(index.image_dir)) == 3
        assert index.delete_file(_pages(a)[0].metadata["file_path"]) == 2
        assert index.delete_file("nowhere.pdf") == 0
        index.delete_ref_doc("unknown")
        assert list(index.ref_doc_info) == [_pages(b)[0].id_]
        assert len(_files(index.image_dir)) == 1


def test_documents_are_listed_with_their_nodes_and_metadata(encoder: MultiVectorEncoder, tmp_path: Path) -> None:
    documents = _pages(_pdf(tmp_path / "a.pdf", 1, 2))
    with ColPaliIndex.from_documents(documents, encoder) as index:
        info = index.ref_doc_info
        assert {name: (i.node_ids, i.metadata) for name, i in info.items()} == {
            document.id_: ([document.id_], document.metadata) for document in documents
        }


def test_a_document_without_an_image_is_found_as_text(encoder: MultiVectorEncoder, tmp_path: Path) -> None:
    documents = [Document(id_="text", text="Change the toner."), *_pages(_pdf(tmp_path / "a.pdf", 1))]
    with ColPaliIndex.from_documents(documents, encoder) as index:
        found = {node.node.node_id: node.node for node in index.as_retriever().retrieve(QUESTION)}
    assert type(found["text"]) is TextNode
    assert found["text"].text == "Change the toner."
    assert type(found[documents[1].id_]) is ImageNode


def test_a_document_with_nothing_in_it_is_refused_and_its_neighbours_are_not_lost(
    encoder: MultiVectorEncoder, tmp_path: Path
) -> None:
    with ColPaliIndex.from_documents([Document(id_="good", text="Toner.")], encoder, tmp_path / "index") as index:
        with pytest.raises(NodeImageError, match="'empty' has neither an image nor text"):
            index.insert(Document(id_="empty", text=" "))
        assert list(index.ref_doc_info) == ["good"]


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "a\x00b", "ü" * 300, "CON", "x.png", "", "."])
def test_no_id_leads_out_of_the_folder(encoder: MultiVectorEncoder, tmp_path: Path, name: str) -> None:
    _image(1).save(tmp_path / "page.png")
    with ColPaliIndex.from_documents(
        [ImageDocument(id_=name, image_path=str(tmp_path / "page.png"))], encoder, tmp_path / "index"
    ) as index:
        (found,) = index.as_retriever().retrieve(QUESTION)
        assert found.node.node_id == name
        assert Path(found.node.image_path).parent == index.image_dir
        assert len(_files(index.image_dir)) == 1
        index.delete_ref_doc(name)
        assert _files(index.image_dir) == set()
    assert {path.name for path in tmp_path.iterdir()} == {"page.png", "index"}


@pytest.mark.parametrize(
    "document",
    [
        Document(id_="bad", text="a", metadata={"file_path": "b\udcff.pdf"}),
        Document(id_="bad", text="lone \ud800"),
        Document(id_="bad\udcff", text="a"),
    ],
    ids=["path", "text", "id"],
)
def test_what_is_no_unicode_is_refused_before_anything_is_written(
    encoder: MultiVectorEncoder, document: Document
) -> None:
    with ColPaliIndex.from_documents([Document(id_="good", text="Toner.")], encoder) as index:
        with pytest.raises(ValueError, match=r"Document 'bad.*is no Unicode.*rename the file"):
            index.insert(document)
        with pytest.raises(ValueError, match="is no Unicode"):
            index.insert_nodes([TextNode(id_="node", text="lone \ud800")])
        assert list(index.ref_doc_info) == ["good"]


def test_a_copy_lands_where_it_was_sent_whatever_links_lead_there(encoder: MultiVectorEncoder, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    (tmp_path / "own").symlink_to(tmp_path / "index")
    with ColPaliIndex.from_documents([Document(id_="a", text="Toner.")], encoder, tmp_path / "index") as index:
        for _ in range(2):  # the second replaces the first
            index.persist(tmp_path / "link")
        index.persist(tmp_path / "own")  # itself: nothing to do
        index.persist(tmp_path / "index" / ".." / "disk")
        with pytest.raises(ValueError, match="lies inside the index"):
            index.persist(tmp_path / "index" / "copy")
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "link", "own", "index"}
    with ColPaliIndex.load(tmp_path / "disk", model=encoder) as copy:
        assert list(copy.ref_doc_info) == ["a"]


@pytest.mark.parametrize("inside", ["sub", "images/sub", "store/sub/deeper"])
def test_no_index_is_built_or_copied_into_another_which_would_take_it_along(
    encoder: MultiVectorEncoder, tmp_path: Path, inside: str
) -> None:
    with ColPaliIndex.from_documents([Document(id_="a", text="Toner.")], encoder) as other:
        ColPaliIndex.from_documents([Document(id_="a", text="Toner.")], encoder, tmp_path / "outer").close()
        with pytest.raises(ValueError, match="lies inside the index .*outer"):
            ColPaliIndex.from_documents([Document(id_="b", text="Fuser.")], encoder, tmp_path / "outer" / inside)
        with pytest.raises(ValueError, match="lies inside the index .*outer"):
            other.persist(tmp_path / "outer" / inside)
    assert not (tmp_path / "outer" / inside).exists()


def test_an_index_json_of_something_else_above_is_in_nobodys_way(encoder: MultiVectorEncoder, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"name": "a web site"}')
    with ColPaliIndex.from_documents([Document(id_="a", text="Toner.")], encoder, tmp_path / "index") as index:
        assert list(index.ref_doc_info) == ["a"]


def test_ready_nodes_are_indexed_as_they_are(encoder: MultiVectorEncoder, tmp_path: Path) -> None:
    _image(1).save(tmp_path / "page.png")
    node = ImageNode(id_="node", text="Toner", image_path=str(tmp_path / "page.png"), metadata={"a": 1})
    with ColPaliIndex.from_documents([], encoder) as index:
        index.insert_nodes([node, TextNode(id_="text", text="Fuser")])
        found = {n.node.node_id: n.node for n in index.as_retriever().retrieve(QUESTION)}
    assert (found["node"].text, found["node"].metadata) == ("Toner", {"a": 1})
    assert found["text"].text == "Fuser"
    assert node.image_path == str(tmp_path / "page.png")


def test_a_temporary_index_is_gone_after_closing_and_its_copy_stays(
    encoder: MultiVectorEncoder, model: str, tmp_path: Path
) -> None:
    path = _pdf(tmp_path / "a.pdf", 1, 2)
    with ColPaliIndex.from_documents(_pages(path), encoder) as index:
        with pytest.raises(ValueError, match="in a temporary folder"):
            index.persist()
        index.persist(tmp_path / "copy")
        index.delete_ref_doc(_pages(path)[0].id_)
        index.persist(tmp_path / "copy")
        expected, folder = _answers(index), index.image_dir.parent
    index.close()
    assert not folder.exists()
    assert {p.name for p in tmp_path.iterdir()} == {"a.pdf", "copy"}
    (tmp_path / "copy").rename(tmp_path / "moved")
    with ColPaliIndex.load(tmp_path / "moved", device="cpu") as copy:
        assert _answers(copy) == expected
        assert len(expected) == 1
        copy.persist()
        copy.persist(tmp_path / "moved")
        assert _answers(copy) == expected


def test_an_index_refuses_another_model_by_both_names(encoder: MultiVectorEncoder, model: str, tmp_path: Path) -> None:
    other = str(colqwen3(tmp_path / "other", seed=1))
    ColPaliIndex.from_documents([Document(text="Toner")], encoder, tmp_path / "index").close()
    message = f"built with '{model}' .*'{other}' .* is another"
    with pytest.raises(ValueError, match=message):
        ColPaliIndex.load(tmp_path / "index", model=other, device="cpu")
    with pytest.raises(ValueError, match=message):
        ColPaliIndex.from_documents([], other, tmp_path / "index", device="cpu")


def test_pooling_is_remembered(model: str, tmp_path: Path) -> None:
    documents = _pages(_pdf(tmp_path / "a.pdf", 1))
    ColPaliIndex.from_documents(documents, model, tmp_path / "index", device="cpu", pool_factor=3).close()
    with ColPaliIndex.load(tmp_path / "index", device="cpu") as index:
        assert index.encoder.pool_factor == 3
    whole = MultiVectorEncoder.from_pretrained(model, "cpu")
    with ColPaliIndex.load(tmp_path / "index", model=whole) as index:  # questions are not pooled
        assert index.as_retriever().retrieve("anything")
    with pytest.raises(ValueError, match=r"was built with pool_factor 3, got 1.*Pass pool_factor=3"):
        ColPaliIndex.from_documents(documents, model, tmp_path / "index", device="cpu")


def test_a_folder_that_is_no_index_is_neither_loaded_nor_written_over(
    encoder: MultiVectorEncoder, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="holds no index"):
        ColPaliIndex.load(tmp_path)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files that are no index"):
        ColPaliIndex.from_documents([], encoder, tmp_path)
    with ColPaliIndex.from_documents([], encoder) as index:
        with pytest.raises(ValueError, match="holds files that are no index"):
            index.persist(tmp_path)
    assert _files(tmp_path) == {"thesis.txt"}


def test_an_index_of_another_format_is_refused(encoder: MultiVectorEncoder, tmp_path: Path) -> None:
    ColPaliIndex.from_documents([], encoder, tmp_path).close()
    file = tmp_path / "index.json"
    file.write_text(file.read_text().replace('"format": 2', '"format": 3'))
    with pytest.raises(ValueError, match="of format 3, this version reads 2 and older. Update"):
        ColPaliIndex.load(tmp_path)


def test_an_index_of_the_first_format_is_read_and_becomes_one_of_this(
    encoder: MultiVectorEncoder, tmp_path: Path
) -> None:
    documents, folder = _pages(_pdf(tmp_path / "a.pdf", 1, 2)), tmp_path / "index"
    with ColPaliIndex.from_documents(documents, encoder, folder) as index:
        expected = _answers(index)
        for page in index.store.pages():
            payload = {key: value for key, value in page.payload.items() if key != "copies"}
            index.store.update([StoredPage(page.id, page.document_id, payload)])
    file = folder / "index.json"
    file.write_text(file.read_text().replace('"format": 2', '"format": 1'))
    with ColPaliIndex.load(folder, model=encoder) as index:
        assert _answers(index) == expected
        assert index.refresh_ref_docs(documents) == [False, False]
        assert '"format": 2' in file.read_text()
        assert index.delete_file(documents[0].metadata["file_path"]) == 2


def _copies(tmp_path: Path) -> tuple[Path, Path]:
    """The same PDF in two places."""
    first, second = tmp_path / "a.pdf", tmp_path / "copies" / "b.pdf"
    second.parent.mkdir()
    second.write_bytes(_pdf(first, 1, 2).read_bytes())
    return first, second


def _found_in(index: ColPaliIndex, path: Path) -> list[str]:
    filters = MetadataFilters(filters=[MetadataFilter(key="file_path", value=str(path))])
    return sorted(node.node.node_id for node in index.as_retriever(filters=filters).retrieve(QUESTION))


def test_the_same_pdf_under_two_paths_is_encoded_once_found_once_and_known_by_both(
    encoder: MultiVectorEncoder, tmp_path: Path, counted: Callable[[], int]
) -> None:
    first, second = _copies(tmp_path)
    with ColPaliIndex.from_documents(_pages(first), encoder) as index:
        index.insert_nodes([document_to_page_node(page) for page in _pages(second)])
        names = sorted(page.id_ for page in _pages(first))
        assert counted() == 2
        assert sorted(answer[0] for answer in _answers(index)) == names
        assert _found_in(index, first) == _found_in(index, second) == names
        assert {answer[3]["file_path"] for answer in _answers(index)} == {str(second)}
        assert index.refresh_ref_docs(_pages(first, second)) == [False] * 4


def test_copies_in_one_batch_are_both_known(encoder: MultiVectorEncoder, tmp_path: Path) -> None:
    first, second = _copies(tmp_path)
    with ColPaliIndex.from_documents(_pages(first, second), encoder) as index:
        assert _found_in(index, first) == _found_in(index, second) == sorted(page.id_ for page in _pages(first))
        assert len(_files(index.image_dir)) == 2


@pytest.mark.parametrize("deleted", [0, 1])
def test_deleting_one_copy_leaves_the_other(encoder: MultiVectorEncoder, tmp_path: Path, deleted: int) -> None:
    copies = _copies(tmp_path)
    kept, gone = copies[1 - deleted], copies[deleted]
    with ColPaliIndex.from_documents(_pages(*copies), encoder) as index:
        assert index.delete_file(gone) == 2
        with ColPaliIndex.from_documents(_pages(kept), encoder) as fresh:
            assert _answers(index) == _answers(fresh)
        assert _found_in(index, gone) == []
        assert index.delete_file(kept) == 2
        assert _answers(index) == [] and _files(index.image_dir) == set()


def test_changing_one_copy_leaves_the_other(encoder: MultiVectorEncoder, tmp_path: Path) -> None:
    first, second = _copies(tmp_path)
    with ColPaliIndex.from_documents(_pages(first, second), encoder) as index:
        old = _found_in(index, first)
        _pdf(second, 3)
        assert index.refresh_ref_docs(_pages(second)) == [True]
        assert _found_in(index, first) == old
        assert _found_in(index, second) == [page.id_ for page in _pages(second)]


def test_new_metadata_alone_encodes_nothing(
    encoder: MultiVectorEncoder, tmp_path: Path, counted: Callable[[], int]
) -> None:
    with ColPaliIndex.from_documents(_pages(_pdf(tmp_path / "a.pdf", 1)), encoder) as index:
        [page] = _pages(tmp_path / "a.pdf")
        page.metadata["chapter"] = "Toner"
        assert index.refresh_ref_docs([page]) == [True]
        assert index.refresh_ref_docs([page]) == [False]
        assert counted() == 1
        [(_, _, _, metadata)] = _answers(index)
        assert metadata == page.metadata


def test_an_open_index_is_not_opened_twice(encoder: MultiVectorEncoder, tmp_path: Path) -> None:
    with ColPaliIndex.from_documents([Document(text="Toner")], encoder, tmp_path):
        with pytest.raises(StoreError, match="is open elsewhere"):
            ColPaliIndex.load(tmp_path, model=encoder)
    with pytest.raises(StoreError, match="is closed"):
        index = ColPaliIndex.load(tmp_path, model=encoder)
        index.close()
        index.as_retriever().retrieve(QUESTION)


@pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning")
def test_vectors_on_a_server_and_images_in_the_folder_make_the_same_index(
    encoder: MultiVectorEncoder, tmp_path: Path
) -> None:
    documents = _pages(_pdf(tmp_path / "a.pdf", 1, 2, 3))
    client = QdrantClient(":memory:")
    with ColPaliIndex.from_documents(documents, encoder) as embedded:
        with ColPaliIndex.from_documents(
            documents, encoder, tmp_path / "index", store=QdrantStore(client=client)
        ) as served:
            assert _answers(served) == _answers(embedded)
            served.delete_ref_doc(documents[0].id_)
            served.persist(tmp_path / "copy")
            expected = _answers(served)
    with pytest.raises(ValueError, match="are not in the folder.*store=QdrantStore"):
        ColPaliIndex.load(tmp_path / "index", model=encoder)
    with pytest.raises(ValueError, match="are not in the folder"):
        ColPaliIndex.from_documents([], encoder, tmp_path / "index")
    for folder in ("index", "copy"):
        with ColPaliIndex.load(tmp_path / folder, model=encoder, store=QdrantStore(client=client)) as again:
            assert _answers(again) == expected
    with pytest.raises(ValueError, match="already holds 2 pages, whose images are in another folder"):
        ColPaliIndex.from_documents([], encoder, tmp_path / "third", store=QdrantStore(client=client))
    ColPaliIndex.from_documents([], encoder, tmp_path / "embedded").close()
    with pytest.raises(ValueError, match="are in the folder: leave `store` away"):
        ColPaliIndex.load(tmp_path / "embedded", model=encoder, store=QdrantStore(client=client))
    client.close()


def test_documents_of_a_directory_reader_are_indexed(encoder: MultiVectorEncoder, tmp_path: Path) -> None:
    folder = tmp_path / "manuals"
    folder.mkdir()
    _pdf(folder / "a.pdf", 1, 2)
    reader = SimpleDirectoryReader(folder, file_extractor={".pdf": PDFPageReader(dpi=72)})
    with ColPaliIndex.from_documents(reader.load_data(), encoder) as index:
        assert [
            metadata["page_number"] for *_, metadata in sorted(_answers(index), key=lambda a: a[3]["page_number"])
        ] == [1, 2]
        assert index.refresh_ref_docs(reader.load_data()) == [False, False]


def test_progress_is_shown_when_asked_for(
    encoder: MultiVectorEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = _pages(_pdf(tmp_path / "a.pdf", 1, 2))
    with ColPaliIndex.from_documents(documents, encoder, show_progress=True):
        assert "Encoding pages: 100%" in capsys.readouterr().err


class _RecordingLLM(MockLLMWithChatMemoryOfLastCall):
    """With the mock's own window of 3,900 tokens, LlamaIndex's COMPACT mode would show it one image a call."""

    @property
    def metadata(self) -> LLMMetadata:
        return super().metadata.model_copy(update={"context_window": 128_000})


def _images_seen(llm: MockLLMWithChatMemoryOfLastCall) -> list[bytes]:
    blocks = [block for message in llm.last_chat_messages or [] for block in message.blocks]
    return [block.resolve_image().read() for block in blocks if isinstance(block, ImageBlock)]


async def test_the_language_model_sees_the_retrieved_page_images_in_order(
    encoder: MultiVectorEncoder, tmp_path: Path
) -> None:
    with ColPaliIndex.from_documents(_pages(_pdf(tmp_path / "a.pdf", 1, 2, 3, 4)), encoder) as index:
        found = index.as_retriever(similarity_top_k=3).retrieve(QUESTION)
        expected = [Path(node.node.image_path).read_bytes() for node in found]
        llm = _RecordingLLM(is_chat_model=True)
        engine = index.as_query_engine(llm=llm, similarity_top_k=3)
        assert engine.query(QUESTION).source_nodes == found
        assert _images_seen(llm) == expected
        llm.reset_memory()
        await engine.aquery(QUESTION)
        assert _images_seen(llm) == expected
