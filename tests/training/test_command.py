import json
import re
from pathlib import Path

import pytest
import torch
from tiny_manual import tiny_manual
from training_lists import MakeRecipe, colour_lists, write_lists
from typer.testing import CliRunner

from llama_index_ziprerank.cli import main
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
    assert all(name in shown for name in ("stage1", "stage2", "retriever", "cost"))


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


def error_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that a user must correct; return the one line that it says."""
    with pytest.raises(SystemExit) as ended:
        main(["train", *arguments])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ziprerank: ")]
    assert ended.value.code == 2 and len(said) == 1
    return said[0]


@pytest.mark.parametrize("stage", ["stage1", "stage2", "retriever"])
def test_each_mistake_is_one_line_that_says_what_came_what_was_wanted_and_what_to_do(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [stage, "--model", "nano", "--output_dir", str(tmp_path / "out")]
    columns, single, lost = (tmp_path / f"{name}.jsonl" for name in ("columns", "single", "lost"))
    columns.write_text(json.dumps({"question": "why?", "images": []}) + "\n")
    single.write_text(json.dumps({"query": "why?", "texts": ["one"], "positives": [0]}) + "\n")
    lost.write_text(json.dumps({"query": "why?", "pages": ["a.png", "b.png"], "positives": [0]}) + "\n")
    for flags, message in (
        (
            ["--data", str(tmp_path / "nowhere.jsonl")],
            "No training data at '.*nowhere.jsonl'. Name a file that ends in",
        ),
        (["--data", str(columns)], "has the columns images, question. Training lists have"),
        (["--data", str(single)], "row 1: 1 candidates, wanted at least 2 to compare. Correct them, or pass"),
        (["--data", str(lost)], "row 1: no image file 'a.png' in '.*'. Correct them, or pass"),
        (["--data", str(single), "--config", "nowhere.yaml"], "No recipe at 'nowhere.yaml'. Name a YAML or JSON file"),
    ):
        assert re.search(message, error_line(capsys, *common, *flags))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_does_not_open_is_one_line_too(
    workers: int, recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = json.dumps({"use_cpu": True, "disable_tqdm": True})  # a bar would stand before the line
    used = recipe(data=write_lists(tmp_path, colour_lists(4)), workers=workers, trainer=quiet)
    write_recipe(used, tmp_path / "recipe.json")
    (tmp_path / "lists.jsonl-2-1.png").write_text("no image")
    said = error_line(capsys, "stage2", "--config", str(tmp_path / "recipe.json"))
    assert re.fullmatch(r"ziprerank: \S*lists.jsonl-2-1.png: not an image of a kind that is read .*JPEG\.", said)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("stage", ["stage1", "stage2", "retriever"])
def test_bfloat16_without_a_gpu_is_one_line_too(
    stage: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_lists(tmp_path, colour_lists(4))
    model = "nano" if stage == "retriever" else str(checkpoint)  # the ranker nano is refused for itself
    flags = ["--model", model, "--data", data, "--held_out", "0", "--output_dir", str(tmp_path / "out")]
    said = error_line(capsys, stage, *flags)
    assert "needs an NVIDIA GPU" in said and "Pass --precision float32" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_cost_of_a_step_is_less_with_cached_features(checkpoint: Path, tmp_path: Path) -> None:
    pdf = tiny_manual(tmp_path / "manual.pdf")
    done = CliRunner().invoke(train_app, ["cost", str(pdf), "--model", str(checkpoint), "--pages", "4", "--json"])
    assert done.exit_code == 0, done.exception
    costs = json.loads(done.stdout)
    assert costs["uncached"]["cache_bytes"] == 0 < costs["cached"]["cache_bytes"]
    assert 0 < costs["cached"]["peak_bytes"] <= costs["uncached"]["peak_bytes"]
    assert 0 < costs["cached"]["seconds"] < costs["uncached"]["seconds"]
