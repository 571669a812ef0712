"""Make a Qwen vision tower fast without changing what it computes: modules change their class after loading.

Qwen2-VL, Qwen2.5-VL and Qwen3-VL cut a page into patches before the model sees it, then embed every patch with a
Conv3d whose kernel is exactly one patch. As a convolution this is 9 times slower than a Linear on a CPU, and on some
GPUs with bfloat16 it takes seconds a call (transformers#45750). The retriever and the reranker both load such towers.

Qwen3-VL's tower attends to one page after another, in every layer; pages of one size can attend as a batch.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLVisionAttention,
    Qwen3VLVisionModel,
    Qwen3VLVisionPatchEmbed,
    eager_attention_forward,
)
from transformers.utils.generic import is_flash_attention_requested
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from llama_index_ziprerank.elementwise import rotate


class _PatchProjection(nn.Conv3d):
    """A Conv3d that multiplies by its flattened kernel when its input is exactly one kernel large.

    Parameters keep their names and shapes, so state dicts load and save as before.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Letters: P patches, C channels, E width. (P, C, *kernel_size) -> (P, E, 1, 1, 1)."""
        if tuple(input.shape[2:]) != self.kernel_size:
            return super().forward(input)
        projected = functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)  # (P, E)
        return projected[:, :, None, None, None]


class _PatchEmbedding(Qwen3VLVisionPatchEmbed):
    """Reads a page once: it counts as two equal frames, which have one product with the sum of their kernels."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Letters: P patches, C channels, E width. (P, C * patch**2), or of two frames twice that, -> (P, E)."""
        if hidden_states.shape[-1] != self.in_channels * self.patch_size**2:
            return super().forward(hidden_states)
        kernel = self.proj.weight.sum(dim=2).flatten(1)  # (E, C * patch**2)
        return functional.linear(hidden_states.to(kernel.dtype), kernel, self.proj.bias)


class _PageLengths:
    """Patches of each page of one call of the tower: read from the device once, not in every layer."""

    def __init__(self) -> None:
        self._last: tuple[torch.Tensor | None, list[int]] = (None, [])  # one object, so that threads cannot mix two

    def of(self, boundaries: torch.Tensor) -> list[int]:
        """Return the distances between ``boundaries``, (pages + 1,)."""
        known, lengths = self._last
        if boundaries is not known:
            lengths = boundaries.diff().tolist()
            self._last = (boundaries, lengths)
        return lengths


class _BatchedAttention(Qwen3VLVisionAttention):
    """Attention within pages: neighbours of one size are one batch. FlashAttention reads pages of any sizes at once.

    Letters: L patches of all pages, P patches of one page, B pages of that size, H heads, W width of a head.
    """

    page_lengths: _PageLengths

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **kwargs: Any,
    ) -> torch.Tensor:
        """Do the same as the class that transformers has here: (L, H * W) -> (L, H * W)."""
        kwargs.pop("max_seqlen", None)
        lengths = self.page_lengths.of(cu_seqlens)
        heads = self.qkv(hidden_states).view(len(hidden_states), 3, self.num_heads, -1)
        cos, sin = (part[:, None, None] for part in position_embeddings)  # (L, 1, 1, W)
        query, key = rotate(heads[:, :2], cos, sin).unbind(1)
        parts = (query, key, heads[:, 2])  # each (L, H, W)
        if is_flash_attention_requested(self.config):
            kwargs |= {"cu_seq_lens_q": cu_seqlens, "cu_seq_lens_k": cu_seqlens}
            kwargs |= {"max_length_q": max(lengths), "max_length_k": max(lengths)}
            return self.proj(self._attend(parts, 1, **kwargs))
        runs = [(length, len(list(run))) for length, run in groupby(lengths)]
        pieces = zip(*(part.split([length * pages for length, pages in runs]) for part in parts), strict=True)
        outputs = [self._attend(piece, pages, **kwargs) for (_, pages), piece in zip(runs, pieces, strict=True)]
        return self.proj(torch.cat(outputs) if len(outputs) > 1 else outputs[0])

    def _attend(self, heads: Sequence[torch.Tensor], pages: int, **kwargs: Any) -> torch.Tensor:
        """Attend within each of ``pages`` equal parts: query, key and value, each (B * P, H, W) -> (B * P, H * W)."""
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        batch = [part.unflatten(0, (pages, -1)).transpose(1, 2) for part in heads]  # (B, H, P, W)
        output, _ = attend(
            self, *batch, attention_mask=None, scaling=self.scaling, dropout=0.0, is_causal=False, **kwargs
        )  # (B, P, H, W)
        return output.reshape(len(heads[0]), -1)


def use_linear_patch_embedding(vision_model: nn.Module) -> None:
    """Make every Conv3d that embeds single patches inside ``vision_model`` run as a matrix product.

    A Qwen3-VL tower also takes patches of one frame, (P, C * patch**2): half of what transformers would give it.

    Works in place, equal up to floating-point rounding, and safe to call twice. Accepts a vision tower or a
    whole model; towers without such a Conv3d (SigLIP embeds with a Conv2d over the whole image) stay as they are.
    """
    for module in vision_model.modules():
        if type(module) is nn.Conv3d and _embeds_single_patches(module):
            module.__class__ = _PatchProjection
        elif type(module) is Qwen3VLVisionPatchEmbed:
            module.__class__ = _PatchEmbedding


def use_batched_attention(vision_model: nn.Module) -> None:
    """Make pages of one size attend as a batch inside a Qwen3-VL tower, or a model that holds one.

    Works in place, equal up to floating-point rounding, and safe to call twice; other towers stay as they are.
    """
    lengths = _PageLengths()
    for module in vision_model.modules():
        if type(module) is Qwen3VLVisionAttention:
            module.__class__ = _BatchedAttention
            vars(module)["page_lengths"] = lengths


def run_on_part(
    tower: Qwen3VLVisionModel, pixel_values: torch.Tensor, grids: torch.Tensor, read: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Run a Qwen3-VL tower on some of the patches, each at its own place on the page.

    Letters: L patches of all pages, N pages, R patches that are read, D width of the language model.

    Args:
        tower: the vision tower.
        pixel_values: (L, pixels of a patch).
        grids: (N, 3) patches of each page along time, height and width.
        read: (L,) bool; the patches that merge into one visual token are read together or not at all.

    Returns:
        The merged features, (R / merge**2, D), and the same of each deepstack layer.
    """
    merge, device = tower.config.spatial_merge_size, pixel_values.device
    indices, weights = get_vision_interpolation_indices_and_weights(
        grids, tower.num_grid_per_side, tower.interpolation_mode, tower.interpolation_align_corners, merge
    )
    counts = torch.stack([part.sum() for part in read.split(grids.prod(dim=1).tolist())])  # (N,)
    output = tower(
        pixel_values[read.to(device)].to(tower.dtype),
        grid_thw=grids.to(device),
        interp_indices=indices[read].to(device),
        interp_weights=weights[read].to(device),
        position_ids=get_vision_position_ids(grids, merge)[read].to(device),
        cu_seqlens=functional.pad(counts.cumsum(0), (1, 0)).int().to(device),
        return_dict=True,
    )
    return output.pooler_output, output.deepstack_features


def _embeds_single_patches(convolution: nn.Conv3d) -> bool:
    return (
        convolution.kernel_size == convolution.stride
        and convolution.padding == (0, 0, 0)
        and convolution.dilation == (1, 1, 1)
        and convolution.groups == 1
    )
