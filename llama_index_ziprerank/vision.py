"""Run a Qwen vision tower's patch embedding as the matrix product that it is.

Qwen2-VL, Qwen2.5-VL and Qwen3-VL cut a page into patches before the model sees it, then embed every patch with a
Conv3d whose kernel is exactly one patch. As a convolution this is 9 times slower than a Linear on a CPU, and on some
GPUs with bfloat16 it takes seconds a call (transformers#45750). The retriever and the reranker both load such towers.
"""

import torch
from torch import nn
from torch.nn import functional


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


def use_linear_patch_embedding(vision_model: nn.Module) -> None:
    """Make every Conv3d that embeds single patches inside ``vision_model`` run as a matrix product.

    Works in place, equal up to floating-point rounding, and safe to call twice. Accepts a vision tower or a
    whole model; towers without such a Conv3d (SigLIP embeds with a Conv2d over the whole image) stay as they are.
    """
    for module in vision_model.modules():
        if type(module) is nn.Conv3d and _embeds_single_patches(module):
            module.__class__ = _PatchProjection


def _embeds_single_patches(convolution: nn.Conv3d) -> bool:
    return (
        convolution.kernel_size == convolution.stride
        and convolution.padding == (0, 0, 0)
        and convolution.dilation == (1, 1, 1)
        and convolution.groups == 1
    )
