"""Which classes of colpali-engine load a checkpoint: its own ``config.json`` decides, never its name."""

import json
from dataclasses import dataclass
from pathlib import Path
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

_REPLACED = ".modules_to_save.default."
"""Stands in the name of a weight that an adapter brings whole, in place of its base's."""


class RetrieverError(ValueError):
    """A checkpoint is not one that the encoder can load; the message says why."""


def load(name_or_path: str, device: str, dtype: torch.dtype | str) -> tuple[Family, PreTrainedModel, Any]:
    """Load family, model (evaluation mode, on ``device``) and processor of a retriever.

    ``"nano"``, or a full checkpoint or LoRA adapter from the Hugging Face Hub or a folder. Only safetensors are read,
    and code inside a repository is never run.

    Raises:
        RetrieverError: when the checkpoint is of no supported family, is a base model without a trained projection,
            lacks weights (of an adapter: those that neither it nor its base has), holds an adapter beside a whole
            model, or has files that are cut off.
        OSError: when it, or the base of an adapter, cannot be found.
    """
    path = resolve_retriever(name_or_path)
    check_folder(name_or_path, path)
    adapter = _read_json(path, "adapter_config.json")
    base = adapter.get("base_model_name_or_path") if adapter else None
    config = _read_json(path, "config.json")
    if base is not None:
        _check_adapter(name_or_path, path, base)
        config = config or _read_json(base, "config.json")
    if config is None:
        raise RetrieverError(
            f"{name_or_path!r} has no config.json (nor an adapter_config.json that names its base), or the Hugging "
            "Face Hub cannot be reached. Check the name, the network and HF_HUB_OFFLINE."
        )
    family = _family(name_or_path, config)
    said = repr(name_or_path) if base is None else f"{name_or_path!r} on its base {base!r}"
    try:
        lacking = set() if base is None else _from_pretrained(family, base, dtype=dtype, device_map="meta")[1]
        model, missing = _from_pretrained(family, path, dtype=dtype)
    except SafetensorError as error:
        raise RetrieverError(
            f"The weights of {said} cannot be read ({error}): a file is cut off, or what Git LFS leaves in "
            "place of one. Fetch it again."
        ) from error
    replaced = {name.replace(_REPLACED, ".") for name, _ in model.named_parameters() if _REPLACED in name}
    _check_complete(said, family, missing | (lacking - replaced))
    if family.unused_head:
        model.set_submodule(family.unused_head, torch.nn.Identity())  # PaliGemma's: 257,216 logits a token
    home = base if base and not _has(path, "tokenizer_config.json") else path
    processor = family.processor.from_pretrained(home, trust_remote_code=False)
    return family, model.to(device).eval(), processor


def _check_adapter(name_or_path: str, path: str, base: str) -> None:
    check_folder(f"the base of {name_or_path}", base)
    if not _has(path, "adapter_model.safetensors"):
        raise RetrieverError(f"The adapter {name_or_path!r} has no adapter_model.safetensors; no other format is read.")
    if any(Path(path).glob("model*.safetensors")):
        raise RetrieverError(
            f"{name_or_path!r} holds a LoRA adapter (adapter_config.json) beside a whole model's weights, and "
            "transformers would add it to weights that may hold it already. Take one of the two out of the folder."
        )


def _from_pretrained(family: Family, path: str, **choices: Any) -> tuple[PreTrainedModel, set[str]]:
    """Load a model; return the weights that it lacks too. Of an adapter those are its own, and none of its base."""
    model, loading = family.model.from_pretrained(
        path, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **choices
    )
    return model, set(loading["missing_keys"])


def _check_complete(said: str, family: Family, lacking: set[str]) -> None:
    missing = sorted(lacking - {f"{family.unused_head}.weight"})
    if any(key.startswith(family.projection + ".") for key in missing):
        raise RetrieverError(
            f"{said} holds no weights for {family.projection!r}: it is a base model, not a trained "
            f"{family.name} retriever."
        )
    if missing:
        raise RetrieverError(
            f"The checkpoint {said} lacks {len(missing)} weights of a {family.name} retriever, such as "
            f"{missing[0]}. Use a complete checkpoint."
        )


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
