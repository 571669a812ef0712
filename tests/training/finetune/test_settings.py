"""What a fine-tuning asks of its device."""

from pathlib import Path

import pytest
import torch

from llama_index_ziprerank.training.finetune.settings import Settings, stage2_recipe


@pytest.mark.parametrize(("model", "precision"), [("nano", "float32"), ("a/larger-model", "bfloat16")])
def test_nano_learns_in_float32_on_a_gpu_too(
    model: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert stage2_recipe(Settings(tmp_path, model)).precision == precision


def test_without_a_gpu_everything_is_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert stage2_recipe(Settings(tmp_path, "a/larger-model")).precision == "float32"
