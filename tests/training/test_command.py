from pathlib import Path

import pytest
from training_lists import MakeRecipe, colour_lists, write_lists
from typer.testing import CliRunner

from llama_index_ziprerank.cli.train import train_app
from llama_index_ziprerank.reranking import ListwiseReranker
from llama_index_ziprerank.training.options import write_recipe


def test_a_stage_is_trained_by_one_command(recipe: MakeRecipe, tmp_path: Path) -> None:
    data = write_lists(tmp_path, colour_lists(4))
    write_recipe(recipe(data=data), tmp_path / "recipe.json")
    flags = ["--eval-data", data, "--max_steps", "2"]
    done = CliRunner().invoke(train_app, ["stage2", "--config", str(tmp_path / "recipe.json"), *flags])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("| | first stage | before training | step 2 |")
    assert "The trained reranker is in" in done.stderr
    ListwiseReranker.from_pretrained(str(tmp_path / "trained"), device="cpu")


def test_the_commands_are_listed() -> None:
    shown = CliRunner().invoke(train_app, ["--help"]).output
    assert "stage1" in shown and "stage2" in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere.jsonl"], "No training data at 'nowhere.jsonl'"),
        (["--model", "./nowhere"], "checkpoint at './nowhere'"),
        (["--learning_speed", "3"], "not used by the HfArgumentParser: ['--learning_speed', '3']"),
        (["--held_out", "4"], "leaves none to train on"),
    ],
)
def test_what_a_user_can_set_right_is_said_before_anything_is_written(
    flags: list[str], message: str, recipe: MakeRecipe, tmp_path: Path
) -> None:
    write_recipe(recipe(data=write_lists(tmp_path, colour_lists(4))), tmp_path / "recipe.json")
    done = CliRunner().invoke(train_app, ["stage2", "--config", str(tmp_path / "recipe.json"), *flags])
    assert message in str(done.exception)
    assert isinstance(done.exception, ValueError | FileNotFoundError)
    assert not (tmp_path / "trained").exists()
