import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLForConditionalGeneration

from llama_index_ziprerank.checkpoints import resolve_reranker
from llama_index_ziprerank.reranking import ListwiseReranker, loading
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


def test_nano_with_smaller_weights_is_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "check_quantization", lambda name: None)
    monkeypatch.setattr(loading, "quantize", lambda model, name: None)  # leaves them as they are
    ListwiseReranker.from_pretrained("nano", "cpu", quantization="int8")
    assert "nano ranks in float32; with int8 weights its orders are others" in caplog.text
    caplog.clear()
    ListwiseReranker.from_pretrained(CHECKPOINT, "cpu", quantization="int8")
    assert not caplog.records


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


def test_a_model_that_transformers_loaded_ranks_too(pages: list[Image.Image]) -> None:
    reranker = ListwiseReranker.from_pretrained(str(CHECKPOINT), "cpu")
    model = Qwen3VLForConditionalGeneration.from_pretrained(CHECKPOINT, dtype="float32")
    own = ListwiseReranker(model, reranker.processor)
    assert own.name == str(CHECKPOINT)
    assert own.rerank("axis", pages[:3]) == reranker.rerank("axis", pages[:3])


def test_a_folder_may_be_a_path(checkpoint: Path) -> None:
    assert ListwiseReranker.from_pretrained(checkpoint, "cpu").name == str(checkpoint)


@pytest.mark.parametrize("choice", [{"keep_ratio": 2}, {"pruning": "letters"}, {"first_stage_weight": True}], ids=str)
def test_a_checkpoint_that_chooses_what_cannot_be_is_refused_before_its_weights(
    checkpoint: Path, choice: dict[str, Any]
) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | choice))
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=rf"config\.json.*{next(iter(choice))}"):
        ListwiseReranker.from_pretrained(checkpoint, "cpu")


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


def test_cut_off_weights_are_named(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="weights of .*checkpoint' cannot be read .* Git LFS"):
        ListwiseReranker.from_pretrained(str(checkpoint), "cpu")


def test_an_adapter_is_refused_also_beside_weights_that_it_was_merged_into(checkpoint: Path, tmp_path: Path) -> None:
    alone = tmp_path / "adapter alone"
    alone.mkdir()
    for folder in (checkpoint, alone):
        LoraConfig(base_model_name_or_path=str(CHECKPOINT)).save_pretrained(str(folder))
        with pytest.raises(ValueError, match="holds a LoRA adapter .* Merge it"):
            ListwiseReranker.from_pretrained(str(folder), "cpu")


def test_a_chat_template_that_only_the_tokenizer_has_is_taken(checkpoint: Path) -> None:
    expected = ListwiseReranker.from_pretrained(str(checkpoint), "cpu").processor.chat_template
    _remove_chat_template(checkpoint)
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text())
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": expected}))
    reranker = ListwiseReranker.from_pretrained(str(checkpoint), "cpu")
    assert reranker.rerank("line width", [Image.new("RGB", (64, 96), "white")]).order == [0]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        ("{% for message in messages %}", "template fails"),
        ("{% for m in messages %}{{ 'user: ' + m.content }}{% endfor %}", "template fails"),
        ("{% for m in messages %}{{ m.content[0].text }}{% endfor %}", "wrote 0 image tokens for 20 pages"),
    ],
)
def test_a_chat_template_that_cannot_write_the_prompt_is_told_at_loading(
    checkpoint: Path, template: str | None, message: str
) -> None:
    _remove_chat_template(checkpoint)
    if template is not None:
        (checkpoint / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match=message):
        ListwiseReranker.from_pretrained(str(checkpoint), "cpu")


@pytest.mark.parametrize("name", ["patch_size", "merge_size"])
def test_an_image_processor_of_another_model_is_told_at_loading(checkpoint: Path, name: str) -> None:
    settings = json.loads((checkpoint / "preprocessor_config.json").read_text())
    (checkpoint / "preprocessor_config.json").write_text(json.dumps({**settings, name: 14}))
    with pytest.raises(ValueError, match=f"{name} 14.*its vision tower 16 and 2"):
        ListwiseReranker.from_pretrained(str(checkpoint), "cpu")


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json"])
def test_a_checkpoint_with_a_file_cut_off_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).write_text("{")
    with pytest.raises(ValueError, match="Tokenizer and image processor of .*checkpoint' cannot be read"):
        ListwiseReranker.from_pretrained(str(checkpoint), "cpu")


def _remove_chat_template(checkpoint: Path) -> None:
    for name in ("chat_template.jinja", "chat_template.json"):
        (checkpoint / name).unlink(missing_ok=True)
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
