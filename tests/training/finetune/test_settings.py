"""What a fine-tuning asks of its device, and of the model that it goes on from."""

import shutil
from pathlib import Path

import pytest
import torch

from llama_index_ziprerank.checkpoints import resolve_reranker
from llama_index_ziprerank.training.finetune.settings import NANO, Settings, stage2_recipe

LARGER = str(Path(__file__).parents[2] / "data" / "parity" / "checkpoint")


def test_nano_learns_in_float32_on_a_gpu_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert stage2_recipe(Settings(tmp_path, LARGER)).precision == "bfloat16"
    assert stage2_recipe(Settings(tmp_path, "nano")).precision == "float32"


def test_what_was_trained_from_nano_learns_as_nano_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    own = shutil.copytree(resolve_reranker("nano"), tmp_path / "own-reranker")
    recipe = stage2_recipe(Settings(tmp_path, str(own)))
    assert {name: getattr(recipe, name) for name in NANO} == NANO


def test_without_a_gpu_everything_is_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert stage2_recipe(Settings(tmp_path, LARGER)).precision == "float32"


def test_a_model_that_is_missing_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No checkpoint at './nowhere'"):
        stage2_recipe(Settings(tmp_path, "./nowhere"))
