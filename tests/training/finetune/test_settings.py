"""What a fine-tuning asks of its device, and of the model that it goes on from."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_index_ziprerank.checkpoints import resolve_reranker
from llama_index_ziprerank.training.finetune.settings import NANO, Helpers, Settings, check_output, stage2_recipe

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


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate is at least 0, got -1"),
        ({"trainer": "{"}, "--trainer is a JSON object"),
        ({"schedule": "sawtooth"}, "sawtooth"),
        ({"precision": "bfloat16"}, "Pass --precision float32"),
    ],
)
def test_what_cannot_train_claims_no_folder_and_costs_no_question(
    recipe: dict[str, Any], message: str, manual: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        check_output([manual], Settings(tmp_path / "out", LARGER, recipe=recipe), Helpers())
    assert not (tmp_path / "out").exists()


def test_a_time_limit_is_a_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="minutes is at least 0 .no limit., got nan"):
        Settings(tmp_path, minutes=float("nan"))
