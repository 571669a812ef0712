import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from llama_index_ziprerank.checkpoints import resolve_reranker
from llama_index_ziprerank.reranking import ListwiseReranker
from llama_index_ziprerank.reranking.loading import set_tower_attention

CHECKPOINT = Path(__file__).parents[1] / "data" / "parity" / "checkpoint"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be spoilt."""
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "checkpoint"))


def test_the_precision_can_be_chosen(checkpoint: Path) -> None:
    assert ListwiseReranker.from_pretrained(str(checkpoint), "cpu").model.dtype == torch.float32
    for dtype in ("bfloat16", torch.bfloat16):
        assert ListwiseReranker.from_pretrained(str(checkpoint), "cpu", dtype).model.dtype == torch.bfloat16


def test_nano_is_stored_in_half_precision_and_runs_in_float32() -> None:
    weights = load_file(Path(resolve_reranker("nano"), "model.safetensors"))
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    assert ListwiseReranker.from_pretrained("nano", "cpu", "auto").model.dtype == torch.float32


def test_nano_in_another_precision_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    ListwiseReranker.from_pretrained("nano", "cpu")
    assert not caplog.records
    ListwiseReranker.from_pretrained("nano", "cpu", "bfloat16")
    assert "nano ranks in float32; in torch.bfloat16 its orders are others" in caplog.text


def test_what_was_trained_from_nano_is_warned_of_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = shutil.copytree(resolve_reranker("nano"), tmp_path / "own")
    ListwiseReranker.from_pretrained(str(own), "cpu", "float16")
    assert f"{own} ranks in float32; in torch.float16" in caplog.text


def test_the_tower_can_attend_otherwise_than_the_language_model(checkpoint: Path) -> None:
    page = Image.new("RGB", (64, 96), "white")
    reranker = ListwiseReranker.from_pretrained(str(checkpoint), "cpu")
    [before] = reranker.encode_pages([page])
    set_tower_attention(reranker.model, "eager")
    model = reranker.model.model
    assert {block.attn.config._attn_implementation for block in model.visual.blocks} == {"eager"}
    assert {layer.self_attn.config._attn_implementation for layer in model.language_model.layers} == {"sdpa"}
    torch.testing.assert_close(reranker.encode_pages([page])[0].merged, before.merged, atol=1e-5, rtol=0)


def test_an_unknown_precision_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="float17"):
        ListwiseReranker.from_pretrained(str(checkpoint), "cpu", "float17")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No checkpoint at .*nowhere.*does not exist"):
        ListwiseReranker.from_pretrained(str(tmp_path / "nowhere"))


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no checkpoint that transformers can read"):
        ListwiseReranker.from_pretrained(str(tmp_path))


def test_another_kind_of_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"model_type 'qwen3_vl'\); .* is 'bert'"):
        ListwiseReranker.from_pretrained(str(tmp_path))


def test_pickled_weights_are_not_read(checkpoint: Path) -> None:
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(OSError, match="model.safetensors"):
        ListwiseReranker.from_pretrained(str(checkpoint), "cpu")


def test_a_checkpoint_without_all_weights_is_refused(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    norm = next(name for name in weights if name.endswith("language_model.norm.weight"))
    del weights[norm]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights of a Qwen3-VL reranker, such as .*norm.weight"):
        ListwiseReranker.from_pretrained(str(checkpoint), "cpu")
