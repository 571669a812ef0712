"""Looks around: a layer that sees the tokens at the left and above, and one that adds up what stands to the left."""

import math
from collections.abc import Iterable

import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextAttention, Qwen3VLTextDecoderLayer

from llama_index_ziprerank.training.nano.heads import IDLE, rows, sharpen, take_along
from llama_index_ziprerank.training.nano.layout import ANY, FIRST, LETTERS, MATCHED, VISUAL
from llama_index_ziprerank.training.nano.model import HEAD_WIDTH, HEADS, ROTARY_BASE

_AXES = ((3, 6), (1, 4), (2, 5))
"""Rotary pairs along time, rows and columns (interleaved M-RoPE) that tell neighbours apart."""

_STRENGTHS = ((0.5, 1.0), (3.0, 1.0), (3.0, 1.0))
"""How much each of `_AXES` counts."""

_LEFT, _UP = (0, 0, -1), (0, -1, 0)
"""(time, row, column) that the two heads of a neighbour layer look at first."""

_NEIGHBOUR_GAIN = 2.9
"""Gain of queries and keys: how sharply neighbours are told from others."""

_NO_NEIGHBOUR = 0.9
"""A token whose neighbours were pruned looks at the first one instead: that counts as this part of a neighbour."""

_WINDOW = ((5, 10.0), (1, 20.0), (4, 8.0), (6, 4.0), (9, 4.0), (12, 4.0))
"""Rotary pairs and how much they count: what is gathered comes from a page's own row, within some five columns."""

_WINDOW_MIDDLE = {5: -3}
"""Columns from a token to the middle of what it gathers: to its left, since a page is read in order."""

_GATHER_MILDNESS = 10.0
"""What the first token weighs against one that is gathered: so much that the sum counts, not the mean."""

_GATHERED = 0.33
"""Gain of what is gathered."""


@torch.no_grad()
def write_neighbours(attention: Qwen3VLTextAttention) -> None:
    """Let one head look at the token to the left and one at the token above; both at the previous word in text.

    Like a convolution that training turns into what it needs; the values start unread (`o_proj` is zero).
    """
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.normal_(std=0.01)
    for head, offset in zip(range(HEADS), (_LEFT, _UP), strict=True):
        for pairs, strengths, away in zip(_AXES, _STRENGTHS, offset, strict=True):
            for pair, strength in zip(pairs, strengths, strict=True):
                first, second = rows(head, pair)
                frequency = ROTARY_BASE ** (-pair / (HEAD_WIDTH // 2))
                in_text, on_page = torch.tensor(-frequency), torch.tensor(away * frequency)
                for row, turn in ((first, torch.cos), (second, torch.sin)):
                    attention.q_proj.weight[row, ANY] = strength**0.5 * turn(in_text)
                    attention.q_proj.weight[row, VISUAL] = strength**0.5 * (turn(on_page) - turn(in_text))
                attention.k_proj.weight[first, ANY] = strength**0.5
        away_from_all = rows(head, IDLE)[0]
        attention.q_proj.weight[away_from_all, ANY] = _NO_NEIGHBOUR * sum(sum(pair) for pair in _STRENGTHS) ** 0.5
        attention.k_proj.weight[away_from_all, FIRST] = 30  # so much that nothing else of the first token counts
    sharpen(attention, _NEIGHBOUR_GAIN)
    attention.o_proj.weight.zero_()


def freeze_looks(layers: Iterable[Qwen3VLTextDecoderLayer]) -> None:
    """Leave where layers look out of the training (circuit.py says why); what they make of it may learn."""
    for layer in layers:
        attention = layer.self_attn
        for part in (attention.q_proj, attention.k_proj, attention.q_norm, attention.k_norm):
            part.requires_grad_(False)


def write_gather(attention: Qwen3VLTextAttention) -> None:
    """Let the first head of visual tokens look at the tokens to their left in the same row, and at themselves."""
    head, total = 0, sum(strength for _, strength in _WINDOW)
    for pair, strength in _WINDOW:
        first, second = rows(head, pair)
        away = torch.tensor(_WINDOW_MIDDLE.get(pair, 0) * ROTARY_BASE ** (-pair / (HEAD_WIDTH // 2)))
        attention.q_proj.weight[first, VISUAL] = strength**0.5 * torch.cos(away)
        attention.q_proj.weight[second, VISUAL] = strength**0.5 * torch.sin(away)
        attention.k_proj.weight[first, VISUAL] = strength**0.5
    away_from_all = (total + math.log(_GATHER_MILDNESS)) / total**0.5
    idle = rows(head, IDLE)[0]
    attention.q_proj.weight[idle, [ANY, VISUAL]] = torch.tensor([100, away_from_all - 100])
    attention.k_proj.weight[idle, FIRST] = 30
    attention.o_proj.weight[LETTERS] = 0
    take_along(attention, head, MATCHED, MATCHED, _GATHERED * _GATHER_MILDNESS)
    length = (total + away_from_all**2) ** 0.5  # of a query; one of `_WINDOW` counts as one in the attention's logit
    sharpen(attention, (length * total**0.5 / HEAD_WIDTH**0.5) ** 0.5)
