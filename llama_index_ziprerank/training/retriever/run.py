"""The first stage's training from a recipe to a finished checkpoint: `train_retriever(recipe)`."""

from dataclasses import replace
from pathlib import Path

import torch

from llama_index_ziprerank.training.card import last_measured, quality
from llama_index_ziprerank.training.data import training_data
from llama_index_ziprerank.training.options import RECIPE, write_recipe
from llama_index_ziprerank.training.retriever.card import retriever_card
from llama_index_ziprerank.training.retriever.mining import mined_negatives
from llama_index_ziprerank.training.retriever.model import loss_function, training_retriever
from llama_index_ziprerank.training.retriever.pairs import Corpus, Pairs, collect
from llama_index_ziprerank.training.retriever.trainer import RetrieverTrainer
from llama_index_ziprerank.training.retriever_recipe import Retriever
from llama_index_ziprerank.training.run import Trained
from llama_index_ziprerank.training.saving import begin, check_room, save_finished
from llama_index_ziprerank.training.setup import training_arguments


def train_retriever(recipe: Retriever) -> Trained:
    """Train a retriever; `ColPaliIndex(model=folder)` takes what it leaves. All processes of a launch call this.

    Raises:
        FileNotFoundError, OSError: when model or data do not exist.
        ValueError: when the data, the model, the device or the recipe cannot be used; the message says what to do.
        CheckpointError: when a checkpoint cannot be written.
        FloatingPointError: when the loss is no number any more.
    """
    folder = Path(recipe.output_dir)
    resumed = begin(recipe)
    learned, held_out, described = training_data(recipe)
    corpus = collect((learned[number] for number in range(len(learned))), recipe.canvas)
    measured = None
    if held_out is not None:
        measured = collect((held_out[number] for number in range(len(held_out))), recipe.canvas)
    arguments = training_arguments(recipe, evaluates=measured is not None, resumes=resumed is not None)
    arguments.dataloader_drop_last = True  # the loss compares a batch: a small last one would be another task
    _check_enough(corpus, recipe, arguments.world_size)
    retriever = training_retriever(recipe)
    check_room(retriever.model, folder)
    negatives = None
    if recipe.negatives == "mined":
        retriever.model.to(arguments.device)
        negatives = mined_negatives(retriever.encoder(), corpus, recipe, writes=arguments.should_save)
    trainer = RetrieverTrainer(retriever, arguments, loss_function(recipe), Pairs(corpus, negatives), measured)

    def write_papers(checkpoint: Path) -> None:
        state = trainer.state
        card = retriever_card(recipe, retriever.family.name, described, measured, state.global_step, state.log_history)
        (checkpoint / "README.md").write_text(card, encoding="utf-8", errors="replace")
        write_recipe(replace(recipe, resume=False), checkpoint / RECIPE)  # it begins anew

    trainer.papers = write_papers
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    stale = arguments.load_best_model_at_end or last_measured(trainer.state.log_history) != trainer.state.global_step
    if measured is not None and stale:
        trainer.evaluate()
    save_finished(trainer, getattr(torch, recipe.precision))
    return Trained(folder, quality(trainer.state.log_history), trainer.state.global_step)


def _check_enough(corpus: Corpus, recipe: Retriever, processes: int) -> None:
    """Raise ValueError when the pairs do not fill a single batch."""
    pairs, wanted = len(Pairs(corpus)), recipe.batch_size * processes
    if pairs < wanted or len(corpus.pages) < 2:
        raise ValueError(
            f"The training lists of {recipe.data!r} hold {pairs} pairs of a question and its page, and "
            f"{len(corpus.pages)} pages; a batch wants {wanted} pairs. Pass a lower --batch_size, or more lists."
        )
