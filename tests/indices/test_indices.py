"""An index is what a fresh build of its documents would be, whatever happened to it in between."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from indexed_pages import QUESTION, answers, draw, files_in, read_pages, write_pdf
from llama_index.core import SimpleDirectoryReader
from llama_index.core.base.llms.types import ImageBlock, LLMMetadata
from llama_index.core.llms.mock import MockLLMWithChatMemoryOfLastCall
from llama_index.core.schema import Document, ImageDocument, ImageNode, TextNode
from qdrant_client import QdrantClient
from tiny_retriever import colqwen3

from llama_index_ziprerank.indices import ColPaliIndex
from llama_index_ziprerank.nodes import NodeImageError, node_image
from llama_index_ziprerank.readers import PDFPageReader
from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder
from llama_index_ziprerank.retrieval.qdrant import QdrantStore
from llama_index_ziprerank.retrieval.store import StoreError

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
    a, b, c = (
        write_pdf(tmp_path / "a.pdf", 1, 2),
        write_pdf(tmp_path / "b.pdf", 3, 4, 5),
        write_pdf(tmp_path / "c.pdf", 6),
    )
    with ColPaliIndex.from_documents(read_pages(a, b), model, tmp_path / "index", device="cpu"):
        pass
    deleted = read_pages(a)[0].id_
    write_pdf(b, 3, 40)  # its second page is another one, its third is gone
    done = subprocess.run(
        [sys.executable, "-c", _EDIT, str(tmp_path / "index"), str(c), deleted, str(b)],
        env=os.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[True, True]\n"
    documents = [page for page in read_pages(a, b, c) if page.id_ != deleted]
    with ColPaliIndex.load(tmp_path / "index", device="cpu") as edited:
        with ColPaliIndex.from_documents(documents, model, tmp_path / "fresh", device="cpu") as fresh:
            assert answers(edited) == answers(fresh)
            assert len(answers(edited)) == 4
            assert files_in(edited.image_dir) == files_in(fresh.image_dir)


def test_refreshing_unchanged_pages_encodes_nothing(
    encoder: MultiVectorEncoder, tmp_path: Path, counted: Callable[[], int]
) -> None:
    path = write_pdf(tmp_path / "a.pdf", 1, 2)
    with ColPaliIndex.from_documents(read_pages(path), encoder) as index:
        assert counted() == 2
        assert index.refresh_ref_docs(read_pages(path)) == [False, False]
        assert counted() == 2


def test_refreshing_compares_documents_without_a_file_by_their_content(encoder: MultiVectorEncoder) -> None:
    one, two = Document(id_="one", text="first"), Document(id_="two", text="second")
    with ColPaliIndex.from_documents([one, two], encoder) as index:
        changed = Document(id_="two", text="second, longer")
        assert index.refresh_ref_docs([one, changed, Document(id_="three", text="third")]) == [False, True, True]
        assert {node.node.text for node in index.as_retriever().retrieve("x")} == {"first", "second, longer", "third"}


def test_a_new_image_or_new_metadata_under_an_old_id_is_a_change(encoder: MultiVectorEncoder, tmp_path: Path) -> None:
    file = tmp_path / "page.png"
    draw(1).save(file)
    with ColPaliIndex.from_documents([], encoder) as index:
        assert index.refresh_ref_docs([ImageDocument(id_="x", image_path=str(file))]) == [True]
        draw(2).save(file)
        assert index.refresh_ref_docs([ImageDocument(id_="x", image_path=str(file))]) == [True]
        found = index.as_retriever().retrieve("x")[0].node
        assert np.array_equal(np.asarray(node_image(found)), np.asarray(draw(2)))
        assert index.refresh_ref_docs([ImageDocument(id_="x", image_path=str(file), metadata={"a": 1})]) == [True]
        assert len(list(index.nodes())) == 1


def test_building_again_continues_where_it_was_interrupted(
    encoder: MultiVectorEncoder, tmp_path: Path, counted: Callable[[], int]
) -> None:
    documents = read_pages(write_pdf(tmp_path / "a.pdf", 1, 2, 3, 4))

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
            assert [page for page, *_ in sorted(answers(index))] == [page.id_ for page in documents[:2]]
        with ColPaliIndex.from_documents(documents, encoder, folder) as index:
            assert counted() == 4
            with ColPaliIndex.from_documents(documents, encoder) as fresh:
                assert answers(index) == answers(fresh)
    finally:
        del encoder.stream_images  # type: ignore[method-assign]


def test_deleting_a_file_removes_its_pages_and_their_images(encoder: MultiVectorEncoder, tmp_path: Path) -> None:
    a, b = write_pdf(tmp_path / "a.pdf", 1, 2), write_pdf(tmp_path / "b.pdf", 3)
    with ColPaliIndex.from_documents(read_pages(a, b), encoder) as index:
        assert len(files_in(index.image_dir)) == 3
        assert index.delete_file(read_pages(a)[0].metadata["file_path"]) == 2
        assert index.delete_file("nowhere.pdf") == 0
        index.delete_ref_doc("unknown")
        assert list(index.ref_doc_info) == [read_pages(b)[0].id_]
        assert len(files_in(index.image_dir)) == 1


def test_documents_are_listed_with_their_nodes_and_metadata(encoder: MultiVectorEncoder, tmp_path: Path) -> None:
    documents = read_pages(write_pdf(tmp_path / "a.pdf", 1, 2))
    with ColPaliIndex.from_documents(documents, encoder) as index:
        info = index.ref_doc_info
        assert {name: (i.node_ids, i.metadata) for name, i in info.items()} == {
            document.id_: ([document.id_], document.metadata) for document in documents
        }


def test_a_document_without_an_image_is_found_as_text(encoder: MultiVectorEncoder, tmp_path: Path) -> None:
    documents = [Document(id_="text", text="Change the toner."), *read_pages(write_pdf(tmp_path / "a.pdf", 1))]
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


def test_ready_nodes_are_indexed_as_they_are(encoder: MultiVectorEncoder, tmp_path: Path) -> None:
    draw(1).save(tmp_path / "page.png")
    node = ImageNode(id_="node", text="Toner", image_path=str(tmp_path / "page.png"), metadata={"a": 1})
    with ColPaliIndex.from_documents([], encoder) as index:
        index.insert_nodes([node, TextNode(id_="text", text="Fuser")])
        found = {n.node.node_id: n.node for n in index.as_retriever().retrieve(QUESTION)}
    assert (found["node"].text, found["node"].metadata) == ("Toner", {"a": 1})
    assert found["text"].text == "Fuser"
    assert node.image_path == str(tmp_path / "page.png")


def test_an_index_refuses_another_model_by_both_names(encoder: MultiVectorEncoder, model: str, tmp_path: Path) -> None:
    other = str(colqwen3(tmp_path / "other", seed=1))
    ColPaliIndex.from_documents([Document(text="Toner")], encoder, tmp_path / "index").close()
    message = f"built with '{model}' .*'{other}' .* is another"
    with pytest.raises(ValueError, match=message):
        ColPaliIndex.load(tmp_path / "index", model=other, device="cpu")
    with pytest.raises(ValueError, match=message):
        ColPaliIndex.from_documents([], other, tmp_path / "index", device="cpu")


def test_a_model_may_be_a_path(model: str, tmp_path: Path) -> None:
    ColPaliIndex.from_documents([], Path(model), tmp_path / "index", device="cpu").close()
    with ColPaliIndex.load(tmp_path / "index", model=Path(model), device="cpu") as index:
        assert index.encoder.name == model


def test_pooling_is_remembered(model: str, tmp_path: Path) -> None:
    documents = read_pages(write_pdf(tmp_path / "a.pdf", 1))
    ColPaliIndex.from_documents(documents, model, tmp_path / "index", device="cpu", pool_factor=3).close()
    with ColPaliIndex.load(tmp_path / "index", device="cpu") as index:
        assert index.encoder.pool_factor == 3
    whole = MultiVectorEncoder.from_pretrained(model, "cpu")
    with ColPaliIndex.load(tmp_path / "index", model=whole) as index:  # questions are not pooled
        assert index.as_retriever().retrieve("anything")
    with pytest.raises(ValueError, match=r"was built with pool_factor 3, got 1.*Pass pool_factor=3"):
        ColPaliIndex.from_documents(documents, model, tmp_path / "index", device="cpu")


def test_new_metadata_alone_encodes_nothing(
    encoder: MultiVectorEncoder, tmp_path: Path, counted: Callable[[], int]
) -> None:
    with ColPaliIndex.from_documents(read_pages(write_pdf(tmp_path / "a.pdf", 1)), encoder) as index:
        [page] = read_pages(tmp_path / "a.pdf")
        page.metadata["chapter"] = "Toner"
        assert index.refresh_ref_docs([page]) == [True]
        assert index.refresh_ref_docs([page]) == [False]
        assert counted() == 1
        [(_, _, _, metadata)] = answers(index)
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
    documents = read_pages(write_pdf(tmp_path / "a.pdf", 1, 2, 3))
    client = QdrantClient(":memory:")
    with ColPaliIndex.from_documents(documents, encoder) as embedded:
        with ColPaliIndex.from_documents(
            documents, encoder, tmp_path / "index", store=QdrantStore(client=client)
        ) as served:
            assert answers(served) == answers(embedded)
            served.delete_ref_doc(documents[0].id_)
            served.persist(tmp_path / "copy")
            expected = answers(served)
    with pytest.raises(ValueError, match="are not in the folder.*store=QdrantStore"):
        ColPaliIndex.load(tmp_path / "index", model=encoder)
    with pytest.raises(ValueError, match="are not in the folder"):
        ColPaliIndex.from_documents([], encoder, tmp_path / "index")
    for folder in ("index", "copy"):
        with ColPaliIndex.load(tmp_path / folder, model=encoder, store=QdrantStore(client=client)) as again:
            assert answers(again) == expected
    with pytest.raises(ValueError, match="already holds 2 pages, whose images are in another folder"):
        ColPaliIndex.from_documents([], encoder, tmp_path / "third", store=QdrantStore(client=client))
    ColPaliIndex.from_documents([], encoder, tmp_path / "embedded").close()
    with pytest.raises(ValueError, match="are in the folder: leave `store` away"):
        ColPaliIndex.load(tmp_path / "embedded", model=encoder, store=QdrantStore(client=client))
    client.close()


def test_documents_of_a_directory_reader_are_indexed(encoder: MultiVectorEncoder, tmp_path: Path) -> None:
    folder = tmp_path / "manuals"
    folder.mkdir()
    write_pdf(folder / "a.pdf", 1, 2)
    reader = SimpleDirectoryReader(folder, file_extractor={".pdf": PDFPageReader(dpi=72)})
    with ColPaliIndex.from_documents(reader.load_data(), encoder) as index:
        assert [
            metadata["page_number"] for *_, metadata in sorted(answers(index), key=lambda a: a[3]["page_number"])
        ] == [1, 2]
        assert index.refresh_ref_docs(reader.load_data()) == [False, False]


def test_progress_is_shown_when_asked_for(
    encoder: MultiVectorEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = read_pages(write_pdf(tmp_path / "a.pdf", 1, 2))
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
    with ColPaliIndex.from_documents(read_pages(write_pdf(tmp_path / "a.pdf", 1, 2, 3, 4)), encoder) as index:
        found = index.as_retriever(similarity_top_k=3).retrieve(QUESTION)
        expected = [Path(node.node.image_path).read_bytes() for node in found]
        llm = _RecordingLLM(is_chat_model=True)
        engine = index.as_query_engine(llm=llm, similarity_top_k=3)
        assert engine.query(QUESTION).source_nodes == found
        assert _images_seen(llm) == expected
        llm.reset_memory()
        await engine.aquery(QUESTION)
        assert _images_seen(llm) == expected
