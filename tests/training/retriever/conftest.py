import json
from pathlib import Path
from typing import Any

import pytest
from tiny_retriever import colqwen3
from training_lists import MakeRecipe

from llama_index_ziprerank.training.recipes import Recipe
from llama_index_ziprerank.training.retriever_recipe import Retriever


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colqwen3(tmp_path_factory.mktemp("retriever") / "tiny")


@pytest.fixture
def recipe(start: Path, tmp_path: Path) -> MakeRecipe:
    """Make a recipe for the tiny retriever on a CPU; the output folder is the test's own."""

    def make(kind: type[Recipe] = Retriever, **fields: Any) -> Recipe:
        small: dict[str, Any] = {
            "model": str(start),
            "output_dir": str(tmp_path / "trained"),
            "held_out": 0,
            "precision": "float32",
            "canvas": 32,
            "batch_size": 4,
            "learning_rate": 3e-3,
            "warmup_steps": 0,
            "lora_rank": 0,
            "lora_dropout": 0.0,
            "loss": "contrastive",
            "gradient_checkpointing": False,
            "workers": 0,
            "logging_steps": 1,
            "trainer": json.dumps({"use_cpu": True}),
        }
        return kind(**{**small, **fields})

    return make
