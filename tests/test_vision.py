"""A tower gives the same features after its modules were swapped, and reads a part of a page as that part."""

import copy

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from llama_index_ziprerank.vision import run_on_part, use_batched_attention, use_linear_patch_embedding


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


def _pages(*sizes: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    grids = torch.tensor([(1, *size) for size in sizes])
    pixels = torch.randn(int(grids.prod(dim=1).sum()), 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(0))
    return pixels, grids


def _tower(attention: str = "sdpa") -> Qwen3VLVisionModel:
    torch.manual_seed(0)
    tower = _qwen3().eval()
    tower.set_attn_implementation(attention)
    return tower


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "sizes",
    [[(4, 6)], [(4, 6)] * 3, [(4, 6), (4, 6), (2, 4), (6, 4)], [(2, 2), (4, 6), (2, 2)]],
    ids=["one", "equal", "runs", "mixed"],
)
def test_pages_that_attend_as_a_batch_have_the_features_they_had(attention: str, sizes: list[tuple[int, int]]) -> None:
    pixels, grids = _pages(*sizes)
    tower = _tower(attention)
    with torch.no_grad():
        before = tower(pixels, grid_thw=grids)
        use_batched_attention(tower)
        after = tower(pixels, grid_thw=grids)
    torch.testing.assert_close(after.pooler_output, before.pooler_output, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(after.deepstack_features, before.deepstack_features, rtol=1e-5, atol=1e-6)


def test_flash_attention_reads_pages_of_any_sizes_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[int]] = []

    def flash(module: nn.Module, *heads: torch.Tensor, cu_seq_lens_q: torch.Tensor, **options):
        """Attend within the stretches that the boundaries give, (1, H, L, W) -> (1, L, H, W)."""
        lengths = cu_seq_lens_q.diff().tolist()
        calls.append([*lengths, int(options["max_length_q"]), int(options["max_length_k"])])
        assert torch.equal(options["cu_seq_lens_k"], cu_seq_lens_q) and options["is_causal"] is False
        pieces = zip(*(part.split(lengths, dim=2) for part in heads), strict=True)
        attended = [torch.nn.functional.scaled_dot_product_attention(*p, scale=options["scaling"]) for p in pieces]
        return torch.cat(attended, dim=2).transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", flash)
    tower = _tower()
    pixels, grids = _pages((4, 6), (4, 6), (2, 4))
    with torch.no_grad():
        expected = tower(pixels, grid_thw=grids)
        use_batched_attention(tower)
        tower.config._attn_implementation = "flash_attention_2"
        after = tower(pixels, grid_thw=grids)
    assert calls == [[24, 24, 8, 24, 24]]
    torch.testing.assert_close(after.pooler_output, expected.pooler_output, rtol=1e-5, atol=1e-6)


def test_equal_pages_attend_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def counted(query: torch.Tensor, *arguments, **options) -> torch.Tensor:
        batches.append(len(query))
        return attend(query, *arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    tower = _tower()
    use_batched_attention(tower)
    pixels, grids = _pages((4, 6), (4, 6), (4, 6), (2, 4))
    with torch.no_grad():
        tower(pixels, grid_thw=grids)
    assert batches == [3, 1]


def test_a_tower_can_be_trained_copied_and_saved_after_the_swap() -> None:
    tower = _tower()
    plain = copy.deepcopy(tower)
    use_batched_attention(tower)
    use_batched_attention(tower)
    pixels, grids = _pages((4, 6), (4, 6))
    for one in (tower, plain):
        one(pixels, grid_thw=grids).pooler_output.square().sum().backward()
    gradients = zip(tower.named_parameters(), plain.parameters(), strict=True)
    for (name, ours), theirs in gradients:
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=name)
    assert copy.deepcopy(tower).state_dict().keys() == plain.state_dict().keys()


def test_a_part_that_is_the_whole_has_the_features_of_the_whole() -> None:
    pixels, grids = _pages((4, 6), (2, 4))
    tower = _tower()
    with torch.no_grad():
        whole = tower(pixels, grid_thw=grids)
        merged, deepstack = run_on_part(tower, pixels, grids, torch.ones(len(pixels), dtype=torch.bool))
    assert torch.equal(merged, whole.pooler_output)
    assert torch.equal(deepstack[0], whole.deepstack_features[0])


def test_a_part_knows_its_place_and_sees_nothing_of_the_rest() -> None:
    pixels, grids = _pages((4, 6), (2, 4))
    tower = _tower()
    read = torch.ones(len(pixels), dtype=torch.bool)
    read[4:12] = False  # the second and third visual token of the first page
    other = pixels.clone()
    other[~read] = 7.0
    with torch.no_grad():
        merged, _ = run_on_part(tower, pixels, grids, read)
        again, _ = run_on_part(tower, other, grids, read)
        whole = tower(pixels, grid_thw=grids).pooler_output
    assert merged.shape == (6, 16)
    assert torch.equal(again, merged)
    torch.testing.assert_close(merged[4:], whole[6:])  # the second page was read as a whole


def test_the_same_patches_at_another_place_have_other_features() -> None:
    pixels, grids = _pages((4, 6))
    pixels[4:8] = pixels[0:4]
    first, second = torch.zeros(2, 24, dtype=torch.bool)
    first[0:4], second[4:8] = True, True
    tower = _tower()
    with torch.no_grad():
        here, there = (run_on_part(tower, pixels, grids, read)[0] for read in (first, second))
    assert not torch.allclose(here, there, atol=1e-4)
