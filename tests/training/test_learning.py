"""Both stages, from the files that a user has to a checkpoint that ranks: they must learn 64 lists by heart."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from training_lists import MakeRecipe, colour_lists, write_lists

from llama_index_ziprerank.reranking.permutation import IDENTIFIERS, format_permutation
from llama_index_ziprerank.training.recipes import Stage1, Stage2
from llama_index_ziprerank.training.run import train
from llama_index_ziprerank.training.samples import RankingSample

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft 0.20 asks for it

SCHEDULE: dict[str, Any] = {
    "batch_size": 8,
    "learning_rate": 3e-3,
    "warmup_steps": 20,
    "max_steps": 200,
    "epochs": 25,
    "logging_steps": 50,
}


def conversation(sample: RankingSample) -> dict[str, Any]:
    """A list of texts as RankZephyr's data has it."""
    passages = "\n".join(f"[{letter}] {text}" for letter, text in zip(IDENTIFIERS, sample.pages, strict=False))
    request = f"I will provide you with {len(sample.pages)} passages.\n\n{passages}\n\nSearch Query: {sample.query}.\n"
    return {"conversations": [{"value": text} for text in ("system", request, format_permutation(sample.order))]}


def check(quality: dict[str, dict[str, float]]) -> None:
    assert quality["before training"]["recall@1"] < 0.5
    assert quality["step 200"]["recall@1"] >= 0.95


@pytest.mark.slow
def test_stage_1_learns_64_lists(recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    texts = ["one", "two", "three", "four"]
    lists = [RankingSample(each.query, texts, each.order) for each in colour_lists(64)]
    data = tmp_path / "zephyr.json"
    data.write_text(json.dumps([conversation(each) for each in lists]))
    check(train(recipe(Stage1, data=str(data), eval_data=str(data), **SCHEDULE)).quality)


@pytest.mark.slow
def test_stage_2_learns_64_lists(recipe: MakeRecipe, tmp_path: Path) -> None:
    data = write_lists(tmp_path, colour_lists(64))
    check(train(recipe(Stage2, data=data, eval_data=data, **SCHEDULE)).quality)


@pytest.mark.slow
def test_adapters_alone_learn_16_lists(recipe: MakeRecipe, tmp_path: Path) -> None:
    data = write_lists(tmp_path, colour_lists(16))
    schedule = {**SCHEDULE, "epochs": 100, "learning_rate": 1e-2}
    check(train(recipe(Stage2, data=data, eval_data=data, lora_rank=16, **schedule)).quality)
