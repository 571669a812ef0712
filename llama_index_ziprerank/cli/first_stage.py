"""The first stage of the image benchmarks: a `ColPaliIndex`, built as a user would build it."""

import base64
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from llama_index.core.schema import ImageDocument

    from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder


class IndexFirstStage:
    """Indexes images and asks the index: in `persist_dir`, where it can be continued, else in a temporary folder."""

    def __init__(self, retriever: str, persist_dir: Path | None = None) -> None:
        """Take the retriever's name; it is loaded with the first images."""
        self._retriever = retriever
        self._persist_dir = persist_dir

    def __call__(
        self, images: Iterable[tuple[str, Image.Image]], queries: Mapping[str, str], top_k: int
    ) -> dict[str, list[str]]:
        """Return query id → the ids of its `top_k` images, best first."""
        from llama_index_ziprerank import ColPaliIndex

        with ColPaliIndex.from_documents(_documents(images), self._encoder, self._persist_dir) as index:
            retriever = index.as_retriever(similarity_top_k=top_k)
            return {
                query_id: [found.node.node_id for found in retriever.retrieve(query)]
                for query_id, query in queries.items()
            }

    @cached_property
    def _encoder(self) -> "MultiVectorEncoder":
        from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder

        return MultiVectorEncoder.from_pretrained(self._retriever)


def _documents(images: Iterable[tuple[str, Image.Image]]) -> "Iterator[ImageDocument]":
    from llama_index.core.schema import ImageDocument

    from llama_index_ziprerank.pages.images import encode_png

    for name, image in images:
        encoded = base64.b64encode(encode_png(image)).decode()
        yield ImageDocument(id_=name, image=encoded, image_mimetype="image/png")
