from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_retriever import FAMILIES, colqwen3

from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder, PatchVectors
from llama_index_ziprerank.retrieval.similarity import map_patches, similarity_map, similarity_maps

TILED = ("ColIdefics3", "ColModernVBERT")
QUESTION = "set the line width of an axis"


@pytest.fixture(scope="module")
def page() -> Image.Image:
    path = Path(__file__).parents[1] / "data" / "parity" / "pages" / "small-012.png"
    return Image.open(path).convert("RGB")


def test_a_page_whose_vectors_are_known_is_mapped_by_hand() -> None:
    """Three patches in a row and one vector of the prompt, which is the best match of the second query vector."""
    vectors = np.array([[0.5, 0.1], [1.0, 0.2], [0.0, 0.3], [0.0, 0.9]], dtype=np.float32)
    page = PatchVectors(vectors, np.array([True, True, True, False]), (1, 3))

    mapped = map_patches(np.eye(2, dtype=np.float32), page)

    assert mapped.chosen.tolist() == [[False, True, False]]
    # above the medians of the patches, 0.5 and 0.2: the better of (0, -0.1), (0.5, 0) and (-0.5, 0.1)
    assert mapped.values.tolist() == [pytest.approx([0.0, 0.5, 0.1])]


def test_a_query_vector_that_likes_all_patches_alike_changes_nothing() -> None:
    vectors = np.array([[1.0, 0.5], [0.0, 0.5], [0.2, 0.5]], dtype=np.float32)
    page = PatchVectors(vectors, np.ones(3, dtype=bool), (3, 1))
    word, filler = np.array([[1.0, 0.0]], dtype=np.float32), np.array([[0.0, 1.0]], dtype=np.float32)

    alone, both = map_patches(word, page), map_patches(np.concatenate([word, filler]), page)

    assert both.values.max() == alone.values.max()
    assert (both.values.argmax(), both.values[2, 0]) == (0, 0)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # transformers' PaliGemmaProcessor
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_with_a_grid_of_patches_has_a_map(name: str, page: Image.Image, tmp_path: Path) -> None:
    encoder = MultiVectorEncoder.from_pretrained(str(FAMILIES[name][0](tmp_path)), "cpu")
    mapped = similarity_maps(encoder, QUESTION)(page)

    if name in TILED:
        assert mapped is None
        return
    assert mapped is not None
    patches = encoder.encode_patches(page)
    assert patches is not None
    assert mapped.values.size == patches.is_patch.sum() > 1
    assert 0 <= mapped.chosen.sum() <= len(encoder.encode_queries([QUESTION])[0])


@pytest.mark.parametrize("pool_factor", [1, 3])
def test_a_map_rests_on_the_vectors_that_an_unpooled_index_holds(
    pool_factor: int, page: Image.Image, tmp_path: Path
) -> None:
    folder = str(colqwen3(tmp_path))
    pooled = MultiVectorEncoder.from_pretrained(folder, "cpu", pool_factor=pool_factor).encode_patches(page)
    [stored] = MultiVectorEncoder.from_pretrained(folder, "cpu").encode_images([page])

    assert pooled is not None
    np.testing.assert_allclose(pooled.vectors, stored, atol=1e-6)


def test_a_wide_page_has_more_columns_than_rows(tmp_path: Path) -> None:
    encoder = MultiVectorEncoder.from_pretrained(str(colqwen3(tmp_path)), "cpu")
    query = encoder.encode_queries([QUESTION])[0]
    wide, tall = (similarity_map(encoder, query, Image.new("RGB", size, "white")) for size in [(96, 64), (64, 96)])

    assert wide is not None and tall is not None
    assert wide.values.shape == tall.values.shape[::-1] == (2, 3)
