import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytest
import torch
from training_lists import MakeRecipe, colour_lists, distance, weights_of, write_lists
from transformers import TrainerCallback, TrainingArguments

from llama_index_ziprerank.training.options import parse_recipe, write_recipe
from llama_index_ziprerank.training.recipes import Recipe, Stage2
from llama_index_ziprerank.training.run import train
from llama_index_ziprerank.training.saving import CheckpointError, last_complete_checkpoint

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "llama_index_ziprerank.cli.train", "stage2", "--config"]
LAUNCH = [
    *(sys.executable, "-m", "accelerate.commands.launch"),
    *("--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"),
    *("--mixed_precision", "no", "--dynamo_backend", "no"),
]
"""Two processes on this machine; without a GPU they talk over gloo."""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def as_file(recipe: Recipe, path: Path) -> str:
    write_recipe(recipe, path)
    return str(path)


def test_a_checkpoint_comes_with_its_card_and_a_recipe_that_trains_again(recipe: MakeRecipe, tmp_path: Path) -> None:
    data = write_lists(tmp_path, colour_lists(6))
    used = recipe(data=data, held_out=2, max_steps=2, save_steps=1, keep_checkpoints=1)
    trained = train(used)
    assert [path.name for path in trained.folder.glob("checkpoint-*")] == ["checkpoint-2"]
    for folder in (trained.folder, trained.folder / "checkpoint-2"):
        card = (folder / "README.md").read_text()
        assert "6 lists, of which 2 were held out" in card
        assert "| | first stage | before training |" in card
        assert json.loads((folder / "recipe.json").read_text()) == asdict(used)
    again = parse_recipe(Stage2, ["--config", str(trained.folder / "recipe.json")], prog="train")
    assert again == used


def test_a_checkpoint_that_was_cut_off_does_not_count(recipe: MakeRecipe, tmp_path: Path) -> None:
    folder = train(
        recipe(data=write_lists(tmp_path, colour_lists(4)), max_steps=3, save_steps=1, keep_checkpoints=5)
    ).folder
    state = folder / "checkpoint-3" / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    assert last_complete_checkpoint(folder) == folder / "checkpoint-2"
    shutil.rmtree(folder / "checkpoint-2")
    (folder / "checkpoint-1" / "trainer_state.json").unlink()
    assert last_complete_checkpoint(folder) is None


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_checkpoint_whose_weights_are_cut_off_does_not_count(name: str, recipe: MakeRecipe, tmp_path: Path) -> None:
    fields = {"data": write_lists(tmp_path, colour_lists(4)), "max_steps": 2, "save_steps": 1, "keep_checkpoints": 5}
    folder = train(recipe(**fields)).folder
    part = folder / "checkpoint-2" / name
    part.write_bytes(part.read_bytes()[:-100])
    assert last_complete_checkpoint(folder) == folder / "checkpoint-1"


def test_a_training_goes_on_by_its_own_recipe_alone(recipe: MakeRecipe, tmp_path: Path) -> None:
    fields = {"data": write_lists(tmp_path, colour_lists(8)), "held_out": 2, "save_steps": 1}
    train(recipe(**fields, max_steps=1))
    with pytest.raises(ValueError, match=r"another recipe: held_out 2, now 4; learning_rate \S+, now 0.5. Go on with"):
        train(recipe(**{**fields, "held_out": 4}, learning_rate=0.5, max_steps=2, resume=True))
    assert train(recipe(**fields, max_steps=2, logging_steps=3, resume=True)).steps == 2


def test_a_folder_with_something_in_it_is_left_alone(recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="is not empty. Name another --output_dir, or continue"):
        train(recipe(data="nowhere.jsonl"))


@pytest.mark.parametrize("name", ["config.json", "README.md"])
def test_what_no_training_wrote_is_not_replaced(name: str, recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / name).write_text("mine")
    with pytest.raises(ValueError, match=f"no checkpoint to go on from, but a {name} that no training wrote. Name"):
        train(recipe(data="nowhere.jsonl", resume=True))


def test_the_recipe_of_a_resumed_training_begins_anew(recipe: MakeRecipe, tmp_path: Path) -> None:
    fields = {"data": write_lists(tmp_path, colour_lists(4)), "save_steps": 1}
    train(recipe(**fields, max_steps=1))
    folder = train(recipe(**fields, max_steps=2, resume=True)).folder
    card = (folder / "README.md").read_text()
    again = parse_recipe(Stage2, ["--config", str(folder / "recipe.json")], prog="train")
    with pytest.raises(ValueError, match="is not empty. Name another --output_dir"):
        train(again)
    assert (folder / "README.md").read_text() == card


def test_a_finished_checkpoint_that_cannot_be_written_names_the_one_on_the_way(
    recipe: MakeRecipe, tmp_path: Path
) -> None:
    class Obstacle(TrainerCallback):
        def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
            Path(args.output_dir, "model.safetensors").mkdir()

    with pytest.raises(CheckpointError, match="trained' could not be written .* The one before, checkpoint-2, is comp"):
        train(recipe(data=write_lists(tmp_path, colour_lists(4)), max_steps=2), [Obstacle()])


def test_the_card_measures_the_weights_that_are_saved(recipe: MakeRecipe, tmp_path: Path) -> None:
    """Also where transformers takes the best checkpoint at the end, and not the last."""
    best = {"use_cpu": True, "load_best_model_at_end": True, "metric_for_best_model": "eval_ndcg@5"}
    fields = {"data": write_lists(tmp_path, colour_lists(12)), "held_out": 6, "eval_steps": 1, "save_steps": 1}
    worse = {"learning_rate": 0.5, "max_steps": 3, "trainer": json.dumps({**best, "greater_is_better": False})}
    trained = train(recipe(**fields, **worse))
    measured = train(recipe(**fields, model=str(trained.folder), output_dir=str(tmp_path / "again"), max_steps=1))
    before, (*_, after) = measured.quality["before training"], trained.quality.values()
    assert after == pytest.approx(before)


class _Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_checkpoint_on_the_way_cannot_bring_code(recipe: MakeRecipe, tmp_path: Path) -> None:
    """transformers writes these with pickle; the first three are read as tensors and numbers only, the last never."""
    fields = {"data": write_lists(tmp_path, colour_lists(4)), "max_steps": 2, "save_steps": 1, "keep_checkpoints": 9}
    folder = train(recipe(**fields)).folder
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        poisoned = tmp_path / f"poisoned {name}" / "checkpoint-1"
        shutil.copytree(folder / "checkpoint-1", poisoned)
        assert (poisoned / name).exists()
        torch.save({"state": _Payload(tmp_path / "owned")}, poisoned / name)
        with nullcontext() if name == "training_args.bin" else pytest.raises(UnpicklingError, match="[Ww]eights.only"):
            train(recipe(**fields, output_dir=str(poisoned.parent), resume=True))
        assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(("cache", "rounding"), [(0.0, 0.0), (4.0, 1e-5)])
def test_a_resumed_run_ends_where_an_uninterrupted_one_ends(
    cache: float, rounding: float, recipe: MakeRecipe, tmp_path: Path
) -> None:
    """With cached features the resumed run looks at pages in other company, so the tower rounds otherwise."""
    common = {
        "data": write_lists(tmp_path, colour_lists(12)),
        "save_steps": 2,
        "shuffle_candidates": True,
        "schedule": "linear",
        "epochs": 3,
        "keep_checkpoints": 9,
        "feature_cache_gb": cache,
    }
    whole = train(recipe(**common, output_dir=str(tmp_path / "whole"))).folder
    resumed = tmp_path / "resumed"
    shutil.copytree(whole / "checkpoint-4", resumed / "checkpoint-4")  # one step into the second of three epochs
    train(recipe(**common, output_dir=str(resumed), resume=True))
    assert distance(whole, resumed) <= rounding


def test_a_training_that_had_taken_all_its_steps_takes_no_further_one(recipe: MakeRecipe, tmp_path: Path) -> None:
    """Its last step is the first of the second epoch."""
    fields = {"data": write_lists(tmp_path, colour_lists(9)), "max_steps": 4, "schedule": "constant"}
    trained = train(recipe(**fields))
    before = weights_of(trained.folder)
    again = train(recipe(**fields, resume=True))
    assert (trained.steps, again.steps) == (4, 4)
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(again.folder).items())


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_ends_where_an_uninterrupted_one_ends(
    recipe: MakeRecipe, tmp_path: Path
) -> None:
    fields = {
        "data": write_lists(tmp_path, colour_lists(16)),
        "save_steps": 3,
        "epochs": 12,
        "shuffle_candidates": True,
        "feature_cache_gb": 0.0,
    }
    whole = train(recipe(**fields, output_dir=str(tmp_path / "whole"))).folder
    killed = recipe(**fields, output_dir=str(tmp_path / "killed"), resume=True)
    command = [*COMMAND, as_file(killed, tmp_path / "recipe.json")]
    process = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    while not last_complete_checkpoint(tmp_path / "killed"):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    time.sleep(random.uniform(0, 2))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    train(killed)
    assert distance(whole, tmp_path / "killed") == 0


@pytest.mark.slow
def test_two_processes_train_as_one(recipe: MakeRecipe, tmp_path: Path) -> None:
    sgd = json.dumps({"optim": "sgd", "use_cpu": True})
    fields = {
        "data": write_lists(tmp_path, colour_lists(12)),
        "eval_data": write_lists(tmp_path, colour_lists(5), "eval.jsonl"),
        "epochs": 2,
        "learning_rate": 0.05,
        "trainer": sgd,
        "shuffle_candidates": True,
        "save_steps": 2,
    }
    one = train(recipe(**fields, output_dir=str(tmp_path / "one")))
    two = recipe(**fields, batch_size=2, output_dir=str(tmp_path / "two"))
    command = [*LAUNCH, *COMMAND[1:], as_file(two, tmp_path / "recipe.json")]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert distance(one.folder, tmp_path / "two") < 1e-6
    assert done.stdout.count("| recall@1 |") == 1
    assert f"| {100 * one.quality['before training']['recall@1']:.1f} |" in done.stdout


@pytest.mark.slow
def test_a_full_disk_is_a_clear_error_and_costs_no_finished_work(recipe: MakeRecipe, tmp_path: Path) -> None:
    """The output folder lies on a file system of its own, with room for a few checkpoints only."""
    namespace = ["unshare", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("this system gives no mount namespace")
    disk = tmp_path / "disk"
    disk.mkdir()
    fields = {"data": write_lists(tmp_path, colour_lists(8)), "epochs": 5, "save_steps": 1, "keep_checkpoints": 9}
    config = as_file(recipe(**fields, output_dir=str(disk / "trained")), tmp_path / "recipe.json")
    script = f'mount -t tmpfs -o size=48m tmpfs "{disk}" && "$@"; ls "{disk}/trained"'
    done = subprocess.run(
        [*namespace, "sh", "-c", script, "-", *COMMAND, config],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    kept = done.stdout.split()
    assert kept and kept == [f"checkpoint-{step + 1}" for step in range(len(kept))]
    assert f"The one before, {kept[-1]}, is complete" in done.stderr
    assert f"checkpoint-{len(kept) + 1}' could not be written" in done.stderr


@pytest.mark.slow
def test_shards_are_refused_on_every_process(recipe: MakeRecipe, tmp_path: Path) -> None:
    config = as_file(recipe(data=write_lists(tmp_path, colour_lists(8))), tmp_path / "recipe.json")
    launch = ["--use_fsdp" if flag == "--multi_gpu" else flag for flag in LAUNCH]
    command = [*launch, "--fsdp_version", "2", *COMMAND[1:], config]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "FSDP cuts the model into shards" in done.stderr and "--multi_gpu (DDP)" in done.stderr
