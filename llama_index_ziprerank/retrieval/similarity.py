"""What the first stage saw on a page: how similar every patch is to a question (ColPali, arXiv:2407.01449, figure 3).

MaxSim adds, for every vector of the question, its best match among the page's vectors; a patch counts when it is such
a match. Letters: T vectors of the question, N vectors of the page (its patches and the few of its prompt), D width, R
rows and C columns of patches.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np
from PIL import Image

from llama_index_ziprerank.pages.patch_map import PatchMap
from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder, PatchVectors
from llama_index_ziprerank.retrieval.store import Vectors


class HasEncoder(Protocol):
    """A first stage that tells its model; `ColPaliIndex` and `ColPaliRetriever` do."""

    @property
    def encoder(self) -> MultiVectorEncoder:
        """The model that made the index's vectors."""


def similarity_maps(encoder: MultiVectorEncoder, question: str) -> Callable[[Image.Image], PatchMap | None]:
    """Return `similarity_map` for one question, which is encoded once."""
    return partial(similarity_map, encoder, encoder.encode_queries([question])[0])


def similarity_map(encoder: MultiVectorEncoder, query: Vectors, image: Image.Image) -> PatchMap | None:
    """Encode a page once more, and map its patches; ``query`` is (T, D), from ``encoder.encode_queries``.

    Vectors are never pooled here, so an index with a ``pool_factor`` may have scored the page a little differently.

    Returns:
        None for a model that cuts a page into tiles, whose patches form no single grid.
    """
    page = encoder.encode_patches(image)
    return None if page is None else map_patches(query, page)


def map_patches(query: Vectors, page: PatchVectors) -> PatchMap:
    """Map a page's patches: (R, C) how far a vector of the question finds them above the rest, (R, C) whether it chose
    them.

    From each vector's similarities its median on the page is taken, and the best is left of what remains. Without that
    the vectors that ask for no word (ColPali's augmentation tokens), like all paper alike, would outshine the others.
    """
    similarity = query @ page.vectors.T  # (T, N)
    counted = np.zeros(len(page.vectors), dtype=bool)
    counted[similarity.argmax(axis=1)] = True
    of_patches = similarity[:, page.is_patch]  # (T, R * C)
    values = (of_patches - np.median(of_patches, axis=1, keepdims=True)).max(axis=0)
    return PatchMap(values.astype(np.float32).reshape(page.shape), counted[page.is_patch].reshape(page.shape))
