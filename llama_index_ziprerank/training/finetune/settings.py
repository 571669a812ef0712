"""What is fine-tuned on what, with whose help, and whether an output folder holds the beginning of just that."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch

from llama_index_ziprerank.checkpoints import EMBEDDED
from llama_index_ziprerank.labels.headings import read_outline
from llama_index_ziprerank.pages.pdf import read_pages
from llama_index_ziprerank.reranking.loading import needs_float32
from llama_index_ziprerank.training.finetune.documents import write_whole
from llama_index_ziprerank.training.finetune.text_teacher import Embed
from llama_index_ziprerank.training.recipes import Stage2
from llama_index_ziprerank.training.setup import training_arguments
from llama_index_ziprerank.training.teacher import Teacher

OpenTeacher: TypeAlias = Callable[[], AbstractAsyncContextManager[Teacher]]

WORK = "work"
"""Folder in the output folder with everything that leads to the checkpoint."""

RECIPE: dict[str, Any] = {
    "lora_rank": 16,
    "learning_rate": 1e-4,
    "lora_dropout": 0.0,
    "epochs": 3.0,
    "batch_size": 1,
    "gradient_accumulation": 8,
    "warmup_steps": 5,
    "save_steps": 10,
    "shuffle_candidates": True,
}
"""Where stage 2 on a few hundred lists differs from the paper's on 50,000: adapters and a rate that suits them, for
there are few steps; shuffled, because a page that the first stage missed stands last and must not be known by that."""

ON_GPU: dict[str, Any] = {"precision": "bfloat16", "gradient_checkpointing": True, "workers": 2}
ON_CPU: dict[str, Any] = {
    "precision": "float32",
    "gradient_checkpointing": False,
    "workers": 0,
    "keep_ratio": 0.125,
    "pruning": "query",
}
"""A CPU reads an eighth of the visual tokens, chosen by the question: attention over all takes most of the time."""

NANO: dict[str, Any] = {
    "precision": "float32",
    "learning_rate": 1e-5,
    "gradient_accumulation": 4,
    "language_model_weight": 0.0,
    "max_candidates": 20,
    "shuffle_candidates": False,
    "decay": 0.02,
    "keep_ratio": 0.16,
    "pruning": "query",
}
"""For the embedded model, and what was trained from it: it never learned to write a ranking out, and letters that
shorter lists leave out drift. It reads pages as it does when it ranks.

It takes the order of the first stage for a hint, and learned which page answers rather than which comes next. That does
not survive high rates: at 3e-5 nDCG@5 on nettle's manual fell by 3 to 5 points in 40 to 103 steps, whatever order and
decay; at 1e-5 it stayed. In bfloat16 it is another model.
"""

_OWN = {"model", "data", "output_dir", "held_out", "resume"}
"""Fields of stage 2 that are no choice here: options of the command, or made by it."""

CPU_MINUTES = 15.0
"""Time limit on a CPU where none is given."""


@dataclass(frozen=True)
class Settings:
    """What is fine-tuned on what."""

    output: Path
    model: str = EMBEDDED
    retriever: str = EMBEDDED
    held_out: float = 0.25
    """Share of the questions that are measured on, about."""
    questions_per_page: int = 3
    """That an LLM writes."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """Fields of stage 2 that differ from `RECIPE`."""
    seed: int = 0
    minutes: float | None = None
    """Time limit, which bounds steps and measured questions; 0: none; None: `CPU_MINUTES` on a CPU, else none."""

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out is a share between 0 and 1, got {self.held_out}.")
        if self.questions_per_page < 1:
            raise ValueError(f"questions_per_page is at least 1, got {self.questions_per_page}.")
        if self.minutes is not None and not self.minutes >= 0:  # NaN is neither
            raise ValueError(f"minutes is at least 0 (no limit), got {self.minutes}.")


@dataclass(frozen=True)
class Helpers:
    """What orders the candidates, and what may help with it."""

    name: str = "the text layer, BM25 alone"
    """What is said about the teacher."""
    open_teacher: OpenTeacher | None = None
    """Opens a model that sees pages, which writes questions and orders candidates; None: the text layer stands in."""
    embed: Embed | None = None
    """Sentence embeddings for the text layer."""


def stage2_recipe(settings: Settings) -> Stage2:
    """Return the recipe of stage 2.

    Raises:
        FileNotFoundError: when the model is a folder that does not exist.
        ValueError: when a field is unknown or out of its bounds, or the model is no reranker.
    """
    values: dict[str, Any] = {
        **RECIPE,
        **(ON_GPU if torch.cuda.is_available() else ON_CPU),
        **(NANO if needs_float32(settings.model) else {}),
        "seed": settings.seed,
        **settings.recipe,
        "model": settings.model,
        "data": str(settings.output / WORK / "lists.jsonl"),
        "output_dir": str(settings.output),
        "held_out": 0,
        "resume": True,
    }
    if own := sorted(_OWN & set(settings.recipe)):
        raise ValueError(f"The recipe names {', '.join(own)}, which fine-tuning sets itself. Leave it out.")
    try:
        return Stage2(**values)
    except TypeError as error:
        raise ValueError(f"The recipe has a field that stage 2 has not: {error}") from error


def time_limit(settings: Settings) -> float:
    """Return the minutes that a run may take; 0: no limit."""
    if settings.minutes is not None:
        return settings.minutes
    return 0.0 if torch.cuda.is_available() else CPU_MINUTES


def check_output(pdfs: Sequence[Path], settings: Settings, helpers: Helpers) -> Path:
    """Return the file that says what the output folder holds; written where the folder is empty.

    Raises:
        PageError: when a PDF cannot be read.
        ValueError: when the folder holds something else than the beginning of this very fine-tuning.
    """
    if len({path.stem for path in pdfs}) < len(pdfs):
        raise ValueError(f"Each PDF needs a name of its own, got {', '.join(map(str, pdfs))}. Rename one.")
    for path in pdfs:
        read_pages(path)  # opens it: a wrong file must not claim the folder
        read_outline(path)
    told = settings.output / WORK / "settings.json"
    files = [[path.name, path.stat().st_size] for path in pdfs if path.is_file()]
    chosen = {key: value for key, value in asdict(settings).items() if key not in ("output", "minutes")}
    wanted = {"files": files, "teacher": helpers.name, **chosen}
    if told.is_file():
        found = json.loads(told.read_text(encoding="utf-8"))
        if differing := sorted(key for key in wanted if found.get(key) != wanted[key]):
            raise ValueError(
                f"{str(settings.output)!r} holds a fine-tuning with other {', '.join(differing)}. Name another folder, "
                "or run it with what it was begun with."
            )
        return told
    if settings.output.is_dir() and any(settings.output.iterdir()):
        raise ValueError(f"The output folder {str(settings.output)!r} is not empty. Name another.")
    training_arguments(stage2_recipe(settings), evaluates=False, resumes=False)  # wrong fields before a page is read
    told.parent.mkdir(parents=True, exist_ok=True)
    write_whole(told, json.dumps(wanted, indent=2))
    return told
