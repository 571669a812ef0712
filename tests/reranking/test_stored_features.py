"""Features as a cache keeps them: what smaller types lose, and which files are believed."""

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from llama_index_ziprerank.pages.pdf import read_pages
from llama_index_ziprerank.reranking import ListwiseReranker, Ranking
from llama_index_ziprerank.reranking.features import PageFeatures
from llama_index_ziprerank.reranking.stored_features import TORCH_TYPES, FeatureShape, StoredFeatures, StoredRows


def _made_up(tokens: int = 6, seed: int = 0) -> PageFeatures:
    generator = torch.Generator().manual_seed(seed)
    merged, *layers = torch.randn(3, tokens, 8, generator=generator)
    return PageFeatures(merged, tuple(layers), (1, 4, tokens))


@pytest.mark.parametrize(("stored", "tolerance"), [("bfloat16", 2**-8), ("float16", 2**-11), ("int8", 1 / 252)])
def test_smaller_types_lose_no_more_than_their_rounding(stored, tolerance: float) -> None:
    features = _made_up()
    back = StoredFeatures.pack(features, stored).unpack(torch.float32, torch.device("cpu"))
    for ours, theirs in zip([back.merged, *back.deepstack], [features.merged, *features.deepstack], strict=True):
        rounded = theirs - theirs.mean(dim=0) if stored == "int8" else theirs
        largest = rounded.abs().amax(dim=-1, keepdim=True)
        assert ((ours - theirs).abs() <= tolerance * largest).all()


def test_a_large_number_takes_precision_from_its_own_group_of_int8_alone() -> None:
    rows = 0.01 * torch.randn(2, 64, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    rows[0, 40] = 2.0
    back = StoredRows.pack(rows, "int8").read(torch.float32, torch.device("cpu"))
    assert (back - rows)[0, :32].abs().max() < 0.01 / 126
    assert (back - rows)[0, 32:].abs().max() > 0.001


def test_int8_spends_nothing_on_what_all_rows_of_a_page_share() -> None:
    rows = 100 + torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    back = StoredRows.pack(rows, "int8").read(torch.float32, torch.device("cpu"))
    assert (back - rows).abs().max() < 5 / 254  # where 100 / 254 would be lost without the mean


@pytest.mark.parametrize("older", [{"scales": torch.ones(6, 1)}, {"mean": None}], ids="one-scale-a-row no-mean".split())
def test_an_int8_file_of_an_older_kind_is_written_again(older, tmp_path: Path) -> None:
    features = PageFeatures(torch.randn(6, 64), (torch.randn(6, 64), torch.randn(6, 64)), (1, 4, 6))
    stored, shape = StoredFeatures.pack(features, "int8"), FeatureShape(64, 2, 2)
    old = replace(stored, merged=replace(stored.merged, **older))
    for name, one in (("new", stored), ("old", old)):
        one.write(tmp_path / name, name, tmp_path)
    assert StoredFeatures.map(tmp_path / "new", "new", shape, "int8") is not None
    assert StoredFeatures.map(tmp_path / "old", "old", shape, "int8") is None


@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", TORCH_TYPES)
def test_every_type_is_stored_as_every_other(stored, computed: torch.dtype) -> None:
    rows = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).to(computed)
    back = StoredRows.pack(rows, stored).read(computed, torch.device("cpu"))
    assert back.dtype == computed
    assert (back.float() - rows.float()).abs().max() < 0.03


def test_features_without_deepstack_are_stored_as_int8_too(tmp_path: Path) -> None:
    stored = StoredFeatures.pack(PageFeatures(torch.randn(6, 64), (), (1, 4, 6)), "int8")
    stored.write(tmp_path / "page", "page", tmp_path)
    read = StoredFeatures.map(tmp_path / "page", "page", FeatureShape(64, 0, 2), "int8")
    assert read is not None and read.unpack(torch.float32, torch.device("cpu")).deepstack == ()


def test_numbers_that_float16_cannot_hold_and_rows_of_zeros_stay_finite() -> None:
    for computed in (torch.float32, torch.bfloat16):
        rows = torch.tensor([[1e6, -1e6], [0.0, 0.0]], dtype=computed)
        for stored in TORCH_TYPES:
            assert StoredRows.pack(rows, stored).read(torch.float32, torch.device("cpu")).isfinite().all()


def _ranked_exactly_and_from_int8(keep_ratio: float) -> Iterator[tuple[Ranking, Ranking]]:
    """Rank 100 random lists of eight of the demo's first 24 pages."""
    manual = Path(__file__).parents[2] / "demo" / "gle-manual-chapters-4-9.pdf"
    questions = [
        "set the line width",
        "draw a bar graph",
        "include a bitmap image",
        "define a subroutine",
        "axis titles",
    ]
    reranker = ListwiseReranker.from_pretrained("nano", device="cpu")
    exact = reranker.encode_pages([page.image for page in islice(read_pages(manual), 24)])
    int8 = [StoredFeatures.pack(page, "int8").unpack(torch.float32, torch.device("cpu")) for page in exact]
    chosen = random.Random(0)
    for _ in range(100):
        question, pages = chosen.choice(questions), chosen.sample(range(24), 8)
        exactly, rounded = ([features[i] for i in pages] for features in (exact, int8))
        yield reranker.rerank(question, exactly, keep_ratio), reranker.rerank(question, rounded, keep_ratio)


@pytest.mark.slow
def test_int8_features_keep_the_order_of_99_of_100_random_lists() -> None:
    same = 0
    for ranking, rounded in _ranked_exactly_and_from_int8(1.0):
        moved = max(abs(a - b) for a, b in zip(ranking.logits, rounded.logits, strict=True))
        assert moved < 0.05 * (max(ranking.logits) - min(ranking.logits))
        same += ranking.order == rounded.order
    assert same >= 99


@pytest.mark.slow
def test_int8_features_keep_every_first_page_where_tokens_on_the_edge_of_pruning_swap() -> None:
    pairs = [(ranking.order, rounded.order) for ranking, rounded in _ranked_exactly_and_from_int8(0.5)]
    assert all(order[0] == other[0] for order, other in pairs)
    assert sum(order == other for order, other in pairs) >= 85
