"""The same page under two paths: encoded once, known by both, and each goes its own way."""

from collections.abc import Callable
from pathlib import Path

import pytest
from indexed_pages import QUESTION, answers, files_in, read_pages, write_pdf
from llama_index.core.schema import Document
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

from llama_index_ziprerank.indices import ColPaliIndex
from llama_index_ziprerank.nodes import document_to_page_node
from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder


def _copies(tmp_path: Path) -> tuple[Path, Path]:
    """The same PDF in two places."""
    first, second = tmp_path / "a.pdf", tmp_path / "copies" / "b.pdf"
    second.parent.mkdir()
    second.write_bytes(write_pdf(first, 1, 2).read_bytes())
    return first, second


def _found_in(index: ColPaliIndex, path: Path) -> list[str]:
    filters = MetadataFilters(filters=[MetadataFilter(key="file_path", value=str(path))])
    return sorted(node.node.node_id for node in index.as_retriever(filters=filters).retrieve(QUESTION))


def test_the_same_pdf_under_two_paths_is_encoded_once_found_once_and_known_by_both(
    encoder: MultiVectorEncoder, tmp_path: Path, counted: Callable[[], int]
) -> None:
    first, second = _copies(tmp_path)
    with ColPaliIndex.from_documents(read_pages(first), encoder) as index:
        index.insert_nodes([document_to_page_node(page) for page in read_pages(second)])
        names = sorted(page.id_ for page in read_pages(first))
        assert counted() == 2
        assert sorted(answer[0] for answer in answers(index)) == names
        assert _found_in(index, first) == _found_in(index, second) == names
        assert {answer[3]["file_path"] for answer in answers(index)} == {str(second)}
        assert index.refresh_ref_docs(read_pages(first, second)) == [False] * 4


def test_copies_in_one_batch_are_both_known(encoder: MultiVectorEncoder, tmp_path: Path) -> None:
    first, second = _copies(tmp_path)
    with ColPaliIndex.from_documents(read_pages(first, second), encoder) as index:
        assert _found_in(index, first) == _found_in(index, second) == sorted(page.id_ for page in read_pages(first))
        assert len(files_in(index.image_dir)) == 2


@pytest.mark.parametrize("number", [123456789.123456789, [1700000000.4254441], 10**30 + 1])
def test_copies_are_unchanged_whatever_a_store_makes_of_their_numbers(
    encoder: MultiVectorEncoder, number: float | list[float]
) -> None:
    copies = [
        Document(id_="page", text="Toner", metadata={"file_path": path, "n": {"deep": number}})
        for path in ("a.pdf", "b.pdf")
    ]
    with ColPaliIndex.from_documents(copies, encoder) as index:
        assert index.refresh_ref_docs(copies) == [False, False]
        assert index.ref_doc_info["page"].metadata == copies[1].metadata
        changed = Document(id_="page", text="Toner", metadata={"file_path": "a.pdf", "n": {"deep": 1}})
        assert index.refresh_ref_docs([changed, copies[1]]) == [True, False]


@pytest.mark.parametrize("deleted", [0, 1])
def test_deleting_one_copy_leaves_the_other(encoder: MultiVectorEncoder, tmp_path: Path, deleted: int) -> None:
    copies = _copies(tmp_path)
    kept, gone = copies[1 - deleted], copies[deleted]
    with ColPaliIndex.from_documents(read_pages(*copies), encoder) as index:
        assert index.delete_file(gone) == 2
        with ColPaliIndex.from_documents(read_pages(kept), encoder) as fresh:
            assert answers(index) == answers(fresh)
        assert _found_in(index, gone) == []
        assert index.delete_file(kept) == 2
        assert answers(index) == [] and files_in(index.image_dir) == set()


def test_changing_one_copy_leaves_the_other(encoder: MultiVectorEncoder, tmp_path: Path) -> None:
    first, second = _copies(tmp_path)
    with ColPaliIndex.from_documents(read_pages(first, second), encoder) as index:
        old = _found_in(index, first)
        write_pdf(second, 3)
        assert index.refresh_ref_docs(read_pages(second)) == [True]
        assert _found_in(index, first) == old
        assert _found_in(index, second) == [page.id_ for page in read_pages(second)]
