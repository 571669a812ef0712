"""A language model computes the same after its modules were swapped, and reads and writes memory less."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache, Qwen3VLTextConfig, Qwen3VLTextModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb, apply_rotary_pos_emb_vision

from llama_index_ziprerank.elementwise import rotate, use_fewer_passes

ROPE = {"rope_type": "default", "rope_theta": 10_000, "mrope_section": [2, 1, 1], "mrope_interleaved": True}


def _model(**settings: Any) -> Qwen3VLTextModel:
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rope_parameters": ROPE}
    shape = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = Qwen3VLTextConfig(**heads | shape | settings)
    model = Qwen3VLTextModel(config).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:  # the norms begin as ones, with which a forgotten product would not show
            torch.nn.init.uniform_(weight, 0.5, 2)
    return model


def _tokens(rows: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(1))


def _heads(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(*shape, generator=generator).to(dtype) for shape in [(2, 3, 5, 8), (2, 2, 5, 8)]]


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_turn_as_those_of_transformers(dtype: torch.dtype, gradients: bool) -> None:
    query, key = _heads(dtype)
    cos, sin = torch.rand(2, 2, 5, 8, generator=torch.Generator().manual_seed(3))
    with torch.set_grad_enabled(gradients):
        text = apply_rotary_pos_emb(query.float(), key.float(), cos, sin)  # (B, heads, L, W)
        for heads, expected in zip((query, key), text, strict=True):
            turned = rotate(heads, cos[:, None], sin[:, None])
            assert turned.dtype == dtype and turned.shape == heads.shape
            torch.testing.assert_close(turned, expected.to(dtype))
        rows = [heads[0].transpose(0, 1) for heads in (query, key)]  # (L, heads, W)
        vision = apply_rotary_pos_emb_vision(rows[0], rows[1], cos[0], sin[0])
        for heads, expected in zip(rows, vision, strict=True):
            torch.testing.assert_close(rotate(heads, cos[0][:, None], sin[0][:, None]), expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("settings", [{}, {"hidden_act": "gelu"}], ids=["silu", "gelu"])
def test_a_model_computes_the_same_after_the_swap(attention: str, settings: dict[str, str]) -> None:
    model = _model(**settings)
    model.set_attn_implementation(attention)
    with torch.no_grad():
        before = model(_tokens(), use_cache=False).last_hidden_state
        use_fewer_passes(model)
        use_fewer_passes(model)
        after = model(_tokens(), use_cache=False).last_hidden_state
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_a_model_is_as_near_to_float32_as_it_was() -> None:
    model = _model()
    with torch.no_grad():
        exact = model(_tokens(), use_cache=False).last_hidden_state
        model.to(torch.bfloat16)
        before = model(_tokens(), use_cache=False).last_hidden_state
        use_fewer_passes(model)
        after = model(_tokens(), use_cache=False).last_hidden_state
    assert after.dtype == torch.bfloat16
    assert (after - exact).abs().mean() < 1.1 * (before - exact).abs().mean()


@pytest.mark.filterwarnings("error")
def test_norms_may_be_held_in_another_precision_than_what_they_read() -> None:
    model = _model()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):  # as a training in mixed precision evaluates
        before = model(_tokens(), use_cache=False).last_hidden_state
        normed = model.norm(before.bfloat16())
        use_fewer_passes(model)
        after = model(_tokens(), use_cache=False).last_hidden_state
        assert torch.equal(model.norm(before.bfloat16()), normed) and normed.dtype == torch.float32
    torch.testing.assert_close(after, before, rtol=0.05, atol=0.05)


def test_attention_is_dropped_out_in_training_without_gradients_too() -> None:
    model = _model(attention_dropout=0.5).train()  # the first pass of reentrant checkpointing
    outputs = []
    for _ in range(2):
        torch.manual_seed(0)
        with torch.no_grad():
            outputs.append(model(_tokens(), use_cache=False).last_hidden_state)
        use_fewer_passes(model)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)


def _keep(outputs: dict[str, torch.Tensor], name: str, module: Any, inputs: Any, output: torch.Tensor) -> None:
    outputs[name] = output


def test_what_a_hook_keeps_of_a_layer_is_left_alone() -> None:
    kept: list[dict[str, torch.Tensor]] = []
    model = _model()
    for _ in range(2):
        outputs: dict[str, torch.Tensor] = {}
        hooks = [
            module.register_forward_hook(partial(_keep, outputs, name))
            for name, module in model.named_modules()
            if "norm" in name or "proj" in name
        ]
        with torch.no_grad():
            model(_tokens(), use_cache=False)
        kept.append(outputs)
        for hook in hooks:
            hook.remove()
        use_fewer_passes(model)
    assert len(kept[0]) == 2 * 11 + 1  # seven products and four norms a layer, and the last norm
    torch.testing.assert_close(kept[1], kept[0], rtol=1e-5, atol=1e-5)


def test_gradients_and_parameters_stay_what_they_were() -> None:
    plain, model = _model(), _model()
    use_fewer_passes(model)
    for one in (plain, model):
        one(_tokens(), use_cache=False).last_hidden_state.square().sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:  # the embedding of a token that was not read has none
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    assert copy.deepcopy(model).state_dict().keys() == plain.state_dict().keys()


def test_what_was_read_before_can_be_kept() -> None:
    model = _model()
    use_fewer_passes(model)
    with torch.no_grad():
        whole = model(_tokens(), use_cache=False).last_hidden_state
        cache = DynamicCache(config=model.config)
        model(_tokens()[:, :5], None, None, cache)  # releases of transformers name it differently
        rest = model(_tokens()[:, 5:], None, None, cache)
    torch.testing.assert_close(rest.last_hidden_state, whole[:, 5:], rtol=1e-5, atol=1e-5)


class _Traffic(TorchDispatchMode):
    """Bytes that operations read and write, but for products of matrices, attention and views."""

    FREE = ("::mm", "attention", "view", "::t", "slice", "select", "split", "squeeze", "expand", "empty", "embedding")

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if not any(name in func.name() for name in self.FREE):
            read = tree_leaves((args, {name: value for name, value in kwargs.items() if name != "out"}))
            for tensor in (*read, *tree_leaves(output)):
                if isinstance(tensor, torch.Tensor):
                    self.bytes += tensor.numel() * tensor.element_size()
        return output


def _traffic(work: Callable[[], object]) -> int:
    with torch.no_grad(), _Traffic() as traffic:
        work()
    return traffic.bytes


def test_less_memory_is_read_and_written() -> None:
    model = _model(hidden_size=128, intermediate_size=256, head_dim=32)
    before = _traffic(lambda: model(_tokens(2, 64), use_cache=False))
    use_fewer_passes(model)
    after = _traffic(lambda: model(_tokens(2, 64), use_cache=False))
    assert after < 0.85 * before, f"{before} bytes before, {after} after"
