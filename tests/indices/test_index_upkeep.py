"""An index that changes under its readers, with one that shares its store, or after something of it was lost."""

import base64
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from httpx import Headers
from llama_index.core.schema import BaseNode, Document, ImageDocument, ImageNode, NodeRelationship, RelatedNodeInfo
from PIL import Image
from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import UnexpectedResponse

from llama_index_ziprerank import ColPaliIndex
from llama_index_ziprerank.nodes import node_image
from llama_index_ziprerank.pages.images import encode_png
from llama_index_ziprerank.reranking.feature_cache import DiskCost
from llama_index_ziprerank.retrieval import replaced
from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder
from llama_index_ziprerank.retrieval.qdrant import QdrantStore
from llama_index_ziprerank.retrieval.store import StoreError

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning")


@pytest.fixture
def index(encoder: MultiVectorEncoder, tmp_path: Path) -> Iterator[ColPaliIndex]:
    with ColPaliIndex.from_documents([], encoder, tmp_path / "index") as index:
        yield index


def _picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (48, 64, 3), dtype=np.uint8))


def _page(seed: int, name: str = "page", **metadata: object) -> ImageDocument:
    image = base64.b64encode(encode_png(_picture(seed))).decode()
    return ImageDocument(id_=name, text=f"version {seed}", image=image, metadata=metadata)


def _images(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "images").iterdir())


def _check_shows(index: ColPaliIndex, seed: int) -> None:
    [found] = index.as_retriever().retrieve("toner")
    shown = node_image(found.node)
    assert shown is not None and shown.tobytes() == _picture(seed).tobytes()
    assert found.node.get_content() == f"version {seed}"


# One store, two indexes.


def test_an_index_opened_before_the_first_page_sees_and_deletes_what_another_inserts(
    encoder: MultiVectorEncoder, tmp_path: Path
) -> None:
    client = QdrantClient(":memory:")
    first = ColPaliIndex.from_documents([], encoder, tmp_path, QdrantStore(client=client))
    second = ColPaliIndex.load(tmp_path, model=encoder, store=QdrantStore(client=client))
    first.insert(_page(1))
    _check_shows(second, 1)
    second.delete_ref_doc("page")
    assert first.as_retriever().retrieve("toner") == []
    assert _images(tmp_path) == []
    first.close()
    second.close()
    client.close()


class _FailingClient(QdrantClient):
    """A server that does what it is told, and breaks down before it says so, once."""

    fails_at = ""

    def _answer(self, request: str, answer: Any) -> Any:
        if request == self.fails_at:
            self.fails_at = ""
            raise UnexpectedResponse(500, "Internal Server Error", b"", Headers())
        return answer

    def retrieve(self, *positional: Any, **named: Any) -> Any:
        return self._answer("retrieve", super().retrieve(*positional, **named))

    def delete(self, *positional: Any, **named: Any) -> Any:
        return self._answer("delete", super().delete(*positional, **named))


@pytest.mark.parametrize("step", ["retrieve", "delete"])
def test_images_whose_deletion_a_server_interrupts_go_at_the_next_change(
    encoder: MultiVectorEncoder, tmp_path: Path, step: str
) -> None:
    client = _FailingClient(":memory:")
    index = ColPaliIndex.from_documents([_page(1)], encoder, tmp_path, QdrantStore(client=client))
    client.fails_at = step
    with pytest.raises(StoreError, match="500"):
        index.delete_ref_doc("page")
    index.delete_ref_doc("page")
    assert _images(tmp_path) == []
    index.close()
    client.close()


def test_images_of_an_interrupted_insertion_go_when_an_index_on_a_server_is_closed(
    encoder: MultiVectorEncoder, tmp_path: Path
) -> None:
    def broken() -> Iterator[Document]:
        yield _page(1)
        yield _page(2, "other")
        raise OSError("the file is gone")

    client = QdrantClient(":memory:")
    index = ColPaliIndex.from_documents([_page(1)], encoder, tmp_path, QdrantStore(client=client))
    with pytest.raises(OSError, match="the file is gone"):
        index.refresh_ref_docs(broken())
    index.close()
    with ColPaliIndex.load(tmp_path, model=encoder, store=QdrantStore(client=client)) as again:
        assert len(_images(tmp_path)) == len(list(again.nodes())) == 1
    client.close()


# Pages that share a document.


def _node(seed: int, file: str) -> ImageNode:
    manual = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="manual")}
    image = base64.b64encode(encode_png(_picture(seed))).decode()
    return ImageNode(id_=f"{seed:x}", image=image, metadata={"file_path": file}, relationships=manual)


def test_deleting_a_file_leaves_the_pages_of_its_document_that_another_file_holds(index: ColPaliIndex) -> None:
    index.insert_nodes([_node(1, "a.pdf"), _node(2, "a.pdf"), _node(3, "b.pdf")])
    index.insert_nodes([_node(2, "b.pdf")])
    assert index.delete_file("a.pdf") == 2
    assert sorted(node.node_id for node in index.nodes()) == ["2", "3"]
    assert len(_images(index.image_dir.parent)) == 2
    index.delete_ref_doc("manual")
    assert _images(index.image_dir.parent) == []


# One id, several times.


@pytest.mark.parametrize("stored", [[], [1], [2]])
@pytest.mark.parametrize("batch", [[1, 2], [2, 1], [1, 2, 1], [2, 1, 2], [1, 1]])
def test_the_last_document_of_an_id_stays(
    index: ColPaliIndex, tmp_path: Path, stored: list[int], batch: list[int]
) -> None:
    index.refresh_ref_docs([_page(seed) for seed in stored])
    index.refresh_ref_docs([_page(seed) for seed in batch])
    _check_shows(index, batch[-1])
    index.close()
    assert len(_images(tmp_path / "index")) == 1


# Replacing under a reader.


def test_a_page_that_was_found_can_still_be_read_after_it_is_replaced(index: ColPaliIndex, tmp_path: Path) -> None:
    index.refresh_ref_docs([_page(1, file_path="a.pdf"), _page(5, "other", file_path="a.pdf")])
    found = index.as_retriever().retrieve("toner")
    index.insert(_page(2, file_path="a.pdf"))
    index.refresh_ref_docs([_page(2, file_path="a.pdf")])  # the file has lost its other page
    assert {node_image(node.node).tobytes() for node in found} == {_picture(seed).tobytes() for seed in (1, 5)}
    index.persist(tmp_path / "copy")
    index.close()
    assert len(_images(tmp_path / "copy")) == len(_images(tmp_path / "index")) == 1


def test_a_deletion_removes_at_once_what_it_deletes_and_what_was_replaced_before(
    index: ColPaliIndex, tmp_path: Path
) -> None:
    for seed in (1, 2):
        index.insert(_page(seed, file_path="a.pdf"))
    assert len(_images(tmp_path / "index")) == 2
    assert index.delete_file("a.pdf") == 1
    assert _images(tmp_path / "index") == []


def test_replaced_images_go_at_a_later_change_unless_their_page_has_them_again(
    index: ColPaliIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (1, 2, 1):
        index.insert(_page(seed))
    assert len(_images(tmp_path / "index")) == 2
    later = replaced.time.monotonic() + replaced.GRACE
    monkeypatch.setattr(replaced.time, "monotonic", lambda: later)
    index.insert(Document(id_="text", text="Toner"))
    assert len(_images(tmp_path / "index")) == 1
    index.delete_ref_doc("text")
    _check_shows(index, 1)


class _SlowKeeper:
    """Keeps features, and meanwhile somebody else deletes their page."""

    index: ColPaliIndex

    def __init__(self) -> None:
        self.saw: list[bool] = []

    def use_cache_dir(self, folder: str | Path) -> None:
        pass

    def cache_cost(self, nodes: Iterable[BaseNode]) -> DiskCost:
        return DiskCost(0, 0)

    def cache_pages(self, nodes: Iterable[BaseNode]) -> int:
        for node in nodes:
            self.deletion = Thread(target=self.index.delete_ref_doc, args=(node.node_id,))
            self.deletion.start()
            self.deletion.join(0.3)
            self.saw.append(node_image(node) is not None)
        return 1


def test_no_page_is_deleted_while_its_features_are_kept(encoder: MultiVectorEncoder) -> None:
    keeper = _SlowKeeper()
    with ColPaliIndex.from_documents([], encoder, cache_features_for=keeper) as keeper.index:
        keeper.index.insert(_page(1))
        keeper.deletion.join()
        assert keeper.saw == [True]
        assert _images(keeper.index.image_dir.parent) == []


# Losses.


def test_an_index_whose_folder_was_moved_is_closed_with_one_error_and_opened_there(
    encoder: MultiVectorEncoder, tmp_path: Path
) -> None:
    index = ColPaliIndex.from_documents([_page(1)], encoder, tmp_path / "index")
    (tmp_path / "index").rename(tmp_path / "moved")
    with pytest.raises(StoreError, match="failed"):
        index.close()
    index.close()
    with ColPaliIndex.load(tmp_path / "moved", model=encoder) as moved:
        _check_shows(moved, 1)


def test_an_index_whose_images_cannot_be_removed_says_so_closes_and_clears_up_later(
    encoder: MultiVectorEncoder, tmp_path: Path
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    index = ColPaliIndex.from_documents([_page(1), _page(2, "other")], encoder, tmp_path / "index")
    with pytest.MonkeyPatch.context() as disk:
        disk.setattr(Path, "unlink", refuse)
        with pytest.raises(StoreError, match="index cannot be written"):
            index.delete_ref_doc("other")
        index.close()
    with ColPaliIndex.load(tmp_path / "index", model=encoder) as again:
        _check_shows(again, 1)
        assert len(_images(tmp_path / "index")) == 1


_FORKING = """
import atexit, os
from llama_index.core.schema import Document
from llama_index_ziprerank import ColPaliIndex
from llama_index_ziprerank.retrieval.store import StoreError

index = ColPaliIndex.from_documents([Document(id_="a", text="Toner.")])
index.as_retriever().retrieve("toner")
child = os.fork()
if not child:
    tried = index.as_retriever().retrieve, index.delete_ref_doc, lambda name: index.insert(Document(id_="b", text=name))
    for use in tried:
        try:
            use("a")
        except StoreError as error:
            assert "was opened before this process was forked" in str(error)
            print("refused", flush=True)
    index.close()
    atexit._run_exitfuncs()  # as sys.exit does; what it does besides would wait for other libraries' threads at times
    os._exit(0)
os.waitpid(child, 0)
print(index.image_dir.is_dir(), list(index.ref_doc_info))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_forked_process_is_refused_at_once_and_its_end_takes_nothing_along() -> None:
    done = subprocess.run([sys.executable, "-c", _FORKING], stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == ["refused", "refused", "refused", "True ['a']"]


@pytest.mark.parametrize("name", ["@eaDir", ".ipynb_checkpoints"])
def test_a_folder_that_others_put_beside_the_images_is_in_nobodys_way(
    encoder: MultiVectorEncoder, tmp_path: Path, name: str
) -> None:
    ColPaliIndex.from_documents([_page(1)], encoder, tmp_path / "index").close()
    (tmp_path / "index" / "images" / name).mkdir()
    (tmp_path / "index" / "unfinished").touch()
    with ColPaliIndex.load(tmp_path / "index", model=encoder) as index:
        index.persist(tmp_path / "copy")
        _check_shows(index, 1)


def test_building_again_mends_lost_images(encoder: MultiVectorEncoder, tmp_path: Path) -> None:
    documents = [_page(1, "one", file_path="a.pdf"), _page(2, "two", file_path="a.pdf")]
    ColPaliIndex.from_documents(documents, encoder, tmp_path).close()
    before = _images(tmp_path)
    (tmp_path / "images" / before[0]).unlink()
    with ColPaliIndex.from_documents(documents, encoder, tmp_path) as index:
        assert _images(tmp_path) == before
        assert all(node_image(node) is not None for node in index.nodes())
        assert index.refresh_ref_docs(documents) == [False, False]


@pytest.mark.parametrize(("was_interrupted", "is_emptied"), [(False, False), (True, False), (False, True)])
def test_an_index_whose_vectors_are_lost_is_damaged_and_keeps_its_images(
    encoder: MultiVectorEncoder, tmp_path: Path, was_interrupted: bool, is_emptied: bool
) -> None:
    ColPaliIndex.from_documents([_page(1)], encoder, tmp_path).close()
    shutil.rmtree(tmp_path / "store")
    if is_emptied:
        (tmp_path / "store").mkdir()
    if was_interrupted:
        (tmp_path / "unfinished").touch()
    for opened in (
        lambda: ColPaliIndex.load(tmp_path, model=encoder),
        lambda: ColPaliIndex.from_documents([], encoder, tmp_path),
    ):
        with pytest.raises(StoreError, match=r"is damaged.*vectors of its pages \(store/\) are gone. Restore"):
            opened()
    assert len(_images(tmp_path)) == 1


@pytest.mark.parametrize("documents", [[], [Document(text="words alone", id_="text")]])
def test_so_is_one_of_texts_alone_or_none(
    encoder: MultiVectorEncoder, tmp_path: Path, documents: list[Document]
) -> None:
    ColPaliIndex.from_documents(documents, encoder, tmp_path).close()
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(StoreError, match=r"is damaged.*vectors of its pages"):
        ColPaliIndex.load(tmp_path, model=encoder)
    (tmp_path / "images").rmdir()  # so it looks when a process is killed at the very beginning
    with ColPaliIndex.load(tmp_path, model=encoder) as index:
        assert not list(index.nodes())


def test_a_build_that_was_killed_before_its_first_page_was_stored_is_continued(
    encoder: MultiVectorEncoder, tmp_path: Path
) -> None:
    ColPaliIndex.from_documents([], encoder, tmp_path).close()
    (tmp_path / "unfinished").touch()
    (tmp_path / "images" / "half.png").touch()
    with ColPaliIndex.from_documents([_page(1)], encoder, tmp_path) as index:
        _check_shows(index, 1)
        assert len(_images(tmp_path)) == 1
