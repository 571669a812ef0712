from typing import Any

import pytest
import torch
from PIL import Image
from torch.overrides import TorchFunctionMode

from llama_index_ziprerank.reranking import ListwiseReranker, build_ranking_inputs
from llama_index_ziprerank.reranking.features import page_features
from llama_index_ziprerank.reranking.inputs import build_ranking_prompt, prepare_page
from llama_index_ziprerank.reranking.pruning import WindowInputs, window_inputs
from llama_index_ziprerank.reranking.scoring import identifier_logits


class CausalCalls(TorchFunctionMode):
    """Writes down the mask and the causal flag of each attention over whole sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, bool]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.seen.append((kwargs["attn_mask"], kwargs["is_causal"]))
        return func(*args, **kwargs)


def window_of(
    reranker: ListwiseReranker, query: str, images: list[Image.Image], keep_ratio: float = 1.0
) -> WindowInputs:
    features = page_features(reranker.model, [prepare_page(reranker.processor, image) for image in images])
    prompt = build_ranking_prompt(reranker.processor, query, [page.grid for page in features])
    return window_inputs(reranker.model, prompt, features, keep_ratio=keep_ratio)


def test_keeping_every_visual_token_gives_the_logits_of_the_plain_forward(
    reranker: ListwiseReranker, mixed_pages: list[Image.Image]
) -> None:
    inputs = build_ranking_inputs(reranker.processor, "draw a bar graph", mixed_pages)
    with torch.no_grad():
        plain = reranker.model(
            input_ids=inputs.input_ids[None],
            attention_mask=torch.ones_like(inputs.input_ids[None]),
            mm_token_type_ids=inputs.mm_token_type_ids[None],
            pixel_values=inputs.pixel_values,
            image_grid_thw=inputs.image_grid_thw,
        ).logits[0, inputs.read_position, inputs.identifier_ids]
    [ours] = identifier_logits(reranker.model, [window_of(reranker, "draw a bar graph", mixed_pages)])
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)


def test_a_batch_of_windows_scores_as_each_alone(
    reranker: ListwiseReranker, pages: list[Image.Image], mixed_pages: list[Image.Image]
) -> None:
    windows = [
        window_of(reranker, "draw a bar graph", mixed_pages),
        window_of(reranker, "axis", pages[:1], keep_ratio=0.3),
        window_of(reranker, "set the line width and color of an axis", pages[5:9], keep_ratio=0.5),
    ]
    together = identifier_logits(reranker.model, windows)
    alone = [identifier_logits(reranker.model, [window])[0] for window in windows]
    assert [len(logits) for logits in together] == [3, 1, 4]
    for batched, single in zip(together, alone, strict=True):
        torch.testing.assert_close(batched, single, atol=1e-5, rtol=0)


def test_attention_never_holds_a_mask_of_all_token_pairs(reranker: ListwiseReranker, pages: list[Image.Image]) -> None:
    windows = [window_of(reranker, "axis", pages[:n], keep_ratio=0.5) for n in (1, 3)]
    with CausalCalls() as calls:
        identifier_logits(reranker.model, windows[:1])
        identifier_logits(reranker.model, windows)
    layers = reranker.model.config.text_config.num_hidden_layers
    assert calls.seen == [(None, True)] * 2 * layers


def test_gaps_left_by_pruning_do_not_part_the_sequence(reranker: ListwiseReranker, pages: list[Image.Image]) -> None:
    """Eager attention with an explicit causal mask over everything before is the reference."""
    window = window_of(reranker, "axis", pages[:3], keep_ratio=0.25)
    eager = ListwiseReranker.from_pretrained(reranker.name, device="cpu", attn_implementation="eager")
    [ours], [reference] = (identifier_logits(model, [window]) for model in (reranker.model, eager.model))
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=0)


def test_logits_that_are_not_numbers_are_an_error(reranker: ListwiseReranker, pages: list[Image.Image]) -> None:
    window = window_of(reranker, "axis", pages[:2])
    window.merged[0] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite in torch.float32"):
        identifier_logits(reranker.model, [window])
