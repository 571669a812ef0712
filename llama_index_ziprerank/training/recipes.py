"""The recipes: everything that can be chosen, with the paper's choice as default.

Stages 1 and 2: ZipRerank (arXiv:2605.11864, section 4 and the released commands). The retriever's
recipe is `retriever_recipe`. Free of torch, so that ``--help`` is quick.
"""

import math
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, TypeAlias, get_args, get_origin, get_type_hints

from llama_index_ziprerank.training.options import option, typed

Precision: TypeAlias = Literal["bfloat16", "float32"]
Bounds: TypeAlias = dict[str, tuple[float, float | None]]


@dataclass(kw_only=True)
class Recipe:
    """What all trainings have in common."""

    bounds: ClassVar[Bounds] = {
        "max_candidates": (2, 20),
        "canvas": (32, 1024),
        "held_out": (0, None),
        "batch_size": (1, None),
        "gradient_accumulation": (1, None),
        "lora_rank": (0, None),
        "lora_alpha": (0, None),
        "lora_dropout": (0, 1),
        "epochs": (1e-9, None),
        "max_steps": (-1, None),
        "learning_rate": (0, None),
        "warmup_steps": (0, None),
        "weight_decay": (0, None),
        "max_grad_norm": (0, None),
        "eval_steps": (1, None),
        "save_steps": (1, None),
        "keep_checkpoints": (1, None),
        "logging_steps": (1, None),
        "workers": (0, None),
        "seed": (0, 2**32 - 1),
    }
    """Least and most of a field; None: no most."""

    model: str = option(
        "Qwen/Qwen3-VL-8B-Instruct", 'Checkpoint to start from: "nano", a folder, or a name on the Hub.'
    )
    data: str = option("", "Training lists: a .jsonl, .json or .parquet file, or a data set on the Hub.")
    pages: str | None = option(
        None, "Folder of the pages of a teacher's rankings: that of `ziprerank label`, or MMDocIR's parquet files."
    )
    eval_data: str | None = option(None, "Lists to measure on, like --data; they are not trained on.")
    held_out: int = option(
        100,
        "Without --eval_data: lists taken out of the training data to measure on, the same for every --seed; 0: none.",
    )
    malformed: Literal["refuse", "skip"] = option(
        "refuse",
        "Rows that cannot be used are counted and named; then training is refused, or they are left out. Images are "
        "opened only when they are trained on.",
    )
    output_dir: str = option("", "Folder of the trained checkpoint; checkpoints on the way are folders inside it.")
    resume: bool = option(False, "Continue from the last complete checkpoint in --output_dir, if there is one.")

    max_candidates: int = option(20, "Most candidates of a list, 2 to 20. A positive that a cut would lose goes last.")
    canvas: int = option(280, "Pixels a side of a text that is drawn as a page.")

    train_vision: bool = option(
        False, "Train the vision tower too; the paper freezes it. Features are then not reused."
    )
    lora_rank: int = option(
        0, "Rank of LoRA adapters on the language model; 0 trains all of its weights, as the paper."
    )
    lora_alpha: int = option(0, "LoRA: adapters are scaled by lora_alpha / lora_rank; 0: by two, whatever the rank.")
    lora_dropout: float = option(0.05, "LoRA: dropout of the adapters' inputs.")

    epochs: float = option(1.0, "Passes over the training data.")
    max_steps: int = option(-1, "Stop after this many optimiser steps, whatever --epochs says; -1: no limit.")
    batch_size: int = option(2, "Lists of a forward pass on each device.")
    gradient_accumulation: int = option(8, "Forward passes of one optimiser step.")
    learning_rate: float = option(3e-6, "Highest learning rate.")
    schedule: str = option("cosine", "How the learning rate falls after the warm-up: a transformers scheduler's name.")
    warmup_steps: int = option(50, "Optimiser steps in which the learning rate rises to its highest.")
    weight_decay: float = option(0.0, "AdamW's weight decay.")
    max_grad_norm: float = option(1.0, "Longer gradients are cut to this norm.")
    optimizer: Literal["auto", "adamw_8bit", "adamw"] = option(
        "auto", "AdamW with 8-bit states (bitsandbytes), or with 32-bit ones; auto: 8-bit on a GPU with bitsandbytes."
    )
    precision: Precision = option("bfloat16", "Of the computation; bfloat16 needs a GPU that has it.")
    weights: Literal["auto", "bfloat16", "float32"] = option(
        "auto",
        "Precision in which weights are held. auto: float32 for what is trained, because steps of 3e-6 vanish when "
        "bfloat16 rounds; with LoRA the frozen base is held in --precision.",
    )
    gradient_checkpointing: bool = option(True, "Compute activations twice to store fewer of them.")

    eval_steps: int = option(500, "Optimiser steps between measurements.")
    save_steps: int = option(500, "Optimiser steps between checkpoints.")
    keep_checkpoints: int = option(2, "Checkpoints to keep; older ones are deleted.")
    logging_steps: int = option(10, "Optimiser steps between log lines.")
    workers: int = option(2, "Processes that read pages, on each device; 0: the training process reads them itself.")
    seed: int = option(42, "For the order of the data and new weights.")
    trainer: str | None = option(
        None, 'Further fields of transformers.TrainingArguments as JSON, such as \'{"report_to": "wandb"}\'; they win.'
    )

    def __post_init__(self) -> None:
        """Take paths for their texts; raise ValueError for a value of another type, or out of its bounds."""
        hints = get_type_hints(type(self))
        for name in (field.name for field in fields(self)):
            value = typed(name, getattr(self, name), hints[name])
            setattr(self, name, value)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} is a finite number, got {value}.")
        for name, (low, high) in self.bounds.items():
            value = getattr(self, name)
            if value is not None and (value < low or (high is not None and value > high)):
                limits = f"at least {low}" if high is None else f"{low} to {high}"
                raise ValueError(f"{name} is {limits}, got {value}.")
        if self.max_steps == 0:
            raise ValueError("max_steps is at least 1, or -1 for no limit, got 0.")
        for name, hint in hints.items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                raise ValueError(f"{name} is one of {', '.join(get_args(hint))}, got {getattr(self, name)!r}.")
        for name in ("data", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"The recipe names no {name}. Pass --{name}.")


@dataclass(kw_only=True)
class RankingRecipe(Recipe):
    """What both stages of the reranker have in common."""

    bounds: ClassVar[Bounds] = {
        **Recipe.bounds,
        "decay": (1e-9, 1),
        "ranking_weight": (0, None),
        "language_model_weight": (0, None),
        "keep_ratio": (1e-9, 1),
        "feature_cache_gb": (0, None),
    }

    shuffle_candidates: bool = option(
        False, "Show candidates in another random order in every epoch: for data whose order gives the answer away."
    )
    ranking_loss: Literal["ranknet", "soft_ranking"] = option("soft_ranking", "Loss on the letters' logits.")
    ranking_weight: float = option(1.0, "Weight of the ranking loss beside the language-model loss.")
    language_model_weight: float = option(
        1.0,
        "Weight of the language-model loss, which teaches to write a ranking out; 0: only the letters' scores learn.",
    )
    decay: float = option(0.5, "Soft ranking: each next place weighs this much of the one before.")
    keep_ratio: float = option(1.0, "Part of the visual tokens that the model reads while it is trained and measured.")
    pruning: Literal["prompt", "query"] = option(
        "prompt", "What visual tokens are compared with when some are dropped."
    )
    padding_side: Literal["right", "left"] = option("right", "Where shorter rows of a batch are padded.")
    attn_implementation: str | None = option(None, "Attention of transformers: sdpa, flash_attention_2, eager.")
    feature_cache_gb: float = option(
        4.0, "Memory of the host, in GB a process, for vision features of pages seen before; 0: none are kept."
    )


@dataclass(kw_only=True)
class Stage1(RankingRecipe):
    """Stage 1: text passages drawn as images, ranked as RankZephyr did; weighted RankNet + language-model loss."""

    data: str = option(
        "rryisthebest/rank_zephyr_training_data_alpha",
        "Training lists: RankZephyr conversations or lists of your own (.jsonl); a file or a data set on the Hub.",
    )
    output_dir: str = option("ziprerank-stage1", "Folder of the trained checkpoint and of those on the way.")
    ranking_loss: Literal["ranknet", "soft_ranking"] = option("ranknet", "Loss on the letters' logits.")
    ranking_weight: float = option(10.0, "Weight of the ranking loss beside the language-model loss.")
    epochs: float = option(3.0, "Passes over the training data.")
    batch_size: int = option(8, "Lists of a forward pass on each device.")
    gradient_accumulation: int = option(4, "Forward passes of one optimiser step.")
    warmup_steps: int = option(100, "Optimiser steps in which the learning rate rises to its highest.")


@dataclass(kw_only=True)
class Stage2(RankingRecipe):
    """Stage 2: page images, ranked by a vision-language teacher; soft ranking + language-model loss."""

    model: str = option(
        "ziprerank-stage1", 'Checkpoint to start from, that of stage 1: a folder, a name on the Hub, or "nano".'
    )
    data: str = option(
        "dukesunmtri/ZipRerank_GPT-5-mini_MMDocIR_Train",
        "Training lists: a teacher's rankings, MMDocIR's or of `ziprerank label` (with --pages), or your own (.jsonl).",
    )
    output_dir: str = option("ziprerank-stage2", "Folder of the trained checkpoint and of those on the way.")
    max_candidates: int = option(10, "Most candidates of a list, 2 to 20. A positive that a cut would lose goes last.")
