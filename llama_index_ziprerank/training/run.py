"""One stage of training from a recipe to a finished checkpoint: `train(recipe)`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import TrainerCallback

from llama_index_ziprerank.reranking.loading import load_processor
from llama_index_ziprerank.training.cache import FeatureCache
from llama_index_ziprerank.training.card import figures, last_measured, model_card, quality
from llama_index_ziprerank.training.collator import RankingCollator
from llama_index_ziprerank.training.data import training_data
from llama_index_ziprerank.training.losses import Objective
from llama_index_ziprerank.training.options import RECIPE, write_recipe
from llama_index_ziprerank.training.recipes import RankingRecipe
from llama_index_ziprerank.training.saving import begin, check_room, save_finished
from llama_index_ziprerank.training.setup import flush_denormals, training_arguments, training_model
from llama_index_ziprerank.training.trainer import RerankTrainer


@dataclass(frozen=True)
class Trained:
    """What a stage leaves behind."""

    folder: Path
    """The checkpoint: `ZipRerankPostprocessor(model=folder)` takes it."""
    quality: dict[str, dict[str, float]]
    """Metrics of the first stage, of the model before training, and after it; empty when nothing was held out."""
    steps: int
    """Optimiser steps that were taken."""


def train(recipe: RankingRecipe, callbacks: Sequence[TrainerCallback] = ()) -> Trained:
    """Run a stage; under ``accelerate launch`` every process calls this. `callbacks` are told what the Trainer does.

    Raises:
        FileNotFoundError: when model or data do not exist.
        ValueError: when the data, the model, the device or the recipe cannot be used; the message says what to do.
        CheckpointError: when a checkpoint cannot be written.
        FloatingPointError: when the loss is no number any more.
    """
    flush_denormals()
    folder = Path(recipe.output_dir)
    resumed = begin(recipe)
    learned, held_out, described = training_data(recipe)
    arguments = training_arguments(recipe, evaluates=held_out is not None, resumes=resumed is not None)
    model = training_model(recipe)
    check_room(model, folder)
    trainer = RerankTrainer(
        model,
        arguments,
        RankingCollator(
            load_processor(recipe.model),
            canvas=recipe.canvas,
            shuffle_seed=recipe.seed if recipe.shuffle_candidates else None,
            cache=FeatureCache(0 if recipe.train_vision else int(recipe.feature_cache_gb * 1e9)),
        ),
        Objective(recipe.ranking_loss, recipe.ranking_weight, recipe.decay, recipe.language_model_weight),
        train_dataset=learned,
        eval_dataset=held_out,
        keep_ratio=recipe.keep_ratio,
        pruning=recipe.pruning,
        padding_side=recipe.padding_side,
    )

    def write_papers(checkpoint: Path) -> None:
        state = trainer.state
        measured = figures(len(held_out) if held_out is not None else 0, state.log_history)
        card = model_card(recipe, described, state.global_step, measured)
        (checkpoint / "README.md").write_text(card, encoding="utf-8", errors="replace")
        write_recipe(replace(recipe, resume=False), checkpoint / RECIPE)  # it begins anew

    trainer.papers = write_papers
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    stale = arguments.load_best_model_at_end or last_measured(trainer.state.log_history) != trainer.state.global_step
    if held_out is not None and stale:
        trainer.evaluate()
    save_finished(trainer, getattr(torch, recipe.precision))
    return Trained(folder, quality(trainer.state.log_history), trainer.state.global_step)
