from typing import Any

import pytest
import torch
from PIL import Image
from torch.overrides import TorchFunctionMode
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextDecoderLayer

from llama_index_ziprerank.reranking import ListwiseReranker, build_ranking_inputs
from llama_index_ziprerank.reranking.features import page_features
from llama_index_ziprerank.reranking.inputs import build_ranking_prompt, prepare_page
from llama_index_ziprerank.reranking.pruning import WindowInputs, window_inputs
from llama_index_ziprerank.reranking.scoring import identifier_logits, window_logits


class AttentionCalls(TorchFunctionMode):
    """Writes down the mask and the causal flag of each attention."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.Tensor | None, bool]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.seen.append((kwargs["attn_mask"], kwargs.get("is_causal", False)))
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
    with AttentionCalls() as calls:
        identifier_logits(reranker.model, windows)
    *whole, (mask, _) = calls.seen
    assert whole == [(None, True)] * (reranker.model.config.text_config.num_hidden_layers - 1)
    length = max(len(window.input_ids) for window in windows)
    assert mask is not None and mask.shape == (2, 1, 1, length)  # the last layer asks for one token of each window
    assert mask.sum(dim=-1).flatten().tolist() == [len(window.input_ids) for window in windows]


def test_a_last_layer_at_the_read_position_alone_changes_no_logit(
    reranker: ListwiseReranker, pages: list[Image.Image], mixed_pages: list[Image.Image]
) -> None:
    windows = [window_of(reranker, "axis", pages[:2], keep_ratio=0.5), window_of(reranker, "bar graph", mixed_pages)]
    ours = identifier_logits(reranker.model, windows)
    last = reranker.model.model.language_model.layers[-1]
    fast = type(last)
    assert fast is not Qwen3VLTextDecoderLayer
    last.__class__ = Qwen3VLTextDecoderLayer
    try:
        whole = identifier_logits(reranker.model, windows)
    finally:
        last.__class__ = fast
    torch.testing.assert_close(ours, whole, atol=1e-5, rtol=0)


def test_gradients_pass_through_the_last_layer_as_through_a_whole_one(
    reranker: ListwiseReranker, pages: list[Image.Image]
) -> None:
    window, layers = window_of(reranker, "axis", pages[:2]), reranker.model.model.language_model.layers
    fast = type(layers[-1])

    def gradients() -> list[torch.Tensor]:
        logits = window_logits(reranker.model, [window])[0]
        return list(torch.autograd.grad(logits.logsumexp(0), list(layers.parameters())))

    ours = gradients()
    layers[-1].__class__ = Qwen3VLTextDecoderLayer
    try:
        whole = gradients()
    finally:
        layers[-1].__class__ = fast
    torch.testing.assert_close(ours, whole, atol=1e-5, rtol=1e-3)


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
