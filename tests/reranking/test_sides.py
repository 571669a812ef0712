"""Pages read at other sides than 1024 pixels, and at several."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from llama_index_ziprerank.pages.images import encode_png, open_image
from llama_index_ziprerank.reranking import ListwiseReranker, build_ranking_inputs
from llama_index_ziprerank.reranking.feature_cache import FeatureCache
from llama_index_ziprerank.reranking.inputs import pixel_bounds, prepare_page
from llama_index_ziprerank.reranking.page_keys import PageFile, visual_tokens
from llama_index_ziprerank.training.collator import RankingCollator
from llama_index_ziprerank.training.samples import RankingSample

QUERY = "How is a surface drawn?"


@pytest.fixture
def large(pages: list[Image.Image]) -> list[Image.Image]:
    return [page.resize((464, 656)) for page in pages[:7]]


def _at(reranker: ListwiseReranker, *sides: int, cache: FeatureCache | None = None) -> ListwiseReranker:
    return ListwiseReranker(reranker.model, reranker.processor, cache=cache, sides=sides)


def test_a_shorter_side_has_fewer_visual_tokens(reranker: ListwiseReranker, large: list[Image.Image]) -> None:
    doubled = [page.resize((768, 1024)) for page in large[:3]]
    tokens = {side: _at(reranker, side).rerank(QUERY, doubled).visual_tokens for side in (512, 1024)}
    assert tokens[1024] == 4 * tokens[512]


def test_the_default_side_is_that_of_the_papers_checkpoint(
    reranker: ListwiseReranker, large: list[Image.Image]
) -> None:
    assert reranker.sides == (1024,)
    assert _at(reranker, 1024).rerank(QUERY, large[:5]) == reranker.rerank(QUERY, large[:5])


@pytest.fixture
def with_own_side(reranker: ListwiseReranker, tmp_path: Path) -> ListwiseReranker:
    """A checkpoint that reads pages at 448 pixels, as it was saved."""
    processor = copy.deepcopy(reranker.processor)
    processor.image_processor.page_side = 448
    reranker.model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return ListwiseReranker.from_pretrained(str(tmp_path), device="cpu")


def test_a_checkpoint_may_have_a_side_of_its_own(
    reranker: ListwiseReranker, with_own_side: ListwiseReranker, large: list[Image.Image]
) -> None:
    assert with_own_side.sides == (448,)
    wanted = _at(reranker, 448).rerank(QUERY, large[:5])
    assert with_own_side.rerank(QUERY, large[:5]) == wanted
    assert with_own_side.rerank(QUERY, large[:5]) != reranker.rerank(QUERY, large[:5])
    own_way = build_ranking_inputs(with_own_side.processor, QUERY, large[:5])
    assert sum(own_way.visual_counts) == wanted.visual_tokens
    trained = RankingCollator(with_own_side.processor).row(RankingSample(QUERY, [*large[:5]], [0]))
    assert trained.prompt.image_grid_thw.tolist() == own_way.image_grid_thw.tolist()


def test_an_image_processors_bounds_are_those_of_its_own_side(
    reranker: ListwiseReranker, with_own_side: ListwiseReranker
) -> None:
    size = reranker.processor.image_processor.size
    assert pixel_bounds(with_own_side.processor, 448)["longest_edge"] == size["longest_edge"]
    assert pixel_bounds(with_own_side.processor, 224)["longest_edge"] == size["longest_edge"]
    assert pixel_bounds(with_own_side.processor, 896)["longest_edge"] == 4 * size["longest_edge"]


def test_a_checkpoints_side_may_be_left_open(with_own_side: ListwiseReranker, tmp_path: Path) -> None:
    own = tmp_path / "processor_config.json"
    own.write_text(own.read_text().replace('"page_side": 448', '"page_side": null'))
    assert ListwiseReranker.from_pretrained(str(tmp_path), device="cpu").sides == (1024,)


@pytest.mark.parametrize("side", [10, 1280.5, "large", 100_000])
def test_a_checkpoints_side_that_no_page_has_is_refused(
    with_own_side: ListwiseReranker, side: object, tmp_path: Path
) -> None:
    with_own_side.processor.image_processor.page_side = side
    with_own_side.processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"{side}\D"):
        ListwiseReranker.from_pretrained(str(tmp_path), device="cpu")


@pytest.mark.parametrize("side", [320, 1024, 1280, 2048])
def test_tokens_are_counted_as_they_are_made(reranker: ListwiseReranker, side: int) -> None:
    page = Image.new("RGB", (1600, 2200))
    rows, columns = prepare_page(reranker.processor, page, side).grid[1:]
    merge = reranker.processor.image_processor.merge_size
    assert visual_tokens(reranker.processor, page.size, side) == rows * columns // merge**2
    assert max(rows, columns) * reranker.processor.image_processor.patch_size == pytest.approx(side, rel=0.05)


@pytest.mark.parametrize("permutations", [1, 2])
def test_logits_of_several_sides_are_averaged(
    reranker: ListwiseReranker, large: list[Image.Image], permutations: int
) -> None:
    alone = [_at(reranker, side).rerank(QUERY, large[:6], 0.5, permutations=permutations) for side in (640, 448)]
    both = _at(reranker, 640, 448).rerank(QUERY, large[:6], 0.5, permutations=permutations)
    means = [sum(logits) / 2 for logits in zip(*(ranking.logits for ranking in alone), strict=True)]
    assert both.logits == pytest.approx(means, abs=1e-4)
    assert both.visual_tokens == sum(ranking.visual_tokens for ranking in alone)
    assert both.steps == 1


def test_long_lists_are_read_at_every_side(reranker: ListwiseReranker, large: list[Image.Image]) -> None:
    ranking = _at(reranker, 640, 448).rerank(QUERY, large[:7], window=4, stride=2)
    assert sorted(ranking.order) == list(range(7))
    alone = [_at(reranker, side).rerank(QUERY, large[:7], window=4, stride=2) for side in (640, 448)]
    assert ranking.visual_tokens == sum(other.visual_tokens for other in alone)


def test_every_side_is_cached(
    reranker: ListwiseReranker, large: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = _at(reranker, 640, 448).rerank(QUERY, large[:4])
    first = _at(reranker, 640, 448, cache=FeatureCache(tmp_path))
    cost = first.cache_cost(large[:4])
    assert first.cache_pages(large[:4]) == cost.pages == 4
    written = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    assert 0 < written <= cost.bytes
    again = _at(reranker, 640, 448, cache=FeatureCache(tmp_path))
    monkeypatch.setattr(again, "_prepare", None)  # the tower is not asked
    assert again.rerank(QUERY, large[:4]).logits == pytest.approx(wanted.logits, abs=1e-5)
    assert again.cache_cost(large[:4]).pages == 0


def test_a_cache_of_one_side_is_completed(reranker: ListwiseReranker, large: list[Image.Image]) -> None:
    cache = FeatureCache()
    _at(reranker, 640, cache=cache).cache_pages(large[:2])
    both = _at(reranker, 640, 448, cache=cache)
    assert both.cache_cost(large[:2]).bytes < _at(reranker, 640, cache=FeatureCache()).cache_cost(large[:2]).bytes
    assert both.cache_pages(large[:2]) == 2
    assert both.cache_cost(large[:2]).pages == 0


@pytest.mark.parametrize("ask", [ListwiseReranker.cache_pages, ListwiseReranker.encode_pages])
def test_a_page_known_at_one_side_is_looked_at_for_the_others_alone(
    ask: Callable[..., object], reranker: ListwiseReranker, large: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FeatureCache()
    _at(reranker, 448, cache=cache).encode_pages(large[:2])
    _at(reranker, 640, 320, cache=cache).encode_pages(large[2:3])
    every = _at(reranker, 640, 448, 320, cache=cache)
    looked: list[tuple[int, ...]] = []
    prepare = every._prepare
    monkeypatch.setattr(every, "_prepare", lambda page: looked.append(tuple(page[2])) or prepare(page))
    ask(every, large[:4])
    assert sorted(looked) == [(448,), (640, 320), (640, 320), (640, 448, 320)]
    wanted = _at(reranker, 640, 448, 320).rerank(QUERY, large[:4]).logits
    assert every.rerank(QUERY, large[:4]).logits == pytest.approx(wanted, abs=1e-5)


def test_a_file_is_decoded_once_for_all_sides(reranker: ListwiseReranker, large: list[Image.Image]) -> None:
    decoded: list[bytes] = []
    files = [
        PageFile(encode_png(page), lambda content: decoded.append(content) or open_image(content)) for page in large
    ]
    both = _at(reranker, 640, 448)
    assert both.rerank(QUERY, files[:3]) == both.rerank(QUERY, large[:3])
    assert len(decoded) == 3


def test_encoded_pages_know_their_sides(reranker: ListwiseReranker, large: list[Image.Image]) -> None:
    both = _at(reranker, 640, 448)
    encoded = both.encode_pages(large[:3])
    assert both.rerank(QUERY, encoded) == both.rerank(QUERY, large[:3])
    with pytest.raises(ValueError, match=r"encoded at \[1, 2\] sides"):
        both.rerank(QUERY, [*encoded, *_at(reranker, 640).encode_pages(large[3:4])])


@pytest.mark.parametrize("sides", [(), (1024, 1024), (100,), (1024, 9000)])
def test_impossible_sides_are_refused(reranker: ListwiseReranker, sides: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="from 256 to 4096"):
        _at(reranker, *sides)
