"""Laws for any input: copies of a page against a plain dictionary, a cache against none."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.schema import ImageNode, NodeRelationship, RelatedNodeInfo
from PIL import Image

from llama_index_ziprerank.reranking import ListwiseReranker
from llama_index_ziprerank.reranking.feature_cache import FeatureCache
from llama_index_ziprerank.retrievers import PagePayload, page_payload

PARITY = Path(__file__).parents[1] / "data" / "parity"

# Copies.

_PATHS = st.sampled_from(["a.pdf", "b.pdf", "c.pdf"])
_VALUES = st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.text(max_size=2), st.lists(st.integers(0, 2)))
_METADATA = st.dictionaries(st.sampled_from(["tag", "size", "date"]), _VALUES)
_STEPS = st.lists(st.tuples(_PATHS, st.one_of(st.none(), _METADATA)), min_size=1, max_size=8)


def _node(path: str, metadata: dict[str, object]) -> ImageNode:
    metadata = {"file_path": path, **metadata}
    source = RelatedNodeInfo(node_id="page", metadata=dict(metadata))
    return ImageNode(id_="page", text="text", metadata=metadata, relationships={NodeRelationship.SOURCE: source})


@given(_STEPS)
def test_copies_of_a_page_are_a_dictionary_by_path_the_last_one_shown(
    steps: list[tuple[str, dict[str, object] | None]],
) -> None:
    payload: PagePayload | None = None
    copies: dict[str, dict[str, object]] = {}
    for path, metadata in steps:
        if metadata is None:
            copies.pop(path, None)
            payload = None if payload is None else payload.without_copies(lambda there, path=path: there == path)
        else:
            node = _node(path, metadata)
            if copies.get(path) != node.metadata:
                copies = {path: node.metadata, **{other: there for other, there in copies.items() if other != path}}
            payload = page_payload(node, "page", "x.png", "d") if payload is None else payload.with_copy(node)
        assert (payload is None) == (not copies)
        if payload is not None:
            assert payload.copies == list(copies.values())
            shown = payload.to_node(Path("/images"))
            assert shown.metadata == payload.copies[0]
            assert shown.source_node is not None and shown.source_node.metadata == payload.copies[0]
            for copy in payload.copies:  # whatever a filter asks of one copy, the page has
                for key, value in copy.items():
                    there = payload.metadata[key]
                    wanted = value if isinstance(value, list) else [value]
                    assert all(one in (there if isinstance(there, list) else [there]) for one in wanted)


# The cache.


@pytest.fixture(scope="module")
def plain() -> ListwiseReranker:
    return ListwiseReranker.from_pretrained(str(PARITY / "checkpoint"), device="cpu")


@pytest.fixture(scope="module")
def pages() -> list[Image.Image]:
    names = [f"small-{number:03d}.png" for number in range(12, 17)]
    return [Image.open(PARITY / "pages" / name).convert("RGB").crop((0, 0, 96, 64)) for name in names]


@pytest.fixture(scope="module")
def alone(plain: ListwiseReranker, pages: list[Image.Image]) -> Callable[[tuple[int, ...]], list[float]]:
    """The logits of a list of pages without any cache, each list computed once."""
    known: dict[tuple[int, ...], list[float]] = {}

    def logits(chosen: tuple[int, ...]) -> list[float]:
        if chosen not in known:
            plain.cache = None
            known[chosen] = plain.rerank("line width", [pages[i] for i in chosen]).logits
        return known[chosen]

    return logits


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lists=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple), min_size=1, max_size=4),
    memory=st.sampled_from([0, 20_000, 2**30]),
    on_disk=st.booleans(),
)
def test_a_cache_of_any_size_changes_no_answer(
    plain: ListwiseReranker,
    pages: list[Image.Image],
    alone: Callable[[tuple[int, ...]], list[float]],
    tmp_path_factory: pytest.TempPathFactory,
    lists: list[tuple[int, ...]],
    memory: int,
    on_disk: bool,
) -> None:
    expected = [alone(chosen) for chosen in lists]
    plain.cache = FeatureCache(tmp_path_factory.mktemp("cache") if on_disk else None, memory_bytes=memory)
    for chosen, logits in zip(lists, expected, strict=True):
        assert plain.rerank("line width", [pages[i] for i in chosen]).logits == pytest.approx(logits, abs=1e-4)
