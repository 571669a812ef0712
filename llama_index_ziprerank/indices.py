"""`ColPaliIndex`: pages of documents in, a searchable folder out.

A page is written image first, record last, and a replaced image is removed after that: a crash leaves a page whole or
absent, and building again continues where it stopped. What the folder holds: `retrieval/folder.py`.
"""

import atexit
import hashlib
import json
import shutil
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from types import TracebackType

import torch
from llama_index.core.llms.llm import LLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import Document, ImageNode, TextNode
from llama_index.core.storage.docstore.types import RefDocInfo
from llama_index.core.utils import get_tqdm_iterable
from llama_index.core.vector_stores import MetadataFilters
from PIL import Image
from typing_extensions import Self

from llama_index_ziprerank.checkpoints import resolve_retriever
from llama_index_ziprerank.nodes import FILE_PATH, document_to_page_node, node_image, page_image_or_rendered_text
from llama_index_ziprerank.pages.images import encode_png
from llama_index_ziprerank.retrieval.edge import EdgeStore
from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder
from llama_index_ziprerank.retrieval.folder import IndexFolder, Manifest
from llama_index_ziprerank.retrieval.store import PageFilter, PageRecord, PageStore
from llama_index_ziprerank.retrievers import (
    ColPaliRetriever,
    PagePayload,
    document_is,
    metadata_is,
    page_payload,
)

_TEXT_SIDE = 768  # pixels of the canvas for a document without an image: some 2,000 characters stay legible


class ColPaliIndex:
    """An index of page images, searched by late interaction.

    >>> index = ColPaliIndex.from_documents(PDFPageReader().load_data("manual.pdf"), persist_dir="manual-index")
    >>> index.as_retriever(similarity_top_k=5).retrieve("How is the toner changed?")

    One page is one document and one node, all with one id. Safe to use from several threads; one process at a time may
    have the folder open. Close it, or use it as a context manager.
    """

    def __init__(
        self, folder: IndexFolder, encoder: MultiVectorEncoder, store: PageStore, *, is_temporary: bool
    ) -> None:
        """Use `from_documents` or `load`."""
        self.encoder = encoder
        self.store = store
        self.image_dir = folder.images
        self._folder = folder
        self._is_temporary = is_temporary
        self._writing = threading.RLock()

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        model: str | MultiVectorEncoder = "nano",
        persist_dir: str | Path | None = None,
        store: PageStore | None = None,
        show_progress: bool = False,
        *,
        device: str | None = None,
        dtype: torch.dtype | str | None = None,
        pool_factor: int = 1,
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

        Raises:
            ValueError: when `persist_dir` holds an index of another model, or files that are no index.
            NodeImageError: when a document has an unreadable image, or neither image nor text.
        """
        encoder = _encoder(model, device, dtype, pool_factor)
        folder = IndexFolder(_temporary_folder() if persist_dir is None else persist_dir)
        _begin(folder, _describe(model, encoder, has_vectors=store is None), store)
        index = cls(folder, encoder, store or EdgeStore(folder.store), is_temporary=persist_dir is None)
        try:
            index._add((document_to_page_node(document) for document in documents), show_progress, _length(documents))
        except BaseException:
            index.close()
            raise
        return index

    @classmethod
    def load(
        cls,
        persist_dir: str | Path,
        *,
        model: str | MultiVectorEncoder | None = None,
        store: PageStore | None = None,
        device: str | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> Self:
        """Open an index, with the model that built it.

        `model` says where that model is now, when it moved. `store` is needed when the vectors are on a Qdrant server.

        Raises:
            FileNotFoundError: when the folder holds no index.
            ValueError: when `model` (or what is now at the old name) is another model, when a store is needed and
                missing, or when the index was written in another format.
            StoreError: when another process has the index open.
        """
        folder = IndexFolder(persist_dir)
        manifest = folder.manifest()
        manifest.check_store(is_given=store is not None, folder=folder.path)
        chosen = manifest.model if model is None else model
        encoder = _encoder(chosen, device, dtype, manifest.pool_factor)
        manifest.check_same_model(_describe(chosen, encoder, has_vectors=manifest.has_vectors), folder.path)
        return cls(folder, encoder, store or EdgeStore(folder.store), is_temporary=False)

    def insert(self, document: Document) -> None:
        """Index one document, replacing the one with its id."""
        self._add([document_to_page_node(document)])

    def insert_nodes(self, nodes: Sequence[TextNode], show_progress: bool = False) -> None:
        """Index ready nodes (ImageNode, or TextNode to be drawn), replacing those with their ids."""
        self._add(nodes, show_progress, len(nodes))

    def delete_ref_doc(self, ref_doc_id: str) -> None:
        """Remove a document, that is one page; unknown ids are no error. See `delete_file` for a whole PDF."""
        self._remove(document_is(ref_doc_id))

    def delete_file(self, file_path: str | Path) -> int:
        """Remove all pages whose metadata says that they are from this file; return how many there were."""
        return self._remove(metadata_is(FILE_PATH, [str(file_path)]))

    def refresh_ref_docs(self, documents: Iterable[Document], show_progress: bool = False) -> list[bool]:
        """Bring the index up to date with these documents; return for each whether it was new or changed.

        A document whose id, text, image and metadata are as before is left alone. Of every file that the documents
        come from (``file_path``), all other pages are removed: a page's id changes when its PDF does. The pages of a
        file must therefore come together.
        """
        given: list[tuple[str, str | None]] = []

        def nodes() -> Iterator[TextNode]:
            for document in documents:
                given.append((document.id_, document.metadata.get(FILE_PATH)))
                yield document_to_page_node(document)

        with self._writing:
            changed = self._add(nodes(), show_progress, _length(documents))
            files = {path for _, path in given if path is not None}
            self._remove(metadata_is(FILE_PATH, sorted(files)), keep=frozenset(name for name, _ in given))
        return changed

    @property
    def ref_doc_info(self) -> dict[str, RefDocInfo]:
        """The indexed documents: id → its nodes and metadata."""
        documents: dict[str, RefDocInfo] = {}
        for page in self.store.pages():
            info = documents.setdefault(page.document_id, RefDocInfo(metadata=PagePayload.of(page).metadata))
            info.node_ids.append(page.id)
        return documents

    def persist(self, persist_dir: str | Path | None = None) -> None:
        """Write a copy of the index to another folder, replacing an index there.

        An index with a folder of its own is always on disk already: with None, or its own folder, there is nothing to
        do. Vectors on a Qdrant server stay there.

        Raises:
            ValueError: when the folder holds something else than an index, or when None is given for a temporary one.
        """
        if persist_dir is None and self._is_temporary:
            raise ValueError("This index is in a temporary folder. Give persist(...) a folder to keep it in.")
        target = self._folder if persist_dir is None else IndexFolder(persist_dir)
        if target.path == self._folder.path:
            return
        target.check_free()
        target.path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target.path.parent, prefix=".ziprerank-") as workplace, self._writing:
            new = IndexFolder(Path(workplace) / "new")
            self._copy_to(new)
            target.replace(new, old=Path(workplace) / "old")

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
        """Release the store, and remove the folder when it is temporary. Closing twice is fine."""
        with self._writing:
            self.store.close()
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
        changed: list[bool] = []
        waiting: deque[_Waiting] = deque()
        seen = get_tqdm_iterable(nodes, show_progress, "Encoding pages", total=total)
        with self._writing:
            for vectors in self.encoder.stream_images(self._images_of_changed(seen, changed, waiting)):
                page = waiting.popleft()
                document_id = page.node.ref_doc_id or page.node.node_id
                payload = page_payload(page.node, document_id, page.image_name, page.digest)
                self.store.add([PageRecord(page.node.node_id, document_id, vectors, payload)])
                self._folder.remove_images({page.replaced_image} - {page.image_name})
        return changed

    def _images_of_changed(
        self, nodes: Iterable[TextNode], changed: list[bool], waiting: "deque[_Waiting]"
    ) -> Iterator[Image.Image]:
        """Yield the images to encode, each already in the index's folder, and queue what their records need."""
        for node in nodes:
            digest = _digest(node)
            stored = [PagePayload.of(page) for page in self.store.fetch([node.node_id])]
            changed.append(not stored or stored[0].digest != digest)
            if not changed[-1]:
                continue
            image, image_name = node_image(node), None
            if image is not None:
                image_name = self._folder.write_image(node.node_id, digest, encode_png(image))
            waiting.append(_Waiting(node, digest, image_name, stored[0].image_name if stored else None))
            yield page_image_or_rendered_text(node, text_size=_TEXT_SIDE) if image is None else image

    def _remove(self, page_filter: PageFilter, keep: frozenset[str] = frozenset()) -> int:
        """Remove the documents that pass the filter and are not to be kept; return the number of pages."""
        with self._writing:
            pages = [page for page in self.store.pages(page_filter) if page.document_id not in keep]
            self.store.delete([page.document_id for page in pages])
            self._folder.remove_images(PagePayload.of(page).image_name for page in pages)
        return len(pages)

    def _copy_to(self, other: IndexFolder) -> None:
        manifest = self._folder.manifest()
        if isinstance(self.store, EdgeStore):
            manifest = replace(manifest, has_vectors=True)
        other.create(manifest)
        self._folder.copy_images_to(other)
        if isinstance(self.store, EdgeStore):
            self.store.copy_to(other.store)


@dataclass(frozen=True)
class _Waiting:
    """A page whose image is written and whose vectors are not there yet."""

    node: TextNode
    digest: str
    image_name: str | None
    replaced_image: str | None


def _encoder(
    model: str | MultiVectorEncoder, device: str | None, dtype: torch.dtype | str | None, pool_factor: int
) -> MultiVectorEncoder:
    if isinstance(model, MultiVectorEncoder):
        return model
    return MultiVectorEncoder.from_pretrained(model, device, dtype, pool_factor=pool_factor)


def _describe(model: str | MultiVectorEncoder, encoder: MultiVectorEncoder, *, has_vectors: bool) -> Manifest:
    name = encoder.name if isinstance(model, MultiVectorEncoder) else model
    if resolve_retriever(name) == name and Path(name).is_dir():
        name = str(Path(name).absolute())  # found from anywhere
    return Manifest(name, encoder.family, encoder.fingerprint, encoder.pool_factor, has_vectors)


def _begin(folder: IndexFolder, manifest: Manifest, store: PageStore | None) -> None:
    """Begin an index, or check that the one in the folder can be continued."""
    if folder.holds_index:
        folder.manifest().check_same_model(manifest, folder.path)
        folder.manifest().check_store(is_given=store is not None, folder=folder.path)
        return
    folder.check_free()
    if store is not None and (count := store.count()):
        raise ValueError(
            f"The store already holds {count} pages, whose images are in another folder. "
            "Give that folder as persist_dir, or use an empty store."
        )
    folder.create(manifest)


def _temporary_folder() -> str:
    """Make a folder that goes with the process at the latest: nodes may outlive an index that nobody closed."""
    path = mkdtemp(prefix="ziprerank-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def _length(documents: Iterable[Document]) -> int | None:
    return len(documents) if isinstance(documents, Sequence) else None


def _digest(node: TextNode) -> str:
    """Identify a page's content: text, metadata and image; of an image given by its path, the file's bytes."""
    metadata = json.dumps(node.metadata, sort_keys=True, default=str)
    digest = hashlib.sha256(f"{node.hash}\n{metadata}\n".encode(errors="surrogatepass"))
    if isinstance(node, ImageNode) and node.image_path and Path(node.image_path).is_file():
        digest.update(Path(node.image_path).read_bytes())
    return digest.hexdigest()
