"""Qwen3-VL's vision tower over a batch of equal-size gray crops: the training-time twin of its forward.

transformers walks images one by one in attention and convolves their patches; equal crops can do both as one matrix
product. The weights stay those of `Qwen3VLVisionModel`, so what is learned here loads there; a test holds both equal.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel, apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_position_ids


def patchify(gray: Tensor, patch: int, merge: int) -> Tensor:
    """Cut gray crops into patches, merge blocks together: (B, H, W) -> (B, P, patch * patch)."""
    batch, height, width = gray.shape
    side = patch * merge
    blocks = gray.view(batch, height // side, merge, patch, width // side, merge, patch)
    return blocks.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, -1, patch * patch)


def normalise(gray: Tensor) -> Tensor:
    """Map uint8 gray to the processor's range: 0..255 -> -1..1."""
    return gray.float() / 127.5 - 1.0


def tower_forward(tower: Qwen3VLVisionModel, gray: Tensor) -> tuple[Tensor, Tensor]:
    """Run the tower on normalised gray crops whose sides are multiples of patch * merge.

    B crops, P patches, M = P / merge² merged tokens: (B, H, W) -> patch states (B, P, D) and merged (B, M, D_out).
    The learned position grid is left out: nano keeps it at zero, reading does not depend on the place on the page.
    """
    config = tower.config
    batch, height, width = gray.shape
    patches = patchify(gray, config.patch_size, config.spatial_merge_size)
    convolution = tower.patch_embed.proj
    # Gray is the same in all channels and frames, so their kernels add up.
    kernel = convolution.weight.sum((1, 2)).flatten(1)
    hidden = F.linear(patches, kernel, convolution.bias)
    grid = torch.tensor([[1, height // config.patch_size, width // config.patch_size]], device=gray.device)
    cos, sin = tower.rotary_pos_emb(hidden, get_vision_position_ids(grid, config.spatial_merge_size))  # (P, head)
    for block in tower.blocks:
        normed = block.norm1(hidden)
        query, key, value = block.attn.qkv(normed).view(batch, -1, 3, config.num_heads, block.attn.head_dim).unbind(2)
        query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
        attended = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        hidden = hidden + block.attn.proj(attended.transpose(1, 2).flatten(2))
        hidden = hidden + block.mlp(block.norm2(hidden))
    merged = tower.merger(hidden.reshape(-1, hidden.shape[-1]))
    return hidden, merged.view(batch, -1, merged.shape[-1])


HEAD_OFFSETS = ((0, -1), (0, 1), (-1, 0), (1, 0))
"""(rows, columns) that the four heads look at before training: left, right, up, down."""

_LOCALITY = 6.0
"""Attention logit that each of the high rotary frequencies adds at a head's own offset before training."""

_FREQUENCIES = 5
"""Rotary frequencies of each axis that take part: together they tell offsets apart up to about 60 patches."""

_PATCH_STD = 0.24
"""Spread of the patch embedding before training: ink outweighs what the blocks add, or nothing is learned from it."""


@torch.no_grad()
def initialise_tower(tower: Qwen3VLVisionModel) -> None:
    """Let every head start as a look at one neighbour, and let white paper embed as zero.

    With biases alone, rotary attention scores are sums of cosines of the offset between two patches: a bias rotated to
    an offset makes the head attend there, like a convolution (in the spirit of ConViT, arXiv:2103.10697). From random
    initialisation attention is uniform over the page, and reading stays on a plateau for a long time.
    """
    width, head = tower.config.hidden_size, tower.blocks[0].attn.head_dim
    frequencies = tower.rotary_pos_emb.inv_freq[:_FREQUENCIES]
    strength = (_LOCALITY * head**0.5) ** 0.5
    for block in tower.blocks:
        query, key = torch.zeros(len(HEAD_OFFSETS), head), torch.zeros(len(HEAD_OFFSETS), head)
        for index, offset in enumerate(HEAD_OFFSETS):
            for axis in (0, 1):
                first = axis * (head // 4)  # rows' frequencies, then columns', each paired with head / 2 further on
                part = slice(first, first + _FREQUENCIES)
                pair = slice(first + head // 2, first + head // 2 + _FREQUENCIES)
                key[index, part] = strength
                query[index, part] = strength * torch.cos(offset[axis] * frequencies)
                query[index, pair] = strength * torch.sin(offset[axis] * frequencies)
        block.attn.qkv.bias[:width] = query.flatten()
        block.attn.qkv.bias[width : 2 * width] = key.flatten()
    convolution = tower.patch_embed.proj
    convolution.weight.normal_(std=_PATCH_STD)
    convolution.bias.copy_(-convolution.weight.sum((1, 2, 3, 4)))
    tower.pos_embed.weight.zero_()
