"""Which classes of colpali-engine load a checkpoint: its own ``config.json`` decides, never its name."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from colpali_engine import models
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import cached_file

from llama_index_ziprerank.checkpoints import check_folder, resolve_retriever


@dataclass(frozen=True)
class Family:
    """One architecture of colpali-engine that gives a page many vectors."""

    name: str
    model: Any
    processor: Any
    projection: str
    """Name of the layer that makes vectors of hidden states: what a retriever has and its base model has not."""
    unused_head: str | None = None
    """A language-model head that the forward pass runs for nothing."""


_FAMILIES = {
    "paligemma": Family("ColPali", models.ColPali, models.ColPaliProcessor, "custom_text_proj", "model.lm_head"),
    "qwen2_vl": Family("ColQwen2", models.ColQwen2, models.ColQwen2Processor, "custom_text_proj"),
    "qwen2_5_vl": Family("ColQwen2.5", models.ColQwen2_5, models.ColQwen2_5_Processor, "custom_text_proj"),
    "qwen3_vl": Family("ColQwen3", models.ColQwen3, models.ColQwen3Processor, "custom_text_proj"),
    "qwen3_5": Family("ColQwen3.5", models.ColQwen3_5, models.ColQwen3_5Processor, "custom_text_proj"),
    "idefics3": Family("ColIdefics3", models.ColIdefics3, models.ColIdefics3Processor, "linear"),
    "modernvbert": Family("ColModernVBERT", models.ColModernVBert, models.ColModernVBertProcessor, "custom_text_proj"),
    "gemma3": Family("ColGemma3", models.ColGemma3, models.ColGemmaProcessor3, "custom_text_proj"),
}
"""By ``model_type``."""


class RetrieverError(ValueError):
    """A checkpoint is not one that the encoder can load; the message says why."""


def load(name_or_path: str, device: str, dtype: torch.dtype | str) -> tuple[Family, PreTrainedModel, Any]:
    """Load family, model (evaluation mode, on ``device``) and processor of a retriever.

    ``"nano"``, or a full checkpoint or LoRA adapter from the Hugging Face Hub or a folder. Only safetensors are read,
    and code inside a repository is never run.

    Raises:
        RetrieverError: when the checkpoint is of no supported family, is a base model without a trained projection,
            lacks weights, or has files that are cut off.
        OSError: when it cannot be found.
    """
    path = resolve_retriever(name_or_path)
    check_folder(name_or_path, path)
    adapter = _read_json(path, "adapter_config.json")
    base = adapter["base_model_name_or_path"] if adapter else None
    config = _read_json(path, "config.json")
    if config is None and base is not None:
        config = _read_json(base, "config.json")
    if config is None:
        raise RetrieverError(
            f"{name_or_path!r} has no config.json (nor an adapter_config.json that names its base), or the Hugging "
            "Face Hub cannot be reached. Check the name, the network and HF_HUB_OFFLINE."
        )
    family = _family(name_or_path, config)
    if adapter and not _has(path, "adapter_model.safetensors"):
        raise RetrieverError(f"The adapter {name_or_path!r} has no adapter_model.safetensors; no other format is read.")
    try:
        model, loading = family.model.from_pretrained(
            path, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except SafetensorError as error:
        raise RetrieverError(
            f"The weights of {name_or_path!r} cannot be read ({error}): a file is cut off, or what Git LFS leaves in "
            "place of one. Fetch it again."
        ) from error
    missing = sorted(key for key in loading["missing_keys"] if key != f"{family.unused_head}.weight")
    if any(key.startswith(family.projection + ".") for key in missing):
        raise RetrieverError(
            f"{name_or_path!r} holds no weights for {family.projection!r}: it is a base model, not a trained "
            f"{family.name} retriever."
        )
    if missing:
        raise RetrieverError(
            f"The checkpoint {name_or_path!r} lacks {len(missing)} weights of a {family.name} retriever, such as "
            f"{missing[0]}. Use a complete checkpoint."
        )
    if family.unused_head:
        model.set_submodule(family.unused_head, torch.nn.Identity())  # PaliGemma's: 257,216 logits a token
    home = base if base and not _has(path, "tokenizer_config.json") else path
    processor = family.processor.from_pretrained(home, trust_remote_code=False)
    return family, model.to(device).eval(), processor


def _family(name_or_path: str, config: dict[str, Any]) -> Family:
    model_type = config.get("model_type")
    known = ", ".join(f"{family.name} ({key})" for key, family in _FAMILIES.items())
    if model_type not in _FAMILIES:
        raise RetrieverError(
            f"{name_or_path!r} has model_type {model_type!r} and architectures {config.get('architectures')}. "
            f"The encoder loads colpali-engine's multi-vector families: {known}."
        )
    single = [name for name in config.get("architectures") or [] if name.startswith("Bi")]
    if single:
        raise RetrieverError(
            f"{name_or_path!r} is {single[0]}, which gives one vector a page. "
            f"The encoder loads colpali-engine's multi-vector families: {known}."
        )
    return _FAMILIES[model_type]


def _has(name_or_path: str, file_name: str) -> bool:
    return cached_file(name_or_path, file_name, _raise_exceptions_for_missing_entries=False) is not None


def _read_json(name_or_path: str, file_name: str) -> dict[str, Any] | None:
    path = cached_file(name_or_path, file_name, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        try:
            content: dict[str, Any] = json.load(file)
        except ValueError as error:
            raise RetrieverError(
                f"{file_name} of {name_or_path!r} cannot be read ({error}). Fetch it again."
            ) from error
    return content
