"""What is written, so that no finished work is lost: checkpoints on the way, and the finished checkpoint.

A checkpoint counts when its ``trainer_state.json``, which the Trainer writes last, is whole, and its weights are not
cut off: a run that was killed while it wrote one resumes from the one before.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from peft import PeftModel
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import Trainer
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llama_index_ziprerank.pages.page import PageError
from llama_index_ziprerank.training.options import RECIPE, check_recipe
from llama_index_ziprerank.training.recipes import Recipe

_ADAM_BYTES = 8  # two 32-bit moments a trained parameter


class CheckpointError(OSError):
    """A checkpoint could not be written; the message says what is left and how to go on."""


class SavingTrainer(Trainer):
    """A Trainer whose checkpoints carry papers, and which cleans up after a checkpoint that it could not write."""

    papers: Callable[[Path], None] = staticmethod(lambda folder: None)
    """Writes recipe and model card into a checkpoint's folder."""

    def _run_epoch(self, **arguments: Any) -> None:
        """Train for an epoch; a training that had taken all its steps takes no further one (the Trainer takes one)."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**arguments)

    def get_batch_samples(self, *arguments: Any, **named: Any) -> Any:
        """Read the next batches; a page that a worker cannot read is told without the worker's traceback."""
        try:
            return super().get_batch_samples(*arguments, **named)
        except PageError as error:
            raise PageError(str(error).rpartition("PageError: ")[2].strip()) from error

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self.papers(Path(output_dir or self.args.output_dir))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise _unwritten(folder, folder.parent, error) from error


def _unwritten(folder: Path, output_dir: Path, error: Exception) -> CheckpointError:
    kept = last_complete_checkpoint(output_dir)
    return CheckpointError(
        f"The checkpoint {str(folder)!r} could not be written ({error}); "
        f"{shutil.disk_usage(output_dir).free / 1e6:,.0f} MB are free there. "
        + (f"The one before, {kept.name}, is complete. " if kept else "There is none before it. ")
        + "Make room, then run the same command with --resume."
    )


def begin(recipe: Recipe) -> Path | None:
    """Return the checkpoint that a training goes on from; None when it begins.

    Raises:
        ValueError: when the folder holds something and nobody asked to resume, or what another recipe has trained, or
            a model or README.md that no training wrote, which the finished checkpoint would replace.
    """
    output_dir = Path(recipe.output_dir)
    if recipe.resume:
        checkpoint = last_complete_checkpoint(output_dir)
        replaced = [name for name in ("config.json", "README.md") if (output_dir / name).exists()]
        if checkpoint is None and replaced and not (output_dir / RECIPE).is_file():
            raise ValueError(
                f"{str(output_dir)!r} holds no checkpoint to go on from, but a {replaced[0]} that no training wrote. "
                "Name another --output_dir."
            )
        if checkpoint is not None:
            check_recipe(recipe, checkpoint)
        return checkpoint
    if output_dir.is_dir() and any(output_dir.iterdir()):
        raise ValueError(
            f"The output folder {str(output_dir)!r} is not empty. Name another --output_dir, or continue the training "
            "there with --resume."
        )
    return None


def last_complete_checkpoint(output_dir: Path) -> Path | None:
    """Return the latest checkpoint that was written to its end, if there is one."""
    found = {}
    for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*/trainer_state.json"):
        try:
            step = TrainerState.load_from_json(str(path)).global_step
        except (UnicodeDecodeError, json.JSONDecodeError, TypeError):  # cut off
            continue
        if path.parent.name == f"{PREFIX_CHECKPOINT_DIR}-{step}":
            found[step] = path.parent
    return next((found[step] for step in sorted(found, reverse=True) if _is_whole(found[step])), None)


def _is_whole(checkpoint: Path) -> bool:
    """Say whether weights and the optimiser's state are as long as they say."""
    try:
        for weights in checkpoint.glob("*.safetensors"):
            with safe_open(weights, "pt"):
                pass
    except SafetensorError:
        return False
    return all(is_zipfile(state) for state in checkpoint.glob("*.pt"))


def check_room(model: nn.Module, output_dir: Path) -> None:
    """Raise CheckpointError before training when one checkpoint on the way and the finished one do not fit the disk."""
    output_dir.mkdir(parents=True, exist_ok=True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    whole = sum(parameter.nbytes for parameter in model.parameters())
    stored = sum(parameter.nbytes for parameter in trained) if isinstance(model, PeftModel) else whole
    wanted = whole + stored + _ADAM_BYTES * sum(parameter.numel() for parameter in trained)
    free = shutil.disk_usage(output_dir).free
    if free < wanted:
        raise CheckpointError(
            f"This training writes about {wanted / 1e6:,.0f} MB at least, but only {free / 1e6:,.0f} MB are free in "
            f"{str(output_dir)!r}. Make room, or name another --output_dir."
        )


def save_finished(trainer: SavingTrainer, precision: Any) -> Path:
    """Write the trained model as a plain checkpoint into the output folder; adapters are merged into their base.

    All processes call this together. The model is converted in place to the torch dtype `precision`.

    Raises:
        CheckpointError: when it cannot be written; the last checkpoint on the way is untouched.
    """
    folder = Path(trainer.args.output_dir)
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    if isinstance(model, PeftModel):
        trainer.model = trainer.model_wrapped = model.merge_and_unload()
    trainer.model.to(precision)
    try:
        trainer.save_model()
    except (OSError, RuntimeError, SafetensorError) as error:
        raise _unwritten(folder, folder, error) from error
    if trainer.args.should_save:
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; recipe.json says the same and more
    return folder
