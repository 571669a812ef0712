"""The retriever that is trained: any ColPali family of colpali-engine, whole or with adapters."""

from dataclasses import dataclass
from typing import Any

import torch
from colpali_engine.loss import (
    ColbertLoss,
    ColbertNegativeCELoss,
    ColbertPairwiseCELoss,
    ColbertPairwiseNegativeCELoss,
)
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel, set_seed

from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder
from llama_index_ziprerank.retrieval.families import Family, load
from llama_index_ziprerank.training.retriever_recipe import Retriever
from llama_index_ziprerank.training.setup import held_precision
from llama_index_ziprerank.vision import use_linear_patch_embedding


@dataclass(frozen=True)
class TrainedRetriever:
    """A model that is being trained, and what belongs to it."""

    name: str
    family: Family
    model: nn.Module
    """The family's model, or a PEFT model around it."""
    processor: Any

    def encoder(self) -> MultiVectorEncoder:
        """Return the encoder of the model as it is now; the weights are shared."""
        model: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        return MultiVectorEncoder(self.name, self.family, model, self.processor)


def training_retriever(recipe: Retriever) -> TrainedRetriever:
    """Load the retriever, freeze what the recipe does not train, and add LoRA adapters where it asks for them.

    Raises:
        RetrieverError, OSError: when the checkpoint cannot be loaded; as `families.load`.
    """
    set_seed(recipe.seed)
    family, model, processor = load(recipe.model, "cpu", getattr(torch, held_precision(recipe)))
    merge_adapters(model)
    model._weight_conversions = []  # else weights are saved under their names in the checkpoint or adapter
    use_linear_patch_embedding(model)
    model.requires_grad_(True)
    vision = model.get_encoder(modality="image")
    vision.requires_grad_(recipe.train_vision)
    if not recipe.lora_rank:
        return TrainedRetriever(recipe.model, family, model, processor)
    text = set(model.get_decoder().modules()) | {model.get_submodule(family.projection)}
    adapters = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha or recipe.lora_rank,
        lora_dropout=recipe.lora_dropout,
        init_lora_weights="gaussian",  # as ColPali
        target_modules=[name for name, part in model.named_modules() if isinstance(part, nn.Linear) and part in text],
        modules_to_save=[_name_of(vision, model)] if recipe.train_vision else None,
    )
    return TrainedRetriever(recipe.model, family, get_peft_model(model, adapters), processor)


def merge_adapters(model: PreTrainedModel) -> None:
    """Make the adapters that a checkpoint came with part of its weights, in place."""
    wrapped = [
        (name, part)
        for name, part in model.named_modules()
        if isinstance(part, BaseTunerLayer | AuxiliaryTrainingWrapper)
    ]
    for name, part in wrapped:
        if isinstance(part, BaseTunerLayer):
            part.merge()
            model.set_submodule(name, part.get_base_layer())
        else:
            model.set_submodule(name, part.unload_and_optionally_merge_module(True, False, None))
    if wrapped:
        del model.peft_config
        model._hf_peft_config_loaded = False


def loss_function(recipe: Retriever) -> nn.Module:
    """Return colpali-engine's loss for the recipe. Padding and masked tokens are zero vectors, as its scoring wants."""
    pairwise = recipe.loss == "pairwise"
    temperature = recipe.temperature if recipe.temperature is not None else (1.0 if pairwise else 0.02)
    settings: dict[str, Any] = {"temperature": temperature, "normalize_scores": not pairwise}
    if recipe.negatives == "in_batch":
        return ColbertPairwiseCELoss(**settings) if pairwise else ColbertLoss(**settings)
    settings["in_batch_term_weight"] = recipe.in_batch_weight
    return ColbertPairwiseNegativeCELoss(**settings) if pairwise else ColbertNegativeCELoss(**settings)


def _name_of(part: nn.Module, model: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is part)
