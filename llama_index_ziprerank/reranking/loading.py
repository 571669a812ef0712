"""A checkpoint's name becomes a model and a processor: where it runs, in which precision, and what is refused."""

import logging
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoProcessor, PreTrainedConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
from transformers.utils import find_adapter_config_file, is_flash_attn_2_available

from llama_index_ziprerank.checkpoints import check_folder, resolve_reranker
from llama_index_ziprerank.elementwise import use_fewer_passes
from llama_index_ziprerank.reranking.inputs import build_ranking_prompt, own_side
from llama_index_ziprerank.reranking.last_layer import use_last_layer_at_read_position
from llama_index_ziprerank.reranking.options import RankingOptions
from llama_index_ziprerank.reranking.permutation import WINDOW_SIZE
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
    RankingOptions.decide(config)
    device = torch.device(device if device is not None else default_device())
    if dtype is None:
        dtype = "float32" if device.type == "cpu" else "auto"
    try:
        loaded: Any = Qwen3VLForConditionalGeneration.from_pretrained(
            path,
            dtype=dtype,
            device_map={"": device},
            attn_implementation=attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise ValueError(
            f"The weights of {name_or_path!r} cannot be read ({error}): a file is cut off, or what Git LFS leaves in "
            "place of one. Fetch it again."
        ) from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"The checkpoint {name_or_path!r} lacks {len(missing)} weights of a Qwen3-VL reranker, such as "
            f"{missing[0]}. Use a complete checkpoint."
        )
    if _says_float32(config):
        _warn_of_less(name_or_path, model.dtype, quantization)
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
    """Change what can be faster and computes the same: see `vision.py`, `elementwise.py` and `last_layer.py`.

    With ``choose_attention`` the tower takes FlashAttention where that is installed and fits: it reads pages of any
    sizes in one call. The language model needs none of it, since torch's own attention is causal without a mask.
    """
    use_linear_patch_embedding(model.model.visual)
    use_batched_attention(model.model.visual)
    use_fewer_passes(model)
    use_last_layer_at_read_position(model)
    half = model.dtype in (torch.bfloat16, torch.float16)
    if choose_attention and half and model.device.type == "cuda" and is_flash_attn_2_available():
        set_tower_attention(model, "flash_attention_2")


def set_tower_attention(model: Qwen3VLForConditionalGeneration, name: str) -> None:
    """Choose one of transformers' attentions for the vision tower; the language model keeps its own."""
    model.set_attn_implementation({"vision_config": name})


def load_processor(name_or_path: str) -> Qwen3VLProcessor:
    """Load tokenizer, chat template and image processor.

    Raises:
        FileNotFoundError: as `ListwiseReranker.from_pretrained`.
        ValueError: when they cannot be read, cut pages otherwise than the checkpoint's vision tower, or cannot write
            the prompt: A-T are not one token each, or the chat template is missing or another model's; when the image
            processor names a side that pages cannot have.
    """
    path = resolve_reranker(name_or_path)
    vision = _checked_config(name_or_path, path).vision_config
    try:
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"Tokenizer and image processor of {name_or_path!r} cannot be read: {error}") from error
    images = processor.image_processor
    if (images.patch_size, images.merge_size) != (vision.patch_size, vision.spatial_merge_size):
        raise ValueError(
            f"The image processor of {name_or_path!r} has patch_size {images.patch_size} and merge_size "
            f"{images.merge_size}, its vision tower {vision.patch_size} and {vision.spatial_merge_size}. "
            "Use the preprocessor_config.json of the checkpoint that it was made from."
        )
    own_side(processor)
    if processor.chat_template is None:  # some checkpoints keep it with the tokenizer alone
        processor.chat_template = processor.tokenizer.chat_template
    build_ranking_prompt(processor, "?", [(1, images.merge_size, images.merge_size)] * WINDOW_SIZE)
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
        is_adapter = find_adapter_config_file(path) is not None
        config = None if is_adapter else AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name_or_path!r} is no checkpoint that transformers can read: {error}") from error
    if config is None:
        raise ValueError(
            f"{name_or_path!r} holds a LoRA adapter (adapter_config.json), which transformers would add to whatever "
            "weights lie beside it, merged or not. Merge it into its base model and save that to a folder of its own."
        )
    if config.model_type != "qwen3_vl":
        raise ValueError(
            f"A ZipRerank reranker is a Qwen3-VL checkpoint (model_type 'qwen3_vl'); {name_or_path!r} is "
            f'{config.model_type!r}. Pass "nano" or "mtri-admin/ZipRerank".'
        )
    return config


def _warn_of_less(name_or_path: str, dtype: torch.dtype, quantization: Quantization | None) -> None:
    if dtype != torch.float32:
        _log.warning("%s ranks in float32; in %s its orders are others. Leave dtype out.", name_or_path, dtype)
    if quantization is not None:
        _log.warning(
            "%s ranks in float32; with %s weights its orders are others. Leave quantization out.",
            name_or_path,
            quantization,
        )


def _says_float32(config: PreTrainedConfig) -> bool:
    return bool(getattr(config, "needs_float32", False))
