"""Attention of half precision in a language model whose other parts keep float32: for training on a GPU.

Most of a list's time is attention, and float32 has no fast kernel for it. Half precision has as many digits as the
matrix products of a GPU take of float32 anyway (TF32): a logit of nano's ranker moves by 1 % of the spread in a list.
bfloat16 has too few: it moves by 9 %, and with bfloat16 everywhere by 96 %, so that another circuit would be trained.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, Qwen3VLForConditionalGeneration

LOSS_SCALE = 2048.0
"""Gradients of the loss times this fit half precision; divide them by it before they are used."""

_NAME = "half_precision"


def attend_in_half(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention, B rows of L tokens, H heads of width W: (B, H, L, W) -> (B, L, H, W) float32."""
    if attention_mask is not None:
        raise ValueError("Attention in half precision is causal and takes no mask; pad windows on the right.")
    states = scaled_dot_product_attention(query.half(), key.half(), value.half(), is_causal=True, scale=scaling)
    return states.float().transpose(1, 2).contiguous(), None


def use_half_attention(model: Qwen3VLForConditionalGeneration) -> None:
    """Let the language model attend so, in place; the tower stays as it is."""
    AttentionInterface.register(_NAME, attend_in_half)
    model.set_attn_implementation({"text_config": _NAME})
