"""The patch embedding as a matrix product is the same function as the Conv3d."""

import copy

import pytest
import torch
from torch import nn
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from llama_index_ziprerank.vision import use_linear_patch_embedding


def _qwen2() -> nn.Module:
    return Qwen2VisionTransformerPretrainedModel(
        Qwen2VLVisionConfig(depth=1, embed_dim=32, hidden_size=16, num_heads=2, patch_size=4)
    )


def _qwen2_5() -> nn.Module:
    return Qwen2_5_VisionTransformerPretrainedModel(
        Qwen2_5_VLVisionConfig(
            depth=1, hidden_size=32, out_hidden_size=16, num_heads=2, patch_size=4, intermediate_size=32, window_size=16
        )
    )


def _qwen3() -> nn.Module:
    return Qwen3VLVisionModel(
        Qwen3VLVisionConfig(
            depth=1,
            hidden_size=32,
            out_hidden_size=16,
            num_heads=2,
            patch_size=4,
            intermediate_size=32,
            num_position_embeddings=16,
            deepstack_visual_indexes=[0],
        )
    )


TOWERS = [_qwen2, _qwen2_5, _qwen3]


def _run(tower: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(24, 3 * 2 * 4 * 4, generator=generator)  # (patches, channels * time * height * width)
    with torch.no_grad():
        return tower(pixels, grid_thw=torch.tensor([[1, 4, 6]])).pooler_output


@pytest.mark.parametrize("build", TOWERS)
def test_a_tower_gives_the_same_features_after_the_swap(build) -> None:
    torch.manual_seed(0)
    tower = build().eval()
    before = _run(tower)
    use_linear_patch_embedding(tower)
    assert type(tower.patch_embed.proj) is not nn.Conv3d
    torch.testing.assert_close(_run(tower), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("build", TOWERS)
def test_the_state_dict_is_untouched_by_the_swap(build) -> None:
    tower = build()
    swapped = copy.deepcopy(tower)
    use_linear_patch_embedding(swapped)
    use_linear_patch_embedding(swapped)
    ours, theirs = swapped.state_dict(), tower.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    "other", [nn.Conv3d(2, 4, 2, stride=1), nn.Conv3d(2, 4, 2, stride=2, padding=1), nn.Conv3d(2, 4, 2, 2, groups=2)]
)
def test_a_convolution_that_is_not_a_patch_projection_stays(other: nn.Conv3d) -> None:
    use_linear_patch_embedding(nn.Sequential(other))
    assert type(other) is nn.Conv3d


def test_an_input_of_several_kernels_is_still_convolved() -> None:
    convolution = nn.Conv3d(2, 4, 2, stride=2)
    volume = torch.randn(3, 2, 4, 4, 4)
    expected = convolution(volume)
    use_linear_patch_embedding(nn.Sequential(convolution))
    torch.testing.assert_close(convolution(volume), expected)
