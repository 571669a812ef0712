import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from training_lists import MakeRecipe

from llama_index_ziprerank.reranking import ListwiseReranker
from llama_index_ziprerank.training.recipes import Recipe, Stage2

PARITY = Path(__file__).parents[1] / "data" / "parity" / "checkpoint"


@pytest.fixture(autouse=True)
def denormal_numbers_stay() -> Iterator[None]:
    """Training takes them for zero in the whole process, in which hypothesis then finds no floats."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen3-VL that learns fast: two layers, larger weights, and small pages stay small.

    32 x 32 pixels are one visual token.
    """
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    shutil.copytree(PARITY, folder)
    model = ListwiseReranker.from_pretrained(str(PARITY), device="cpu").model
    language_model = model.model.language_model
    language_model.layers = language_model.layers[:2]
    model.config.text_config.num_hidden_layers = 2
    with torch.no_grad():
        for parameter in language_model.layers.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
    preprocessor["size"] = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


@pytest.fixture(scope="session")
def reranker(checkpoint: Path) -> ListwiseReranker:
    return ListwiseReranker.from_pretrained(str(checkpoint), device="cpu")


@pytest.fixture
def recipe(checkpoint: Path, tmp_path: Path) -> MakeRecipe:
    """Make a recipe for the tiny checkpoint on a CPU; the output folder is the test's own."""

    def make(kind: type[Recipe] = Stage2, **fields: Any) -> Recipe:
        small: dict[str, Any] = {
            "model": str(checkpoint),
            "output_dir": str(tmp_path / "trained"),
            "held_out": 0,
            "precision": "float32",
            "canvas": 32,
            "batch_size": 4,
            "gradient_accumulation": 1,
            "learning_rate": 2e-3,
            "warmup_steps": 0,
            "gradient_checkpointing": False,
            "workers": 0,
            "logging_steps": 1,
            "trainer": json.dumps({"use_cpu": True}),
        }
        return kind(**{**small, **fields})

    return make
