"""Tiny random retrievers of every family of colpali-engine, built in code and saved as checkpoints.

They rank nothing well; they are the same code paths as the real models, a thousand times smaller.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from colpali_engine import models
from transformers import (
    AutoTokenizer,
    Gemma3Config,
    Gemma3ImageProcessor,
    Idefics3Config,
    Idefics3ImageProcessor,
    ModernVBertConfig,
    PaliGemmaConfig,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5Config,
    Qwen3VLConfig,
    Qwen3VLVideoProcessor,
    SiglipImageProcessor,
)

PARITY = Path(__file__).parent / "data" / "parity" / "checkpoint"

_HEADS: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
_TEXT: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 4096, **_HEADS}
_SIGLIP: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14,
    "image_size": 56,
}  # fmt: skip
_PIXELS = {"shortest_edge": 32 * 32, "longest_edge": 96 * 96}


def _tokenizer(*tokens: str, **special: str) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(PARITY)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens), **special})
    return tokenizer


def _ids(tokenizer: PreTrainedTokenizerBase, **names: str) -> dict[str, int]:
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}


def _qwen_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    return _ids(
        tokenizer,
        image_token_id="<|image_pad|>",
        video_token_id="<|video_pad|>",
        vision_start_token_id="<|vision_start|>",
        vision_end_token_id="<|vision_end|>",
    )


def _rope(**more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 2, 2], **more}


def _save(model_class: Any, processor_class: Any, config: Any, folder: Path, seed: int, **parts: Any) -> Path:
    torch.manual_seed(seed)
    model_class(config).save_pretrained(folder)
    processor_class(**parts).save_pretrained(folder)
    return folder


def colqwen3(folder: Path, seed: int = 0) -> Path:
    tokenizer = _tokenizer()
    config = Qwen3VLConfig(
        text_config={**_TEXT, "vocab_size": len(tokenizer), "head_dim": 16, "rope_parameters": _rope()},
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 16,
            "out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
        },
        **_qwen_ids(tokenizer),
    )  # fmt: skip
    processor = Qwen2VLImageProcessor(patch_size=16, merge_size=2, size=_PIXELS)
    video = Qwen3VLVideoProcessor(patch_size=16, merge_size=2)
    return _save(
        models.ColQwen3, models.ColQwen3Processor, config, folder, seed,
        image_processor=processor, tokenizer=tokenizer, video_processor=video,
    )  # fmt: skip


def colqwen3_5(folder: Path, seed: int = 0) -> Path:
    tokenizer = _tokenizer()
    config = Qwen3_5Config(
        text_config={
            **_TEXT, "vocab_size": len(tokenizer), "head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
            "linear_num_value_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
            "rope_parameters": _rope(partial_rotary_factor=1.0),
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 16,
            "out_hidden_size": 32, "num_position_embeddings": 16,
        },
        **_qwen_ids(tokenizer),
    )  # fmt: skip
    processor = Qwen2VLImageProcessor(patch_size=16, merge_size=2, size=_PIXELS)
    video = Qwen3VLVideoProcessor(patch_size=16, merge_size=2)
    return _save(
        models.ColQwen3_5, models.ColQwen3_5Processor, config, folder, seed,
        image_processor=processor, tokenizer=tokenizer, video_processor=video,
    )  # fmt: skip


def colqwen2(folder: Path, seed: int = 0) -> Path:
    tokenizer = _tokenizer()
    config = Qwen2VLConfig(
        text_config={**_TEXT, "vocab_size": len(tokenizer), "rope_parameters": _rope()},
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 14},
        **_qwen_ids(tokenizer),
    )
    return _save_qwen2(models.ColQwen2, models.ColQwen2Processor, config, folder, seed, tokenizer)


def colqwen2_5(folder: Path, seed: int = 0) -> Path:
    tokenizer = _tokenizer()
    config = Qwen2_5_VLConfig(
        text_config={**_TEXT, "vocab_size": len(tokenizer), "rope_parameters": _rope()},
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 14,
            "out_hidden_size": 32, "window_size": 56, "fullatt_block_indexes": [1],
        },
        **_qwen_ids(tokenizer),
    )  # fmt: skip
    return _save_qwen2(models.ColQwen2_5, models.ColQwen2_5_Processor, config, folder, seed, tokenizer)


def _save_qwen2(model: Any, processor: Any, config: Any, folder: Path, seed: int, tokenizer: Any) -> Path:
    images = Qwen2VLImageProcessor(patch_size=14, merge_size=2, size=_PIXELS)
    video = Qwen2VLVideoProcessor(patch_size=14, merge_size=2)
    return _save(
        model, processor, config, folder, seed, image_processor=images, tokenizer=tokenizer, video_processor=video
    )


def colpali(folder: Path, seed: int = 0) -> Path:
    tokenizer = _tokenizer("<image>", bos_token="<bos>")
    images = SiglipImageProcessor(size={"height": 56, "width": 56})
    images.image_seq_length = 16
    processor = models.ColPaliProcessor(image_processor=images, tokenizer=tokenizer)  # adds 1,152 location tokens
    config = PaliGemmaConfig(
        text_config={**_TEXT, "model_type": "gemma", "vocab_size": len(tokenizer), "head_dim": 16},
        vision_config={**_SIGLIP, "projection_dim": 32},
        projection_dim=32,
        tie_word_embeddings=False,
        **_ids(tokenizer, image_token_id="<image>"),
    )
    torch.manual_seed(seed)
    models.ColPali(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


_GEMMA_TEMPLATE = (
    "<bos>{% for part in messages[0].content %}"
    "{% if part.type == 'image' %}<start_of_image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}"
)


def colgemma3(folder: Path, seed: int = 0) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(
        PARITY,
        chat_template=_GEMMA_TEMPLATE,
        bos_token="<bos>",
        additional_special_tokens=["<eos>"],
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
    )
    images = Gemma3ImageProcessor(size={"height": 56, "width": 56})
    processor = models.ColGemmaProcessor3(image_processor=images, tokenizer=tokenizer, image_seq_length=4)
    config = Gemma3Config(
        text_config={**_TEXT, "vocab_size": len(tokenizer), "head_dim": 16, "sliding_window": 64},
        vision_config={**_SIGLIP, "model_type": "siglip_vision_model", "vision_use_head": False},
        mm_tokens_per_image=4,
        **_ids(tokenizer, image_token_id="<image_soft_token>", boi_token_id="<start_of_image>"),
    )
    torch.manual_seed(seed)
    models.ColGemma3(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


_IDEFICS_TOKENS = (
    "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", "<|begin_of_text|>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)  # fmt: skip


def _idefics_parts(tokenizer: PreTrainedTokenizerBase, tile: int) -> dict[str, Any]:
    images = Idefics3ImageProcessor(size={"longest_edge": 2 * tile}, max_image_size={"longest_edge": tile})
    return {"image_processor": images, "tokenizer": tokenizer, "image_seq_len": 4}


def colidefics3(folder: Path, seed: int = 0) -> Path:
    tokenizer = _tokenizer(*_IDEFICS_TOKENS)
    config = Idefics3Config(
        text_config={**_TEXT, "model_type": "llama", "vocab_size": len(tokenizer), "pad_token_id": 0},
        vision_config=_SIGLIP,
        scale_factor=2,
        **_ids(tokenizer, image_token_id="<image>"),
    )
    parts = _idefics_parts(tokenizer, _SIGLIP["image_size"])
    return _save(models.ColIdefics3, models.ColIdefics3Processor, config, folder, seed, **parts)


def colmodernvbert(folder: Path, seed: int = 0) -> Path:
    tokenizer = _tokenizer(*_IDEFICS_TOKENS)
    tile = {"image_size": 16, "patch_size": 4}  # transformers before 5.21 reads a multiple of patch_size tokens a tile
    config = ModernVBertConfig(
        text_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "vocab_size": len(tokenizer), "pad_token_id": 0, "model_type": "modernbert",
        },
        vision_config={**_SIGLIP, **tile, "model_type": "siglip_vision_model"},
        pixel_shuffle_factor=2,
        **_ids(tokenizer, image_token_id="<image>"),
    )  # fmt: skip
    parts = _idefics_parts(tokenizer, tile["image_size"])
    return _save(models.ColModernVBert, models.ColModernVBertProcessor, config, folder, seed, **parts)


FAMILIES: dict[str, tuple[Callable[..., Path], Any, Any]] = {
    "ColPali": (colpali, models.ColPali, models.ColPaliProcessor),
    "ColQwen2": (colqwen2, models.ColQwen2, models.ColQwen2Processor),
    "ColQwen2.5": (colqwen2_5, models.ColQwen2_5, models.ColQwen2_5_Processor),
    "ColQwen3": (colqwen3, models.ColQwen3, models.ColQwen3Processor),
    "ColQwen3.5": (colqwen3_5, models.ColQwen3_5, models.ColQwen3_5Processor),
    "ColIdefics3": (colidefics3, models.ColIdefics3, models.ColIdefics3Processor),
    "ColModernVBERT": (colmodernvbert, models.ColModernVBert, models.ColModernVBertProcessor),
    "ColGemma3": (colgemma3, models.ColGemma3, models.ColGemmaProcessor3),
}
"""Family → how to build it, and the classes that colpali-engine's users load it with."""
