"""Rerankers to be measured: real Qwen3-VL shapes with random weights, or a checkpoint.

What a forward pass costs does not depend on what the weights say, so random ones are made where they are needed and
nothing is downloaded. Shapes: the published ``config.json`` of Qwen3-VL-2B, 4B and 8B-Instruct.
"""

import copy
from dataclasses import dataclass

import torch
from transformers import AutoModelForImageTextToText, Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from llama_index_ziprerank.checkpoints import EMBEDDED
from llama_index_ziprerank.reranking import ListwiseReranker
from llama_index_ziprerank.reranking.loading import default_device, load_processor, make_fast
from llama_index_ziprerank.reranking.quantization import Quantization, quantize


@dataclass(frozen=True)
class Shape:
    """What sets a Qwen3-VL apart from its sisters. Patches are 16 pixels a side, four of them a visual token."""

    width: int
    hidden: int
    """Width inside the language model's MLPs."""
    layers: int
    heads: int
    key_value_heads: int
    head_width: int
    vocabulary: int
    tied: bool
    """Whether the head is the embedding table."""
    vision_width: int
    vision_hidden: int
    vision_depth: int
    vision_heads: int
    deepstack: tuple[int, ...]
    """Layers of the tower that feed the language model's first ones."""


SHAPES = {
    "15m": Shape(384, 1152, 5, 6, 2, 64, 8_192, True, 192, 768, 3, 4, (1,)),
    "2b": Shape(2048, 6144, 28, 16, 8, 128, 151_936, True, 1024, 4096, 24, 16, (5, 11, 17)),
    "4b": Shape(2560, 9728, 36, 32, 8, 128, 151_936, True, 1024, 4096, 24, 16, (5, 11, 17)),
    "8b": Shape(4096, 12_288, 36, 32, 8, 128, 151_936, False, 1152, 4304, 27, 16, (8, 16, 24)),
}
"""By name. ``"15m"`` is for CPUs; as in the 8B model, about a third of the work is the tower's."""

_PACKAGE = __name__.split(".")[0]

_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

_PIXELS = {"shortest_edge": 65_536, "longest_edge": 16_777_216}
"""Fewest and most pixels of a page in Qwen3-VL's processor; nano's own allows fewer."""


def load_reranker(name: str, device: str | None = None, dtype: str | None = None, *, seed: int = 0) -> ListwiseReranker:
    """Make a random reranker of a shape in `SHAPES`, or load a checkpoint.

    Random ones read the prompt with nano's tokenizer: its ids are valid for every larger vocabulary.

    Args:
        name: a key of `SHAPES`, or what `ListwiseReranker.from_pretrained` takes.
        device: default: the best there is.
        dtype: default: float32 on a CPU, else bfloat16, or a checkpoint's own.
        seed: for the random weights.

    Raises:
        ValueError: for an unknown dtype, and what loading a checkpoint raises.
    """
    if name not in SHAPES:
        return ListwiseReranker.from_pretrained(name, device, dtype)
    if dtype is not None and dtype not in _TYPES:
        raise ValueError(f"dtype is one of {', '.join(map(repr, _TYPES))} for random weights, got {dtype!r}.")
    where = torch.device(device or default_device())
    precision = dtype or ("float32" if where.type == "cpu" else "bfloat16")
    processor = load_processor(EMBEDDED)
    processor.image_processor.size = _PIXELS
    model = random_model(configuration(SHAPES[name], processor), where, _TYPES[precision], seed)
    return ListwiseReranker(model, processor, name)


def configuration(shape: Shape, processor: Qwen3VLProcessor) -> Qwen3VLConfig:
    """Write a shape as transformers' configuration; the markers' ids are those of the processor's tokenizer."""
    half = shape.head_width // 2
    text = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "head_dim": shape.head_width,
        "max_position_embeddings": 262_144,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5_000_000,
            "mrope_section": [half * 3 // 8, half * 5 // 16, half * 5 // 16],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": shape.tied,
        "pad_token_id": 0,
    }
    vision = {
        "depth": shape.vision_depth,
        "hidden_size": shape.vision_width,
        "intermediate_size": shape.vision_hidden,
        "num_heads": shape.vision_heads,
        "out_hidden_size": shape.width,
        "deepstack_visual_indexes": list(shape.deepstack),
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        vision_start_token_id=processor.vision_start_token_id,
        vision_end_token_id=processor.vision_end_token_id,
        tie_word_embeddings=shape.tied,
    )


def random_model(
    config: Qwen3VLConfig, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> Qwen3VLForConditionalGeneration:
    """Make a model with random weights in place: no copy of them is ever elsewhere, or in another precision."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")
    make_fast(model)
    return model.eval()


def as_transformers_has_it(model: Qwen3VLForConditionalGeneration) -> Qwen3VLForConditionalGeneration:
    """Copy a model without its weights, which both share; the copy's classes are again transformers' own.

    Patches are embedded by a Conv3d, pages attend one after another, and the last layer works on every token: what
    `vision.py`, `elementwise.py` and `last_layer.py` changed is taken back.
    """
    twin = _copy_without_weights(model)
    for module in twin.modules():
        changed, original = type(module).__mro__[:2]
        if changed.__module__.startswith(_PACKAGE):
            module.__class__ = original
    return twin


def quantized(reranker: ListwiseReranker, quantization: Quantization) -> ListwiseReranker:
    """Copy a reranker; the copy's language model has smaller weights beside the full ones, all others are shared.

    Raises:
        ValueError: when the model's device or precision cannot do it.
    """
    model = _copy_without_weights(reranker.model)
    quantize(model, quantization)  # puts new weights where they are smaller, and leaves the shared ones alone
    return ListwiseReranker(model, reranker.processor, reranker.name)


def _copy_without_weights(model: Qwen3VLForConditionalGeneration) -> Qwen3VLForConditionalGeneration:
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
