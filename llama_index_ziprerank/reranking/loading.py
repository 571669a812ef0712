"""A checkpoint's name becomes a model and a processor: where it runs, in which precision, and what is refused."""

import logging
from typing import Any

import torch
from transformers import AutoConfig, AutoProcessor, PreTrainedConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
from transformers.utils import is_flash_attn_2_available

from llama_index_ziprerank.checkpoints import check_folder, resolve_reranker
from llama_index_ziprerank.reranking.last_layer import use_last_layer_at_read_position
from llama_index_ziprerank.reranking.permutation import WINDOW_SIZE, identifier_token_ids
from llama_index_ziprerank.reranking.quantization import Quantization, check_quantization, quantize
from llama_index_ziprerank.vision import use_batched_attention, use_linear_patch_embedding

_log = logging.getLogger(__name__)

DTYPES = ("auto", "bfloat16", "float16", "float32")
"""Precisions by name; ``"auto"`` is the one that the checkpoint was saved in."""


def load_model(
    name_or_path: str,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    quantization: Quantization | None = None,
) -> Qwen3VLForConditionalGeneration:
    """Load a Qwen3-VL from safetensors; arguments and errors as `ListwiseReranker.from_pretrained`."""
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise ValueError(f"dtype is one of {', '.join(map(repr, DTYPES))}, got {dtype!r}.")
    check_quantization(quantization)
    path = resolve_reranker(name_or_path)
    config = _checked_config(name_or_path, path)
    device = torch.device(device if device is not None else default_device())
    if dtype is None:
        dtype = "float32" if device.type == "cpu" else "auto"
    loaded: Any = Qwen3VLForConditionalGeneration.from_pretrained(
        path,
        dtype=dtype,
        device_map={"": device},
        attn_implementation=attn_implementation,
        use_safetensors=True,
        output_loading_info=True,
    )
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"The checkpoint {name_or_path!r} lacks {len(missing)} weights of a Qwen3-VL reranker, such as "
            f"{missing[0]}. Use a complete checkpoint; merge an adapter into its base model first."
        )
    if _says_float32(config) and model.dtype != torch.float32:
        _log.warning("%s ranks in float32; in %s its orders are others. Leave dtype out.", name_or_path, model.dtype)
    make_fast(model, choose_attention=attn_implementation is None)
    if quantization is not None:
        quantize(model, quantization)
    return model.eval()


def needs_float32(name_or_path: str) -> bool:
    """Say whether a checkpoint ranks in float32 alone, as its config says: nano, and what was trained from it.

    Raises:
        FileNotFoundError, ValueError: when it is no checkpoint of a reranker.
    """
    return _says_float32(_checked_config(name_or_path, resolve_reranker(name_or_path)))


def make_fast(model: Qwen3VLForConditionalGeneration, *, choose_attention: bool = True) -> None:
    """Change what can be faster and computes the same: see `vision.py` and `last_layer.py`.

    With ``choose_attention`` the tower takes FlashAttention where that is installed and fits: it reads pages of any
    sizes in one call. The language model needs none of it, since torch's own attention is causal without a mask.
    """
    use_linear_patch_embedding(model.model.visual)
    use_batched_attention(model.model.visual)
    use_last_layer_at_read_position(model)
    half = model.dtype in (torch.bfloat16, torch.float16)
    if choose_attention and half and model.device.type == "cuda" and is_flash_attn_2_available():
        set_tower_attention(model, "flash_attention_2")


def set_tower_attention(model: Qwen3VLForConditionalGeneration, name: str) -> None:
    """Choose one of transformers' attentions for the vision tower; the language model keeps its own."""
    model.set_attn_implementation({"vision_config": name})


def load_processor(name_or_path: str) -> Qwen3VLProcessor:
    """Load tokenizer, chat template and image processor; ValueError when A-T are not one token each."""
    processor = AutoProcessor.from_pretrained(resolve_reranker(name_or_path), trust_remote_code=False)
    identifier_token_ids(processor.tokenizer, WINDOW_SIZE)
    return processor


def default_device() -> str:
    """Return the best device there is: cuda, else mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _checked_config(name_or_path: str, path: str) -> PreTrainedConfig:
    """Read the configuration, refusing what is not a Qwen3-VL checkpoint before any weight is read."""
    check_folder(name_or_path, path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name_or_path!r} is no checkpoint that transformers can read: {error}") from error
    if config.model_type != "qwen3_vl":
        raise ValueError(
            f"A ZipRerank reranker is a Qwen3-VL checkpoint (model_type 'qwen3_vl'); {name_or_path!r} is "
            f'{config.model_type!r}. Pass "nano" or "mtri-admin/ZipRerank".'
        )
    return config


def _says_float32(config: PreTrainedConfig) -> bool:
    return bool(getattr(config, "needs_float32", False))
