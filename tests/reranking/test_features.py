import copy
import threading
import time
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from llama_index_ziprerank.reranking import ListwiseReranker, build_ranking_inputs
from llama_index_ziprerank.reranking.features import blank_tokens, page_features, prepared_ahead
from llama_index_ziprerank.reranking.inputs import pixel_values, prepare_page


def test_a_page_has_the_same_features_alone_and_in_any_batch(
    reranker: ListwiseReranker, mixed_pages: list[Image.Image]
) -> None:
    pages = [prepare_page(reranker.processor, page) for page in mixed_pages]
    together = page_features(reranker.model, pages)
    in_pairs = page_features(reranker.model, pages, patches_per_call=sum(len(p.pixels) for p in pages[:2]))
    alone = page_features(reranker.model, iter(pages), patches_per_call=1)
    for a, b, c in zip(together, in_pairs, alone, strict=True):
        assert a.grid == b.grid == c.grid
        torch.testing.assert_close(a.merged, c.merged)
        torch.testing.assert_close(b.merged, c.merged)
        torch.testing.assert_close(a.deepstack, c.deepstack)


def test_features_are_those_of_the_plain_tower(reranker: ListwiseReranker, mixed_pages: list[Image.Image]) -> None:
    inputs = build_ranking_inputs(reranker.processor, "line width", mixed_pages[:1])
    [features] = page_features(reranker.model, [prepare_page(reranker.processor, mixed_pages[0])])
    with torch.no_grad():
        plain = reranker.model.get_image_features(inputs.pixel_values, inputs.image_grid_thw)
    torch.testing.assert_close(features.merged, plain.pooler_output[0])
    assert len(features.deepstack) == 3
    for ours, theirs in zip(features.deepstack, plain.deepstack_features, strict=True):
        torch.testing.assert_close(ours, theirs[0])


@pytest.mark.parametrize(
    "changed", [{}, {"do_normalize": False}, {"image_mean": [0.1, 0.2, 0.3]}, {"do_rescale": False}]
)
@pytest.mark.parametrize("kind", [Qwen2VLImageProcessor, Qwen2VLImageProcessorPil])
def test_bytes_become_what_the_processor_makes_of_pixels(
    kind: type, changed: dict[str, Any], reranker: ListwiseReranker, mixed_pages: list[Image.Image]
) -> None:
    processor = copy.deepcopy(reranker.processor)
    processor.image_processor = kind(**processor.image_processor.to_dict())
    for name, value in changed.items():
        setattr(processor.image_processor, name, value)
    page = prepare_page(processor, mixed_pages[0])
    frames = build_ranking_inputs(processor, "line width", mixed_pages[:1]).pixel_values.unflatten(1, (3, 2, -1))
    assert page.pixels.dtype == torch.uint8
    for frame in (0, 1):
        torch.testing.assert_close(pixel_values([page], torch.device("cpu")), frames[:, :, frame].flatten(1))


def test_pages_are_prepared_in_order_and_beside_who_reads_them() -> None:
    threads: set[str] = set()

    def prepare(item: int) -> int:
        threads.add(threading.current_thread().name)
        time.sleep(0.001 * (item % 3))
        return item * item

    assert list(prepared_ahead(prepare, range(20))) == [item * item for item in range(20)]
    assert list(prepared_ahead(prepare, iter(()))) == []
    assert threading.current_thread().name not in threads


def test_no_more_pages_are_prepared_than_allowed_ahead_of_who_reads() -> None:
    taken: list[int] = []

    def items():
        for item in range(10):
            taken.append(item)
            yield item

    reader = prepared_ahead(lambda item: item, items(), ahead=3)
    assert next(reader) == 0
    assert taken == [0, 1, 2, 3]
    reader.close()


def test_a_page_that_cannot_be_prepared_fails_in_its_turn() -> None:
    def prepare(item: int) -> int:
        if item == 2:
            raise ValueError("page 2")
        return item

    reader = prepared_ahead(prepare, range(5))
    assert [next(reader), next(reader)] == [0, 1]
    with pytest.raises(ValueError, match="page 2"):
        next(reader)


def _half_blank(page: Image.Image) -> Image.Image:
    """The page, with as much white below it."""
    canvas = Image.new("RGB", (page.width, 2 * page.height), "white")
    canvas.paste(page)
    return canvas


def test_blank_is_what_shows_the_background_alone(reranker: ListwiseReranker) -> None:
    sheet = Image.new("RGB", (256, 256), (250, 240, 230))
    sheet.paste((0, 0, 0), (130, 100, 131, 101))  # one dark pixel
    page = prepare_page(reranker.processor, sheet)
    merge = reranker.model.config.vision_config.spatial_merge_size
    blank = blank_tokens(page, merge)
    side = reranker.model.config.vision_config.patch_size * merge
    assert blank.shape == (page.grid[1] * page.grid[2] // merge**2,)
    marked = blank.logical_not().nonzero()[:, 0].tolist()
    assert (100 // side) * (256 // side) + 130 // side in marked
    assert len(marked) <= 4  # the resize may smear the pixel over its neighbours


def test_leaving_blank_out_reads_less_and_keeps_what_is_written(
    reranker: ListwiseReranker, pages: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    tower = reranker.model.model.visual
    embed = tower.patch_embed.forward
    monkeypatch.setattr(tower.patch_embed, "forward", lambda pixels: (sizes.append(len(pixels)), embed(pixels))[1])
    prepared = [prepare_page(reranker.processor, _half_blank(page)) for page in pages[:2]]
    whole = page_features(reranker.model, prepared)
    part = page_features(reranker.model, prepared, skip_blank=True)
    assert sizes[1] < 0.6 * sizes[0]
    for ours, theirs, page in zip(part, whole, prepared, strict=True):
        assert ours.grid == theirs.grid
        assert ours.merged.shape == theirs.merged.shape
        assert [layer.shape for layer in ours.deepstack] == [layer.shape for layer in theirs.deepstack]
        blank = blank_tokens(page, 2)
        assert len(ours.merged[blank].unique(dim=0)) == 1
        assert len(ours.merged[~blank].unique(dim=0)) == int((~blank).sum())


def test_a_page_without_blank_parts_has_the_features_it_has(reranker: ListwiseReranker) -> None:
    noise = Image.effect_noise((200, 264), 100).convert("RGB")
    prepared = [prepare_page(reranker.processor, noise)]
    assert not blank_tokens(prepared[0], 2).any()
    [whole], [part] = page_features(reranker.model, prepared), page_features(reranker.model, prepared, skip_blank=True)
    torch.testing.assert_close(part.merged, whole.merged)
    torch.testing.assert_close(part.deepstack, whole.deepstack)


def test_an_empty_page_is_read_as_one_token(reranker: ListwiseReranker) -> None:
    page = prepare_page(reranker.processor, Image.new("RGB", (200, 264), "white"))
    [features] = page_features(reranker.model, [page], skip_blank=True)
    assert len(features.merged.unique(dim=0)) == 1 and features.merged.isfinite().all()
