"""`ColPaliIndex`: pages of documents in, a searchable folder out.

A page is written image first, record last: a crash leaves a page whole or absent, and building again continues where
it stopped. The image of a page that is replaced (inserted anew, or refreshed away) stays for some minutes, for
questions that have found it and not yet read it; a deletion removes at once what it deletes, and all these with it.
What the folder holds: `retrieval/folder.py`.

A page's id is made of its file's bytes. The same PDF under two paths is therefore encoded once and found once, as the
copy that came last; filters find it by either path, and it goes when the last of them is deleted.
"""

import hashlib
import json
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol

import torch
from llama_index.core.llms.llm import LLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import BaseNode, Document, ImageNode, TextNode
from llama_index.core.storage.docstore.types import RefDocInfo
from llama_index.core.utils import get_tqdm_iterable
from llama_index.core.vector_stores import MetadataFilters
from PIL import Image
from typing_extensions import Self

from llama_index_ziprerank.documents import as_page_node, page_nodes
from llama_index_ziprerank.nodes import (
    FILE_PATH,
    node_image,
    node_text,
    page_image_or_rendered_text,
)
from llama_index_ziprerank.pages.images import encode_png
from llama_index_ziprerank.pages.page import encodable
from llama_index_ziprerank.pages.remote import RemoteImages
from llama_index_ziprerank.reranking.feature_cache import DiskCost, forget_image_files
from llama_index_ziprerank.retrieval.disk import disk_errors
from llama_index_ziprerank.retrieval.edge import EdgeStore
from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder
from llama_index_ziprerank.retrieval.folder import IndexFolder
from llama_index_ziprerank.retrieval.opening import begin, describe, load_encoder, opened, temporary_folder
from llama_index_ziprerank.retrieval.replaced import GRACE, ReplacedImages
from llama_index_ziprerank.retrieval.store import PageFilter, PageRecord, PageStore, StoredPage, StoreError, Vectors
from llama_index_ziprerank.retrievers import (
    ColPaliRetriever,
    PagePayload,
    document_is,
    file_of,
    metadata_is,
    page_payload,
)

_TEXT_SIDE = 768  # pixels of the canvas for a document without an image: some 2,000 characters stay legible


class FeatureKeeper(Protocol):
    """What keeps a reranker's vision features of pages; `ZipRerankPostprocessor` is one."""

    def use_cache_dir(self, folder: str | Path) -> None:
        """Keep them in this folder, unless another was chosen."""

    def cache_cost(self, nodes: Iterable[BaseNode]) -> DiskCost:
        """Tell what is still to be written for these nodes; raise ValueError when nothing can be kept."""

    def cache_pages(self, nodes: Iterable[BaseNode]) -> int:
        """Compute and keep what is missing; return of how many nodes."""


class ColPaliIndex:
    """An index of page images, searched by late interaction.

    >>> index = ColPaliIndex.from_documents(PDFPageReader().load_data("manual.pdf"), persist_dir="manual-index")
    >>> index.as_retriever(similarity_top_k=5).retrieve("How is the toner changed?")

    One page is one document and one node, all with one id. Safe to use from several threads; one process at a time may
    have the folder open, unless the vectors are on a Qdrant server. Close it, or use it as a context manager.
    """

    def __init__(
        self,
        folder: IndexFolder,
        encoder: MultiVectorEncoder,
        store: PageStore,
        *,
        is_temporary: bool,
        allow_remote_images: bool = False,
        keeper: FeatureKeeper | None = None,
    ) -> None:
        """Use `from_documents` or `load`."""
        self.encoder = encoder
        """The model that makes the vectors of pages and of questions."""
        self.store = store
        """The vectors, and what is kept of each page beside them."""
        self.image_dir = folder.images
        """Folder of the page images."""
        self.feature_dir = folder.path / "features"
        """Folder of the vision features that `cache_features_for` keeps; made when the first is written."""
        self._folder = folder
        self._is_temporary = is_temporary
        self._process = os.getpid()
        self._remote = RemoteImages() if allow_remote_images else None
        self._keeper = keeper
        if keeper is not None and not is_temporary:
            keeper.use_cache_dir(self.feature_dir)
        self._writing = threading.RLock()
        self._has_leftovers = False
        self._replaced = ReplacedImages()
        if folder.is_locked and folder.was_interrupted:
            self._clear_up()

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        model: str | Path | MultiVectorEncoder = "nano",
        persist_dir: str | Path | None = None,
        store: PageStore | None = None,
        show_progress: bool = False,
        *,
        device: str | None = None,
        dtype: torch.dtype | str | None = None,
        pool_factor: int = 1,
        allow_remote_images: bool = False,
        cache_features_for: FeatureKeeper | None = None,
    ) -> Self:
        """Index documents, one page each; those without an image are drawn from their text.

        Args:
            documents: read one at a time, so a generator (`PDFPageReader().lazy_load_data`) keeps memory small.
            model: ``"nano"``, a folder, a name on the Hugging Face Hub, or a loaded encoder.
            persist_dir: the index's folder. When it holds an index of the same model, the documents are added to that,
                and those it already has are not encoded again. None: a temporary folder, which `close` removes.
            store: where the vectors go; default a Qdrant Edge store in the folder. The index closes it.
            show_progress: a progress bar.
            device, dtype, pool_factor: as `MultiVectorEncoder.from_pretrained`; ignored with a loaded encoder.
            allow_remote_images: fetch images that documents name by URL, now and when more are inserted: from public
                addresses only, up to 20 MB and 20 seconds each (`pages.remote.RemoteImages`).
            cache_features_for: a `ZipRerankPostprocessor` that will ask about these pages, and about those inserted
                later: its vision features of them are computed now. They are kept in its `cache_dir`; one that has none
                gets `feature_dir`, a folder inside `persist_dir`.

        Raises:
            TypeError: for what is no document; nodes go to `insert_nodes`, files to `PDFPageReader` first.
            ValueError: when `persist_dir` holds an index of another model, or files that are no index, or lies inside
                an index; for text that is no Unicode, and metadata that JSON cannot hold; and when
                `cache_features_for` keeps nothing.
            NodeImageError: when a document has an unreadable image, or neither image nor text.
            StoreError: when another process has the index open, its folder cannot be written, or is damaged.
        """
        nodes = page_nodes(documents)
        encoder = load_encoder(model, device, dtype, pool_factor)
        folder = IndexFolder(temporary_folder() if persist_dir is None else persist_dir)
        folder.finish_replacing()
        folder.check_free()
        with opened(folder, store) as open_store:
            begin(folder, describe(model, encoder, has_vectors=store is None), store)
            index = cls(
                folder,
                encoder,
                open_store(),
                is_temporary=persist_dir is None,
                allow_remote_images=allow_remote_images,
                keeper=cache_features_for,
            )
        try:
            index._add(nodes, show_progress, _length(documents))
        except BaseException:
            index.close()
            raise
        return index

    @classmethod
    def load(
        cls,
        persist_dir: str | Path,
        *,
        model: str | Path | MultiVectorEncoder | None = None,
        store: PageStore | None = None,
        device: str | None = None,
        dtype: torch.dtype | str | None = None,
        allow_remote_images: bool = False,
        cache_features_for: FeatureKeeper | None = None,
    ) -> Self:
        """Open an index, with the model that built it.

        `model` says where that model is now, when it moved. `store` is needed when the vectors are on a Qdrant server.
        `allow_remote_images`: as `from_documents`. `cache_features_for`: likewise, for pages inserted from now on; for
        those that are there call its `cache_pages` with `nodes`.

        Raises:
            FileNotFoundError: when the folder holds no index.
            ValueError: when `model` (or what is now at the old name) is another model, when a store is needed and
                missing, or when the index was written in another format.
            StoreError: when another process has the index open, its folder cannot be written, or is damaged.
        """
        folder = IndexFolder(persist_dir)
        folder.finish_replacing()
        folder.check_exists()
        with opened(folder, store) as open_store:
            manifest = folder.manifest()
            manifest.check_store(is_given=store is not None, folder=folder.path)
            chosen = manifest.model if model is None else model
            encoder = load_encoder(chosen, device, dtype, manifest.pool_factor)
            manifest.check_same_model(describe(chosen, encoder, has_vectors=manifest.has_vectors), folder.path)
            return cls(
                folder,
                encoder,
                open_store(),
                is_temporary=False,
                allow_remote_images=allow_remote_images,
                keeper=cache_features_for,
            )

    def insert(self, document: Document) -> None:
        """Index one document, replacing the one with its id; errors as `from_documents`."""
        self._add(page_nodes([document]))

    def insert_nodes(self, nodes: Sequence[BaseNode], show_progress: bool = False) -> None:
        """Index ready nodes (ImageNode, or TextNode to be drawn), replacing those with their ids.

        A Node with an `image_resource` becomes an ImageNode, a document what `insert` makes of it.

        Raises:
            TypeError: for anything else. Further errors as `from_documents`.
        """
        self._add(map(as_page_node, nodes), show_progress, len(nodes))

    def delete_ref_doc(self, ref_doc_id: str) -> None:
        """Remove a document, that is one page; unknown ids are no error. See `delete_file` for a whole PDF.

        Its image goes at once: a question that has found it and not read it yet fails, and can be asked again.
        """
        self._remove(document_is(ref_doc_id))

    def delete_file(self, file_path: str | Path) -> int:
        """Remove all pages whose metadata says that they are from this file; return how many there were.

        A page that another file holds too stays, as a page of that file alone. Images go at once, as by
        `delete_ref_doc`; `refresh_ref_docs` leaves them for ten minutes to the questions that are under way.
        """
        name = encodable(str(file_path))  # as the reader says it
        return self._remove(metadata_is(FILE_PATH, [name]), lambda page, path: path == name)

    def refresh_ref_docs(self, documents: Iterable[Document], show_progress: bool = False) -> list[bool]:
        """Bring the index up to date with these documents; return for each whether it was new or changed.

        A document that says what it said before is left alone. Of every file that the documents come from
        (``file_path``, a string or a path), all other pages are removed: a page's id changes when its PDF does. The
        pages of a file must therefore come together. Documents are read one at a time, so a generator will do; nothing
        is removed before the last one is stored. Errors as `from_documents`.
        """
        given: list[tuple[str, str | None]] = []

        def noted() -> Iterator[TextNode]:
            for node in page_nodes(documents):
                given.append((node.node_id, file_of(node.metadata)))
                yield node

        with self._writing:
            changed = self._add(noted(), show_progress, _length(documents))
            files, kept = {path for _, path in given if path is not None}, frozenset(given)
            self._remove(
                metadata_is(FILE_PATH, sorted(files)),
                lambda page, path: path in files and (page, path) not in kept,
                grace=GRACE,
            )
        return changed

    def nodes(self) -> Iterator[TextNode]:
        """Yield all pages, as the retriever returns them."""
        for page in self.store.pages():
            yield PagePayload.of(page).to_node(self.image_dir)

    @property
    def ref_doc_info(self) -> dict[str, RefDocInfo]:
        """The indexed documents: id → its nodes and metadata."""
        documents: dict[str, RefDocInfo] = {}
        for page in self.store.pages():
            info = documents.setdefault(page.document_id, RefDocInfo(metadata=PagePayload.of(page).copies[0]))
            info.node_ids.append(page.id)
        return documents

    def persist(self, persist_dir: str | Path | None = None) -> None:
        """Write a copy of the index to another folder, replacing an index there.

        An index with a folder of its own is always on disk already: with None, or its own folder, there is nothing to
        do. Vectors on a Qdrant server stay there.

        Whatever stops it, the other folder holds what it held before, or the whole new index.

        Raises:
            ValueError: when the folder holds something else than an index or lies inside one, or when None is given for
                a temporary one.
            StoreError: when the index there is open, or the folder cannot be written.
        """
        if persist_dir is None and self._is_temporary:
            raise ValueError("This index is in a temporary folder. Give persist(...) a folder to keep it in.")
        target = self._folder if persist_dir is None else IndexFolder(persist_dir)
        if target.path == self._folder.path:
            return
        target.finish_replacing()
        target.check_free()
        with self._writing, target.replacement() as new:
            self._copy_to(new)

    def as_retriever(self, similarity_top_k: int = 20, filters: MetadataFilters | None = None) -> ColPaliRetriever:
        """Return a retriever of the `similarity_top_k` best pages among those that pass `filters`."""
        return ColPaliRetriever(self, similarity_top_k=similarity_top_k, filters=filters)

    def as_query_engine(
        self,
        llm: LLM | None = None,
        similarity_top_k: int = 20,
        node_postprocessors: Sequence[BaseNodePostprocessor] | None = None,
        filters: MetadataFilters | None = None,
        *,
        response_mode: ResponseMode = ResponseMode.COMPACT,
        streaming: bool = False,
    ) -> RetrieverQueryEngine:
        """Return a query engine whose LLM sees the page images (and text) that the postprocessors leave.

        `llm` must be a chat model that reads images; the default is `Settings.llm`. For more choices call
        `RetrieverQueryEngine.from_args(index.as_retriever(), multimodal=True, ...)`.
        """
        return RetrieverQueryEngine.from_args(
            self.as_retriever(similarity_top_k, filters),
            llm=llm,
            node_postprocessors=list(node_postprocessors or []),
            response_mode=response_mode,
            streaming=streaming,
            multimodal=True,
        )

    def close(self) -> None:
        """Release the store, and remove the folder when it is temporary. Closing twice is fine.

        In a process that was forked off the one that opened the index there is nothing to do: it is still open there.
        """
        if os.getpid() != self._process:
            return
        with self._writing:
            try:
                self._forget_replaced(0)
            except (StoreError, OSError):  # closed, out of reach, not to be written: images wait for who opens it next
                self._has_leftovers = True
            try:
                self.store.close()
                if self._folder.is_locked and not self._has_leftovers:
                    self._folder.end_changes()
            finally:
                self._folder.release()
                if self._is_temporary:
                    shutil.rmtree(self._folder.path, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _add(self, nodes: Iterable[TextNode], show_progress: bool = False, total: int | None = None) -> list[bool]:
        """Index pages that are new or changed; return for each whether it was."""
        if self._keeper is not None:
            self._keeper.cache_cost(())  # one that can keep nothing says so now, not when all pages are encoded
        changed: list[bool] = []
        given: list[str] = []
        waiting: deque[_Waiting] = deque()

        def noted() -> Iterator[TextNode]:
            for node in nodes:
                given.append(node.node_id)
                yield node

        seen = get_tqdm_iterable(noted(), show_progress, "Encoding pages", total=total)
        with self._writing:
            with self._changes():
                try:
                    for vectors in self.encoder.stream_images(self._images_of_changed(seen, changed, waiting)):
                        self._store_page(waiting[0], vectors)
                        waiting.popleft()
                finally:  # what an error leaves here has an image, and no page
                    for page in waiting:
                        self._replaced.note(page.node.node_id, page.image_name)
            if self._keeper is not None:  # no page may go meanwhile: its features would be kept
                found = (self._stored(page_id) for page_id in given)
                pages = (page.to_node(self.image_dir) for page in found if page is not None)
                self._keeper.cache_pages(get_tqdm_iterable(pages, show_progress, "Vision features", total=len(given)))
        return changed

    def _store_page(self, page: "_Waiting", vectors: Vectors) -> None:
        """Store a page whose image is written.

        What is stored is looked up once more: a copy of the page may have waited in the same batch.
        """
        document_id = page.node.ref_doc_id or page.node.node_id
        payload = page_payload(page.node, document_id, page.image_name, page.digest)
        stored = self._stored(page.node.node_id)
        if stored is not None and stored.digest == page.digest:
            payload = stored.with_copy(page.node)
        self.store.add([PageRecord(page.node.node_id, document_id, vectors, asdict(payload))])
        if stored is not None and stored.image_name != page.image_name:
            self._replaced.note(page.node.node_id, stored.image_name)

    def _stored(self, page_id: str) -> PagePayload | None:
        return next((PagePayload.of(page) for page in self.store.fetch([page_id])), None)

    def _images_of_changed(
        self, nodes: Iterable[TextNode], changed: list[bool], waiting: "deque[_Waiting]"
    ) -> Iterator[Image.Image]:
        """Yield the images to encode, each already in the index's folder, and queue what their records need.

        A page whose content is stored already, from this file or another, needs its new metadata only; unless its
        image was lost, or another content of it waits to be stored: of one id, the last to come stays.
        """
        for node in nodes:
            digest = _digest(node)
            waits = any(page.node.node_id == node.node_id for page in waiting)
            stored = None if waits else self._stored(node.node_id)
            if stored is not None and stored.digest == digest and self._folder.has_image(stored.image_name):
                known = stored.with_copy(node)
                changed.append(known != stored)
                self._update(node.node_id, known if changed[-1] else None)
                continue
            changed.append(True)
            image, image_name = node_image(node, remote=self._remote), None
            if image is not None:
                image_name = self._folder.write_image(node.node_id, digest, encode_png(image))
            waiting.append(_Waiting(node, digest, image_name))
            yield page_image_or_rendered_text(node, text_size=_TEXT_SIDE) if image is None else image

    def _remove(
        self,
        page_filter: PageFilter,
        is_gone: Callable[[str, str | None], bool] = lambda page, path: True,
        *,
        grace: float = 0,
    ) -> int:
        """Remove what passes the filter: of each page the copies for whose id and path `is_gone`; return their number.

        A page goes with its last copy; its image, and all that wait for theirs to be over, `grace` seconds later.
        """
        gone: dict[str, str | None] = {}
        with self._changes():
            listed = ((page.id, PagePayload.of(page)) for page in self.store.pages(page_filter))
            found = [pair for pair in listed if any(is_gone(pair[0], file_of(copy)) for copy in pair[1].copies)]
            for page_id, payload in found:
                left = payload.without_copies(partial(is_gone, page_id))
                if left is None:
                    gone[page_id] = payload.image_name
                self._update(page_id, left)
            for page_id, image_name in gone.items():  # before, as a server may delete and then not say so
                self._replaced.note(page_id, image_name)
            self.store.delete(list(gone))
            self._forget_replaced(grace)
        return len(found)

    def _update(self, page_id: str, payload: PagePayload | None) -> None:
        """Replace what the store keeps of a page beside its vectors; with None do nothing."""
        if payload is not None:
            self.store.update([StoredPage(page_id, payload.ref_doc_id, asdict(payload))])

    def _forget_replaced(self, grace: float) -> None:
        """Remove the images that were replaced so many seconds ago, unless their pages have them again."""
        due = self._replaced.due(grace)
        if due:
            used = {PagePayload.of(page).image_name for page in self.store.fetch([page_id for page_id, _ in due])}
            self._remove_images(name for _, name in due if name not in used)
            self._replaced.forget(len(due))

    def _remove_images(self, names: Iterable[str]) -> None:
        """Remove page images, and what the folder keeps of their features."""
        names = list(names)
        with disk_errors(self._folder.path):
            if self.feature_dir.is_dir():
                forget_image_files(self.feature_dir, [self.image_dir / name for name in names])
            self._folder.remove_images(names)

    @contextmanager
    def _changes(self) -> Iterator[None]:
        """Change the index alone; what fails half-way is cleared up when the index is opened again."""
        with self._writing:
            if self._folder.is_locked:
                self._folder.begin_changes()
            try:
                self._forget_replaced(GRACE)
                yield
            except BaseException:
                self._has_leftovers = True
                raise

    def _clear_up(self) -> None:
        """Remove the images that a killed process wrote without their records, or left behind."""
        self._folder.sweep(self._image_names())
        self._folder.end_changes()

    def _image_names(self) -> set[str | None]:
        """Return the names of the images that pages have now."""
        return {PagePayload.of(page).image_name for page in self.store.pages()}

    def _copy_to(self, other: IndexFolder) -> None:
        manifest = self._folder.manifest()
        if isinstance(self.store, EdgeStore):
            manifest = replace(manifest, has_vectors=True)
        other.create(manifest)
        self._folder.copy_images_to(other)
        used = self._image_names()
        other.sweep(used)
        if self.feature_dir.is_dir():
            features = other.path / self.feature_dir.name
            with disk_errors(other.path):
                shutil.copytree(self.feature_dir, features, ignore=shutil.ignore_patterns("unfinished"))
            unused = [name for name in self._replaced.names if name not in used]
            forget_image_files(features, [self.image_dir / name for name in unused])
        if isinstance(self.store, EdgeStore):
            self.store.copy_to(other.store)


@dataclass(frozen=True)
class _Waiting:
    """A page whose image is written and whose vectors are not there yet."""

    node: TextNode
    digest: str
    image_name: str | None


def _length(documents: Iterable[Document]) -> int | None:
    return len(documents) if isinstance(documents, Sequence) else None


def _digest(node: TextNode) -> str:
    """Identify a page's content: text and image; of an image given by its path, the file's bytes."""
    parts = [node_text(node)]
    if isinstance(node, ImageNode):
        parts += [node.image or "", node.image_url or ""]
    digest = hashlib.sha256(json.dumps(parts).encode())
    if isinstance(node, ImageNode) and node.image_path and Path(node.image_path).is_file():
        digest.update(Path(node.image_path).read_bytes())
    return digest.hexdigest()
