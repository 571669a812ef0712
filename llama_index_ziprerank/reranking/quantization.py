"""Smaller weights for the language model, by torchao. The vision tower, the embeddings and the head stay as they are.

Weights get one scale a row; activations are rounded as they come, with one scale a token; products run in 8 bits.
"""

import importlib.util
from typing import Literal, get_args

import torch
from torch import nn
from transformers import Qwen3VLForConditionalGeneration

Quantization = Literal["int8", "fp8"]
"""``"int8"``: on CPUs and GPUs. ``"fp8"``: on GPUs of compute capability 8.9 or above (Ada, Hopper), in bfloat16."""

FP8_CAPABILITY = (8, 9)
"""The first GPUs that multiply fp8 numbers."""


def check_quantization(quantization: str | None) -> None:
    """Raise ValueError for an unknown name, ImportError where torchao is missing; None is no quantization."""
    if quantization is None:
        return
    if quantization not in get_args(Quantization):
        raise ValueError(
            f"quantization is one of {', '.join(map(repr, get_args(Quantization)))}, got {quantization!r}."
        )
    if importlib.util.find_spec("torchao") is None:
        raise ImportError(
            f"quantization={quantization!r} needs torchao, which is not installed. "
            "Install it: pip install 'llama-index-ziprerank[quantization]'"
        )


def quantize(model: Qwen3VLForConditionalGeneration, quantization: Quantization) -> None:
    """Replace the weights of the language model's layers, in place.

    Raises:
        ValueError: when the model's device or precision cannot do it.
    """
    from torchao.quantization import (  # optional, and slow to import
        Float8DynamicActivationFloat8WeightConfig,
        Int8DynamicActivationInt8WeightConfig,
        PerRow,
        quantize_,
    )

    if quantization == "fp8":
        _check_fp8(model)
        config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
    else:
        config = Int8DynamicActivationInt8WeightConfig()
    quantize_(model.model.language_model.layers, config, filter_fn=lambda module, _: isinstance(module, nn.Linear))


def _check_fp8(model: Qwen3VLForConditionalGeneration) -> None:
    device = model.device
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        raise ValueError(
            f"quantization='fp8' needs a GPU of compute capability {FP8_CAPABILITY[0]}.{FP8_CAPABILITY[1]} or above; "
            f"the model is on {device}. Use quantization='int8'."
        )
    if model.dtype != torch.bfloat16:
        raise ValueError(f"quantization='fp8' needs bfloat16, the model is {model.dtype}. Load with dtype='bfloat16'.")
