"""A small random retriever, loaded once for all that is asked of an index."""

from collections.abc import Callable, Iterator

import pytest
from tiny_retriever import colqwen3

from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(colqwen3(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="session")
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
