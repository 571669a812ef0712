"""What lies between a Qwen3-VL's matrix products, in fewer passes over memory; it computes the same.

Norms, rotary positions and activations wait for memory: transformers makes each of several operations, some on a copy
in float32. At the 8B shape these read and write 417 GB a question of 15,000 tokens, a quarter of a GPU's time. As in
`vision.py` modules change their class after loading; where gradients are recorded they are what they were.

Letters: B windows, L tokens of the longest, D width, W width of a head.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextAttention,
    Qwen3VLTextMLP,
    Qwen3VLTextRMSNorm,
    eager_attention_forward,
)

_CACHES = ("cache", "past_key_values")
"""What releases of transformers call the keys and values of what was read before; to write text needs them."""


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn heads by their rotary positions: the pairs of (..., W) are its first half and its second.

    ``cos`` and ``sin`` broadcast to (..., W). Where they are wider than ``heads``, as in the vision tower, the answer
    is computed so and rounded once.
    """
    (first, second), (cos_1, cos_2), (sin_1, sin_2) = (part.chunk(2, dim=-1) for part in (heads, cos, sin))
    if torch.is_grad_enabled():
        return torch.cat((first * cos_1 - second * sin_1, second * cos_2 + first * sin_2), dim=-1).to(heads.dtype)
    turned = torch.empty_like(heads)
    torch.addcmul(first * cos_1, second, sin_1, value=-1, out=turned[..., : first.shape[-1]])
    torch.addcmul(second * cos_2, first, sin_2, out=turned[..., first.shape[-1] :])
    return turned


class _Norm(Qwen3VLTextRMSNorm):
    """Root mean square norm in one kernel on a GPU, and without a second copy on a CPU."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., D)."""
        if torch.is_grad_enabled() or hidden_states.dtype != self.weight.dtype:
            return super().forward(hidden_states)
        if hidden_states.device.type != "cpu" or hidden_states.dtype != torch.float32:
            return functional.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)
        length = torch.linalg.vector_norm(hidden_states, dim=-1, keepdim=True)  # (..., 1)
        scale = torch.rsqrt(length.square() / hidden_states.shape[-1] + self.variance_epsilon)
        return (hidden_states * scale).mul_(self.weight)


class _Attention(Qwen3VLTextAttention):
    """Attention with `rotate`."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Do the same as the class that transformers has here: (..., D) -> (..., D) and the weights, if kept."""
        if torch.is_grad_enabled() or any(kwargs.get(name) is not None for name in _CACHES):
            return super().forward(hidden_states, position_embeddings, attention_mask, **kwargs)
        options = {name: option for name, option in kwargs.items() if name not in _CACHES}
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )  # (B, L, heads, W)
        cos, sin = (part[:, None] for part in position_embeddings)  # (B, 1, L, W)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attend(
            self,
            rotate(self.q_norm(query).transpose(1, 2), cos, sin),
            rotate(self.k_norm(key).transpose(1, 2), cos, sin),
            value.transpose(1, 2),
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **options,
        )
        return self.o_proj(output.flatten(2)), weights


class _FeedForward(Qwen3VLTextMLP):
    """Feed-forward layer whose product needs no memory of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., D)."""
        if torch.is_grad_enabled():
            return super().forward(x)
        return self.down_proj(functional.silu(self.gate_proj(x)).mul_(self.up_proj(x)))


def use_fewer_passes(model: nn.Module) -> None:
    """Make the layers of a Qwen3-VL language model, or a model that holds one, read and write memory less.

    Works in place, equal up to floating-point rounding, and safe to call twice; other models stay as they are.
    """
    for module in model.modules():
        if type(module) is Qwen3VLTextRMSNorm:
            module.__class__ = _Norm
        elif type(module) is Qwen3VLTextAttention:
            module.__class__ = _Attention
        elif type(module) is Qwen3VLTextMLP and vars(module)["config"].hidden_act == "silu":
            module.__class__ = _FeedForward
