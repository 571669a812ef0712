"""The last layer works at the read position alone: nothing looks at what it would make of the other tokens.

Keys and values are those of all tokens; the query, the output projection and the MLP are one token's. Exact, and one
layer's work less: a fifth of the 15M shape's language model, a thirty-sixth of an 8B one's. Like the towers in
`vision.py` the layer changes its class after loading; called without ``read_positions``, as in training or to write
text, it is what it was.

Letters: B windows, L tokens of the longest, D width, K key-value heads, G query heads to each of these, W width of a
head.
"""

from typing import Any

import torch
from torch.nn import functional
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextDecoderLayer

from llama_index_ziprerank.elementwise import rotate


class _LastLayer(Qwen3VLTextDecoderLayer):
    """A decoder layer that can leave out what is not read."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        read_positions: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Do the same as transformers' layer, (B, L, D) -> (B, L, D), or at (B,) positions: -> (B, 1, D).

        Windows are padded on the right, if at all: what lies behind the read position is not looked at.
        """
        if read_positions is None:
            return super().forward(hidden_states, position_embeddings, attention_mask, **kwargs)
        rows = torch.arange(len(hidden_states), device=hidden_states.device)
        read = hidden_states[rows, read_positions][:, None]  # (B, 1, D)
        attended = self._attend(hidden_states, read_positions, rows, position_embeddings)
        read = read + attended
        return read + self.mlp(self.post_attention_layernorm(read))

    def _attend(
        self,
        hidden_states: torch.Tensor,
        read_positions: torch.Tensor,
        rows: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        attention = self.self_attn
        normed = self.input_layernorm(hidden_states)  # (B, L, D)
        read = normed[rows, read_positions][:, None]  # (B, 1, D)
        query, key, value = (
            projection(states).unflatten(-1, (-1, attention.head_dim))
            for projection, states in ((attention.q_proj, read), (attention.k_proj, normed), (attention.v_proj, normed))
        )
        cos, sin = (part[:, None] for part in position_embeddings)  # (B, 1, L, W)
        at_read = (cos[rows, :, read_positions][:, None], sin[rows, :, read_positions][:, None])  # (B, 1, 1, W)
        query = rotate(attention.q_norm(query).transpose(1, 2), *at_read)  # (B, K * G, 1, W)
        key = rotate(attention.k_norm(key).transpose(1, 2), cos, sin)  # (B, K, L, W)
        groups = query.view(len(rows), key.shape[1], -1, attention.head_dim)  # (B, K, G, W): the heads of one key
        columns = torch.arange(key.shape[2], device=key.device)
        seen = (columns <= read_positions[:, None])[:, None, None]  # (B, 1, 1, L)
        output = functional.scaled_dot_product_attention(
            groups, key, value.transpose(1, 2), attn_mask=seen, scale=attention.scaling
        )  # (B, K, G, W)
        return attention.o_proj(output.flatten(1)[:, None])


def use_last_layer_at_read_position(model: Qwen3VLForConditionalGeneration) -> None:
    """Have the last layer take ``read_positions``, in place; safe to call twice.

    Where deepstack features are added behind the last layer too, it stays as it is: these are of whole rows.
    """
    layers = model.model.language_model.layers
    if len(layers) > len(model.config.vision_config.deepstack_visual_indexes):
        if type(layers[-1]) is Qwen3VLTextDecoderLayer:
            layers[-1].__class__ = _LastLayer
