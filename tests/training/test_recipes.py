import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from training_lists import MakeRecipe

from llama_index_ziprerank.training.options import parse_recipe, read_config
from llama_index_ziprerank.training.recipes import Recipe, Stage1, Stage2
from llama_index_ziprerank.training.retriever_recipe import Retriever
from llama_index_ziprerank.training.setup import optimizer_name, training_arguments


@pytest.mark.parametrize(
    ("stage", "paper"),
    [
        (Stage1, {"epochs": 3, "warmup_steps": 100, "ranking_loss": "ranknet", "ranking_weight": 10, "canvas": 280}),
        (Stage2, {"epochs": 1, "warmup_steps": 50, "ranking_loss": "soft_ranking", "ranking_weight": 1, "decay": 0.5}),
    ],
)
def test_the_defaults_are_the_papers(stage: type[Recipe], paper: dict) -> None:
    recipe = stage()
    both = {"learning_rate": 3e-6, "schedule": "cosine", "precision": "bfloat16", "gradient_checkpointing": True}
    assert dataclasses.asdict(recipe).items() >= {**paper, **both, "train_vision": False, "keep_ratio": 1}.items()
    assert recipe.batch_size * recipe.gradient_accumulation == {Stage1: 32, Stage2: 16}[stage]
    assert recipe.max_candidates == {Stage1: 20, Stage2: 10}[stage]


@pytest.mark.parametrize("stage", [Stage1, Stage2])
def test_every_field_is_explained(stage: type[Recipe], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        parse_recipe(stage, ["--help"], prog="ziprerank train")
    shown = " ".join(capsys.readouterr().out.split())
    assert exit.value.code == 0
    for field in dataclasses.fields(stage):
        assert f"--{field.name}" in shown
        assert " ".join(field.metadata["help"].replace("%%", "%").split())[:40] in shown


@pytest.mark.parametrize("name", ["recipe.yaml", "recipe.json"])
def test_flags_win_over_the_file_and_the_file_over_the_defaults(name: str, tmp_path: Path) -> None:
    values = {"data": "a.jsonl", "epochs": 2.0, "gradient_checkpointing": False, "seed": 1}
    (tmp_path / name).write_text(json.dumps(values) if name.endswith("json") else "\n".join(
        f"{key}: {json.dumps(value)}" for key, value in values.items()
    ))  # fmt: skip
    recipe = parse_recipe(Stage2, ["--config", str(tmp_path / name), "--seed", "7"], prog="train")
    assert (recipe.data, recipe.epochs, recipe.gradient_checkpointing, recipe.seed) == ("a.jsonl", 2.0, False, 7)
    assert recipe.warmup_steps == 50


def test_a_number_that_yaml_takes_for_text_is_still_a_number(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("learning_rate: 3e-5\n")
    assert parse_recipe(Stage2, ["--config", str(tmp_path / "recipe.yaml")], prog="train").learning_rate == 3e-5


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("batch_size: null", "batch_size is of the type int, got None"),
        ("batch_size: 2.5", "batch_size is of the type int, got 2.5"),
        ("learning_rate: fast", "learning_rate is of the type float, got 'fast'"),
        ("resume: 1", "resume is of the type bool, got 1"),
        ("eval_data: [a]", r"eval_data is of the type str or none, got \['a'\]"),
        ("pruning: 3", "pruning is of the type str, got 3"),
    ],
)
def test_a_value_of_another_type_is_named(field: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(field)
    with pytest.raises(ValueError, match=message):
        read_config(Stage2, str(tmp_path / "recipe.yaml"))


def test_values_of_a_file_become_those_of_the_fields(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "learning_rate: 1e-4\nepochs: 2\nbatch_size: 4.0\nlora_rank: '8'\ntrainer: {report_to: none}\neval_data: null"
    )
    values = read_config(Stage2, str(tmp_path / "recipe.yaml"))
    assert values == {
        **{"learning_rate": 1e-4, "epochs": 2.0, "batch_size": 4, "lora_rank": 8},
        **{"trainer": '{"report_to": "none"}', "eval_data": None},
    }
    assert type(values["batch_size"]) is int


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"epochs": -1}, {"max_steps": 0}, {"keep_checkpoints": 0}, {"save_steps": 0}]
)
def test_a_training_without_a_step_or_a_checkpoint_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is at least"):
        Stage2(**wrong)


def test_a_recipe_that_cannot_be_read_is_an_error_that_says_why(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    with pytest.raises(FileNotFoundError, match="No recipe at 'nowhere.yaml'"):
        parse_recipe(Stage2, ["--config", "nowhere.yaml"], prog="train")
    for text, message in (
        ("lr: 1", "unknown fields: lr. There are model, data"),
        ("- 1", "but list"),
        ("{", "neither"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            parse_recipe(Stage2, ["--config", str(path)], prog="train")
    for content in (b"data: sch\xe4de.jsonl", b"model: 2026-06-31"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"recipe.yaml' is neither YAML nor JSON: "):
            parse_recipe(Stage2, ["--config", str(path)], prog="train")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_recipe_may_be_written_as_windows_writes_it(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes("data: schäde.jsonl\r\n".encode(encoding))
    assert read_config(Stage2, str(path)) == {"data": "schäde.jsonl"}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_candidates", 21, "max_candidates is 2 to 20, got 21"),
        ("keep_ratio", 0.0, "keep_ratio is .* got 0.0"),
        ("batch_size", 0, "batch_size is at least 1, got 0"),
        ("output_dir", "", "names no output_dir"),
        ("ranking_loss", "listnet", "ranking_loss is one of ranknet, soft_ranking, got 'listnet'"),
        ("learning_rate", -1e-6, "learning_rate is at least 0, got -1e-06"),
        ("lora_dropout", 1.5, "lora_dropout is 0 to 1, got 1.5"),
        ("seed", -1, "seed is 0 to 4294967295, got -1"),
        ("decay", math.nan, "decay is a finite number, got nan"),
        ("feature_cache_gb", math.inf, "feature_cache_gb is a finite number, got inf"),
        ("batch_size", 1.5, "batch_size is of the type int, got 1.5"),
        ("model", None, "model is of the type str, got None"),
    ],
)
def test_a_value_out_of_its_bounds_is_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stage2(**{field: value})


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"temperature": 0}, {"mining_skip": -1}])
def test_a_retriever_is_not_trained_away_from_its_pages(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is at least"):
        Retriever(**wrong)


def test_paths_and_whole_numbers_become_what_the_fields_hold() -> None:
    recipe = Stage2(model=Path("m"), data=Path("d"), output_dir=Path("o"), pages=Path("p"), epochs=2)  # type: ignore[arg-type]
    assert (recipe.model, recipe.data, recipe.output_dir, recipe.pages) == ("m", "d", "o", "p")
    assert type(recipe.epochs) is float


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_nano_is_not_trained_in_bfloat16(recipe: MakeRecipe) -> None:
    with pytest.raises(ValueError, match="'nano' ranks in float32; .* Pass --precision float32"):
        training_arguments(recipe(data="x", model="nano", precision="bfloat16"), evaluates=False, resumes=False)


def test_bfloat16_without_a_gpu_is_refused_with_the_way_out(recipe: MakeRecipe) -> None:
    with pytest.raises(ValueError, match="there is no GPU.* Pass --precision float32"):
        training_arguments(recipe(data="x", precision="bfloat16"), evaluates=False, resumes=False)


@pytest.mark.parametrize("trainer", ["{", "[1]", '{"learning_speed": 3}'])
def test_further_fields_are_those_of_transformers(trainer: str, recipe: MakeRecipe) -> None:
    with pytest.raises(ValueError, match="--trainer is a JSON object"):
        training_arguments(recipe(data="x", trainer=trainer), evaluates=False, resumes=False)


def test_a_model_in_shards_is_refused_with_the_way_out(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch --use_fsdp` says what it wants by this variable."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP cuts the model into shards.* --multi_gpu"):
        training_arguments(recipe(data="x"), evaluates=False, resumes=False)
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    with pytest.raises(ValueError, match="FSDP cuts the model into shards"):
        further = json.dumps({"fsdp": True, "use_cpu": True})
        training_arguments(recipe(data="x", trainer=further), evaluates=False, resumes=False)


def test_the_optimizer_can_be_chosen(recipe: MakeRecipe) -> None:
    assert optimizer_name(recipe(data="x", optimizer="adamw")) == "adamw_torch"
    pytest.importorskip("bitsandbytes")
    assert optimizer_name(recipe(data="x", optimizer="adamw_8bit")) == "adamw_8bit"
