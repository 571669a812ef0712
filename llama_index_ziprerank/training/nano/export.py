"""From what the reader learned to the two checkpoints that plain transformers and colpali-engine load."""

from pathlib import Path

import torch
from colpali_engine.models import ColQwen3, ColQwen3Processor
from torch import Tensor
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from llama_index_ziprerank.reranking.permutation import IDENTIFIERS
from llama_index_ziprerank.training.nano.circuit import ANY, EMBEDDING_NORM, MARK, MARKS, VISUAL, write_circuit
from llama_index_ziprerank.training.nano.model import MERGE, PATCH, nano_config
from llama_index_ziprerank.training.nano.reading import Reader

MAX_PIXELS = 1024 * 832
"""A page of letter or A4 format whose longer side has 1024 pixels fits whole."""

RERANKER_LAYERS = 4
RETRIEVER_LAYERS = 2

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}{%- else -%}"
    "{%- set images = namespace(count=0) -%}"
    "{%- for content in message.content -%}"
    "{%- if content.type == 'image' -%}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>[' + '" + IDENTIFIERS + "'[images.count] + ']' -}}"
    "{%- set images.count = images.count + 1 -%}"
    "{%- else -%}{{- content.text -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""The page's identifier stands behind each image: a small model need not count pages to know a letter."""


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    """nano's processor: Qwen3-VL's own, with nano's tokenizer and chat template."""
    image = Qwen2VLImageProcessor(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=2,
        size={"shortest_edge": 32 * 32, "longest_edge": MAX_PIXELS},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    video = Qwen3VLVideoProcessor(patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2)
    return Qwen3VLProcessor(image, tokenizer, video, chat_template=CHAT_TEMPLATE)


def token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The chat markers' ids, as the configuration wants them."""
    return {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}


def build_reader(tokenizer: PreTrainedTokenizerFast) -> Reader:
    """A reader that has learned nothing yet."""
    return Reader(reader_config(tokenizer), tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))


def reader_config(tokenizer: PreTrainedTokenizerFast, layers: int = RERANKER_LAYERS) -> Qwen3VLConfig:
    """nano's configuration for this tokenizer."""
    return nano_config(len(tokenizer), token_ids(tokenizer), layers=layers)


@torch.no_grad()
def adopt_reader(model: Qwen3VLModel, reader: Reader, visual_norm: float) -> None:
    """Give `model` the reader's eyes and words.

    Words get one length; visual tokens are scaled from `visual_norm`, their mean length in the reader, to the same. The
    dimensions of `MARKS` stay free: zero in words, one mark in visual tokens.
    """
    words = reader.embeddings.table()
    words[:, MARKS] = 0
    model.language_model.embed_tokens.weight.copy_(EMBEDDING_NORM * torch.nn.functional.normalize(words, dim=-1))
    model.visual.load_state_dict(reader.tower.state_dict())
    last = model.visual.merger.linear_fc2
    last.weight.mul_(EMBEDDING_NORM / visual_norm)
    last.bias.mul_(EMBEDDING_NORM / visual_norm)
    last.weight[MARKS] = 0
    last.bias[MARKS] = 0
    last.bias[[VISUAL, ANY]] = MARK


def build_reranker(
    reader: Reader, tokenizer: PreTrainedTokenizerFast, visual_norm: float, rarity: Tensor
) -> Qwen3VLForConditionalGeneration:
    """A reranker that reads, and whose attention starts as a count of the question's words on each page.

    `rarity` (V,) in 0..1 says how much each word piece tells.
    """
    model = Qwen3VLForConditionalGeneration(reader_config(tokenizer, RERANKER_LAYERS))
    adopt_reader(model.model, reader, visual_norm)
    write_circuit(model.model.language_model, tokenizer, rarity)
    model.tie_weights()
    return model.eval()


@torch.no_grad()
def build_retriever(reader: Reader, tokenizer: PreTrainedTokenizerFast, visual_norm: float) -> ColQwen3:
    """A retriever whose MaxSim is at first the cosine of word pieces and visual tokens: its layers start silent."""
    model = ColQwen3(reader_config(tokenizer, RETRIEVER_LAYERS))
    adopt_reader(model, reader, visual_norm)
    for layer in model.language_model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    torch.nn.init.orthogonal_(model.custom_text_proj.weight)
    model.custom_text_proj.weight[:, MARKS] = 0
    torch.nn.init.zeros_(model.custom_text_proj.bias)
    return model.eval()


def save_reranker(model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor, folder: Path) -> None:
    """Write the checkpoint in half precision."""
    model.half().save_pretrained(folder)
    model.float()
    processor.save_pretrained(folder)


def save_retriever(model: ColQwen3, processor: Qwen3VLProcessor, folder: Path) -> None:
    """Write the checkpoint in half precision, with colpali-engine's processor."""
    model.half().save_pretrained(folder)
    model.float()
    own = ColQwen3Processor(
        processor.image_processor, processor.tokenizer, processor.video_processor, processor.chat_template
    )
    own.save_pretrained(folder)
