"""A recipe becomes what the trainer needs: the model with the right parts frozen, and transformers' arguments."""

import importlib.util
import json
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import TrainingArguments, set_seed

from llama_index_ziprerank.reranking.loading import default_device, load_model, needs_float32
from llama_index_ziprerank.training.recipes import RankingRecipe, Recipe

LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""Every matrix of the language model's layers; the vision tower has none of them."""

_FIELDS = set(TrainingArguments.__dataclass_fields__)
_CHECKPOINTING = "activation" if "activation_checkpointing" in _FIELDS else "gradient"  # renamed between 5.20 and 5.23


def training_model(recipe: RankingRecipe) -> nn.Module:
    """Load the model, freeze what the recipe does not train, and add LoRA adapters where it asks for them.

    Its config will say that it prunes as it was trained to (`RankingOptions`).

    Raises:
        FileNotFoundError, ValueError: when the checkpoint is none; as `ListwiseReranker.from_pretrained`.
    """
    set_seed(recipe.seed)
    model = load_model(recipe.model, "cpu", held_precision(recipe), recipe.attn_implementation)  # the Trainer moves it
    model.config.update({"use_cache": False, "keep_ratio": recipe.keep_ratio, "pruning": recipe.pruning})
    model.model.visual.requires_grad_(recipe.train_vision)
    if not recipe.lora_rank:
        return model
    adapters = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha or 2 * recipe.lora_rank,
        lora_dropout=recipe.lora_dropout,
        target_modules=LORA_TARGETS,
        modules_to_save=["visual"] if recipe.train_vision else None,
    )
    return get_peft_model(model, adapters)


def flush_denormals() -> None:
    """Let CPUs take numbers below 1e-38 for zero: peaked attention is full of them, and each costs a hundred cycles.

    On a busy machine a backward pass of nano over 20 pages (4,424 tokens) took 3 s so, and had not ended after 20 s
    otherwise. Threads inherit the mode when they are made, so this comes before any tensor is computed.
    """
    torch.set_flush_denormal(True)


def held_precision(recipe: Recipe) -> str:
    """Return the precision in which weights are held; see `Recipe.weights`."""
    if recipe.weights != "auto":
        return recipe.weights
    return recipe.precision if recipe.lora_rank else "float32"


def training_arguments(recipe: Recipe, *, evaluates: bool, resumes: bool) -> TrainingArguments:
    """Translate a recipe into transformers' words.

    Raises:
        ValueError: when the device cannot compute in the recipe's precision, or `recipe.trainer` holds no JSON object
            of TrainingArguments' fields.
    """
    check_precision(recipe)
    values: dict[str, Any] = {
        "output_dir": recipe.output_dir,
        "num_train_epochs": recipe.epochs,
        "max_steps": recipe.max_steps,
        "per_device_train_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": recipe.gradient_accumulation,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.schedule,
        "warmup_steps": recipe.warmup_steps,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "optim": optimizer_name(recipe),
        "bf16": recipe.precision == "bfloat16",
        f"{_CHECKPOINTING}_checkpointing": recipe.gradient_checkpointing,
        f"{_CHECKPOINTING}_checkpointing_kwargs": {"use_reentrant": False},
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": recipe.eval_steps,
        "eval_on_start": evaluates and not resumes,
        "save_steps": recipe.save_steps,
        "save_total_limit": recipe.keep_checkpoints,
        "logging_steps": recipe.logging_steps,
        "logging_nan_inf_filter": False,  # a loss that is no number ends the training instead
        "dataloader_num_workers": recipe.workers,
        "dataloader_pin_memory": False,  # rows are not plain tensors
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,
        "seed": recipe.seed,
        "report_to": "none",
    }
    arguments = TrainingArguments(**{**values, **_further(recipe.trainer)})
    check_whole(arguments)
    arguments._n_gpu = min(arguments.n_gpu, 1)  # rows cannot be scattered: several GPUs are for `accelerate launch`
    return arguments


def _further(trainer: str | None) -> dict[str, Any]:
    try:
        values = json.loads(trainer or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"--trainer is a JSON object, got {trainer!r}: {error}") from error
    if not isinstance(values, dict) or set(values) - _FIELDS:
        raise ValueError(f"--trainer is a JSON object of fields of transformers.TrainingArguments, got {trainer!r}.")
    return values


def check_whole(arguments: TrainingArguments) -> None:
    """Raise ValueError when the model would be cut into shards (FSDP, ZeRO-3).

    Vision features, pruning and measurements call parts of the model outside its wrapped forward, where a shard holds
    no whole weight. DDP and ZeRO-1 and 2 keep the model whole.
    """
    fsdp = bool(arguments.fsdp) or parse_flag_from_env("ACCELERATE_USE_FSDP")
    zero = arguments.deepspeed_plugin
    if fsdp or (zero is not None and zero.zero_stage == 3):
        raise ValueError(
            f"{'FSDP' if fsdp else 'DeepSpeed ZeRO-3'} cuts the model into shards, but this training needs it whole on "
            "each GPU. Launch with --multi_gpu (DDP) or ZeRO-2 instead; with --lora_rank 16 the weights of an 8B "
            "model take about 18 GB."
        )


def check_precision(recipe: Recipe) -> None:
    """Raise ValueError when the device that would train cannot compute in bfloat16, or the ranker is another in it."""
    if recipe.precision != "bfloat16":
        return
    if isinstance(recipe, RankingRecipe) and needs_float32(recipe.model):
        raise ValueError(
            f"{recipe.model!r} ranks in float32; in bfloat16 another ranker would be trained. Pass --precision float32."
        )
    device = default_device()
    if device != "cuda" or not torch.cuda.is_bf16_supported(including_emulation=False):
        found = torch.cuda.get_device_name() if device == "cuda" else f"no GPU, only {device!r}"
        raise ValueError(
            f"precision 'bfloat16' needs an NVIDIA GPU of compute capability 8.0 or later; there is {found}. "
            "Pass --precision float32."
        )


def optimizer_name(recipe: Recipe) -> str:
    """Return transformers' name of the optimiser; ValueError when 8-bit AdamW is asked for without bitsandbytes."""
    available = importlib.util.find_spec("bitsandbytes") is not None
    if recipe.optimizer == "adamw_8bit" and not available:
        raise ValueError("optimizer 'adamw_8bit' needs bitsandbytes. Install it: pip install bitsandbytes")
    eight_bit = recipe.optimizer == "adamw_8bit" or (
        recipe.optimizer == "auto" and available and torch.cuda.is_available()
    )
    return "adamw_8bit" if eight_bit else "adamw_torch"
