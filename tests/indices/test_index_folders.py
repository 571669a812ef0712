"""Where an index may lie, what leads out of its folder or into another's, and folders of other formats."""

from pathlib import Path

import pytest
from indexed_pages import QUESTION, answers, draw, files_in, read_pages, write_pdf
from llama_index.core.schema import Document, ImageDocument, TextNode

from llama_index_ziprerank.indices import ColPaliIndex
from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder
from llama_index_ziprerank.retrieval.store import StoredPage, StoreError


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "a\x00b", "ü" * 300, "CON", "x.png", "", "."])
def test_no_id_leads_out_of_the_folder(encoder: MultiVectorEncoder, tmp_path: Path, name: str) -> None:
    draw(1).save(tmp_path / "page.png")
    with ColPaliIndex.from_documents(
        [ImageDocument(id_=name, image_path=str(tmp_path / "page.png"))], encoder, tmp_path / "index"
    ) as index:
        (found,) = index.as_retriever().retrieve(QUESTION)
        assert found.node.node_id == name
        assert Path(found.node.image_path).parent == index.image_dir
        assert len(files_in(index.image_dir)) == 1
        index.delete_ref_doc(name)
        assert files_in(index.image_dir) == set()
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


def test_an_index_may_have_the_longest_name_that_a_folder_can_have(encoder: MultiVectorEncoder, tmp_path: Path) -> None:
    folder = tmp_path / ("i" * 255)
    with ColPaliIndex.from_documents([Document(text="Toner")], encoder, persist_dir=folder) as index:
        with pytest.raises(StoreError, match=r"\(File name too long\)\. Take a folder with a shorter name"):
            index.persist(tmp_path / ("c" * 255))
    with ColPaliIndex.load(folder, model=encoder) as index:
        assert len(list(index.nodes())) == 1


def test_an_index_json_of_something_else_above_is_in_nobodys_way(encoder: MultiVectorEncoder, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"name": "a web site"}')
    with ColPaliIndex.from_documents([Document(id_="a", text="Toner.")], encoder, tmp_path / "index") as index:
        assert list(index.ref_doc_info) == ["a"]


def test_a_temporary_index_is_gone_after_closing_and_its_copy_stays(
    encoder: MultiVectorEncoder, model: str, tmp_path: Path
) -> None:
    path = write_pdf(tmp_path / "a.pdf", 1, 2)
    with ColPaliIndex.from_documents(read_pages(path), encoder) as index:
        with pytest.raises(ValueError, match="in a temporary folder"):
            index.persist()
        index.persist(tmp_path / "copy")
        index.delete_ref_doc(read_pages(path)[0].id_)
        index.persist(tmp_path / "copy")
        expected, folder = answers(index), index.image_dir.parent
    index.close()
    assert not folder.exists()
    assert {p.name for p in tmp_path.iterdir()} == {"a.pdf", "copy"}
    (tmp_path / "copy").rename(tmp_path / "moved")
    with ColPaliIndex.load(tmp_path / "moved", device="cpu") as copy:
        assert answers(copy) == expected
        assert len(expected) == 1
        copy.persist()
        copy.persist(tmp_path / "moved")
        assert answers(copy) == expected


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
    assert files_in(tmp_path) == {"thesis.txt"}


def test_an_index_of_another_format_is_refused(encoder: MultiVectorEncoder, tmp_path: Path) -> None:
    ColPaliIndex.from_documents([], encoder, tmp_path).close()
    file = tmp_path / "index.json"
    file.write_text(file.read_text().replace('"format": 2', '"format": 3'))
    with pytest.raises(ValueError, match="of format 3, this version reads 2 and older. Update"):
        ColPaliIndex.load(tmp_path)


def test_an_index_of_the_first_format_is_read_and_becomes_one_of_this(
    encoder: MultiVectorEncoder, tmp_path: Path
) -> None:
    documents, folder = read_pages(write_pdf(tmp_path / "a.pdf", 1, 2)), tmp_path / "index"
    with ColPaliIndex.from_documents(documents, encoder, folder) as index:
        expected = answers(index)
        for page in index.store.pages():
            payload = {key: value for key, value in page.payload.items() if key != "copies"}
            index.store.update([StoredPage(page.id, page.document_id, payload)])
    file = folder / "index.json"
    file.write_text(file.read_text().replace('"format": 2', '"format": 1'))
    with ColPaliIndex.load(folder, model=encoder) as index:
        assert answers(index) == expected
        assert index.refresh_ref_docs(documents) == [False, False]
        assert '"format": 2' in file.read_text()
        assert index.delete_file(documents[0].metadata["file_path"]) == 2
