"""From what the reader learned to the two checkpoints that plain transformers and colpali-engine load."""

import copy
from pathlib import Path

import torch
from colpali_engine.models import ColQwen3, ColQwen3Processor
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from llama_index_ziprerank.reranking.permutation import IDENTIFIERS
from llama_index_ziprerank.training.nano.circuit import (
    LAYERS_BEHIND,
    LAYERS_IN_FRONT,
    mark_first,
    write_circuit,
)
from llama_index_ziprerank.training.nano.layout import (
    ANY,
    CONTENT,
    EMBEDDING_NORM,
    MARK,
    MARKS,
    RESERVED,
    VISUAL,
    WEIGHT,
)
from llama_index_ziprerank.training.nano.model import MERGE, PATCH, nano_config
from llama_index_ziprerank.training.nano.neighbours import write_neighbours
from llama_index_ziprerank.training.nano.reading import Reader
from llama_index_ziprerank.vision import use_linear_patch_embedding

MAX_PIXELS = 1024 * 832
"""A page of letter or A4 format whose longer side has 1024 pixels fits whole."""

PAGE_SIDE = 1280
"""Longest side at which the reranker reads pages, larger than those it learned from (its card says why)."""

RETRIEVER_LAYERS = 2
RERANKER_LAYERS = LAYERS_IN_FRONT + RETRIEVER_LAYERS + LAYERS_BEHIND

_QUESTION = "content.text.split('Search Query: ', 1)[1].rsplit('\\n\\nRank the passages', 1)[0]"
_EACH_QUESTION = (
    "{%- for content in message.content if message.content is not string and content.type == 'text' "
    "and 'Search Query: ' in content.text -%}"
)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    + _EACH_QUESTION
    + "{{- '<|im_start|>' + "
    + _QUESTION
    + " + '<|im_end|>\\n' -}}{%- endfor -%}"
    "{{- '<|im_start|>' + message.role + '\\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}{%- else -%}"
    "{%- set images = namespace(count=0) -%}"
    "{%- for content in message.content -%}"
    "{%- if content.type == 'image' -%}"
    "{{- '[' + '" + IDENTIFIERS + "'[images.count] + ']<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- set images.count = images.count + 1 -%}"
    "{%- else -%}{{- content.text -}}{%- endif -%}"
    "{%- endfor -%}" + _EACH_QUESTION + "{{- '\\n' + " + _QUESTION + " -}}{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""The page's identifier stands before each image, so a small model need not count pages to know a letter; the query
stands in front of everything, where pages can look back at it, and behind all pages (cf. RankGPT's prompt), where its
words can look back at them."""


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


@torch.no_grad()
def reader_from_checkpoint(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Reader:
    """A reader that goes on from the eyes and the words of a nano reranker; only its two heads start anew.

    Blocks that the tower has got since are put on top and start silent.
    """
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    reader = build_reader(tokenizer)
    missing = reader.tower.load_state_dict(model.model.visual.state_dict(), strict=False)
    if missing.unexpected_keys:
        raise ValueError(f"{folder} holds a tower of another design: {missing.unexpected_keys[:3]} have no place here.")
    for block in reader.tower.blocks[model.config.vision_config.depth :]:
        for last in (block.attn.proj, block.mlp.linear_fc2):
            last.weight.zero_(), last.bias.zero_()
    reader.embeddings.spelling.weight.zero_()
    reader.embeddings.own.weight.copy_(model.get_input_embeddings().weight)
    reader.embeddings.own.weight[:, MARKS] = 0
    reader.tower.merger.linear_fc2.bias[MARKS] = 0
    reader.glyphs.weight.zero_()
    return reader


def reader_config(tokenizer: PreTrainedTokenizerFast, layers: int = RERANKER_LAYERS) -> Qwen3VLConfig:
    """nano's configuration for this tokenizer."""
    return nano_config(len(tokenizer), token_ids(tokenizer), layers=layers)


@torch.no_grad()
def adopt_reader(model: Qwen3VLModel, reader: Reader, visual_norm: float) -> None:
    """Give `model` the reader's eyes and words.

    Words get one length; visual tokens are scaled from `visual_norm`, their mean length in the reader, to the same.
    Both are turned so that the first dimensions tell words apart best, and the last ones become free (layout.py).
    """
    own = slice(None, -len(MARKS))
    words = torch.nn.functional.normalize(reader.embeddings.table()[:, own], dim=-1)
    turn = torch.linalg.eigh(words.T @ words).eigenvectors.flip(1)[:, :CONTENT].T  # (CONTENT, width without marks)
    table = model.language_model.embed_tokens.weight
    table.zero_()
    table[:, :CONTENT] = EMBEDDING_NORM * torch.nn.functional.normalize(words @ turn.T, dim=-1)
    table[:, ANY] = MARK
    model.visual.load_state_dict(reader.tower.state_dict())
    last = model.visual.merger.linear_fc2
    weight, bias = turn @ last.weight[own], turn @ last.bias[own]
    last.weight.zero_(), last.bias.zero_()
    last.weight[:CONTENT], last.bias[:CONTENT] = (part * (EMBEDDING_NORM / visual_norm) for part in (weight, bias))
    last.bias[[VISUAL, ANY]] = MARK


def build_eyes(
    reader: Reader, tokenizer: PreTrainedTokenizerFast, visual_norm: float
) -> Qwen3VLForConditionalGeneration:
    """A model that is good for its vision tower alone: what it sees fits the retriever and the ranker."""
    model = Qwen3VLForConditionalGeneration(reader_config(tokenizer, 1))
    adopt_reader(model.model, reader, visual_norm)
    use_linear_patch_embedding(model.model.visual)
    return model.eval()


@torch.no_grad()
def build_retriever(reader: Reader, tokenizer: PreTrainedTokenizerFast, visual_norm: float, rarity: Tensor) -> ColQwen3:
    """A retriever whose MaxSim is at first the cosine of word pieces and visual tokens: its layers start silent.

    `rarity` (V,) in 0..1 says how much each word piece tells.
    """
    model = ColQwen3(reader_config(tokenizer, RETRIEVER_LAYERS))
    adopt_reader(model, reader, visual_norm)
    model.language_model.embed_tokens.weight[:, WEIGHT] = MARK * rarity
    mark_first(model.language_model.embed_tokens.weight, tokenizer)
    for layer in model.language_model.layers:
        write_neighbours(layer.self_attn)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    torch.nn.init.orthogonal_(model.custom_text_proj.weight)
    torch.nn.init.zeros_(model.custom_text_proj.bias)
    model.custom_text_proj.bias.requires_grad_(False)
    keep_reserved(model)
    return model.eval()


@torch.no_grad()
def keep_reserved(model: ColQwen3) -> None:
    """Undo what training wrote into the dimensions that the ranker will need."""
    for layer in model.language_model.layers:
        layer.self_attn.o_proj.weight[RESERVED] = 0
        layer.mlp.down_proj.weight[RESERVED] = 0
    model.custom_text_proj.weight[:, RESERVED] = 0


@torch.no_grad()
def build_reranker(
    retriever: ColQwen3, tokenizer: PreTrainedTokenizerFast, principal: Tensor
) -> Qwen3VLForConditionalGeneration:
    """A reranker with the eyes, words and layers of a retriever, and the circuit that lets words vote around them.

    `principal` (K, dim): the directions of the retriever's vectors that words are compared in, most telling first.
    """
    model = Qwen3VLForConditionalGeneration(reader_config(tokenizer, RERANKER_LAYERS))
    inner, source = model.model, retriever.language_model
    inner.visual.load_state_dict(retriever.visual.state_dict())
    inner.language_model.embed_tokens.load_state_dict(source.embed_tokens.state_dict())
    own = inner.language_model.layers[LAYERS_IN_FRONT:-LAYERS_BEHIND]
    for mine, theirs in zip(own, source.layers, strict=True):
        mine.load_state_dict(theirs.state_dict())
    write_circuit(inner.language_model, tokenizer, principal @ retriever.custom_text_proj.weight, source.norm.weight)
    model.tie_weights()
    return model.eval()


def save_reranker(model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor, folder: Path) -> None:
    """Write the checkpoint with its own choices of how it ranks (its card says why)."""
    model.config.keep_ratio = 0.16
    model.config.pruning = "query"
    model.config.first_stage_weight = 0.5
    model.config.needs_float32 = True
    _save_halved(model, folder)
    processor = copy.deepcopy(processor)
    processor.image_processor.page_side = PAGE_SIDE
    processor.image_processor.size["longest_edge"] = MAX_PIXELS * PAGE_SIDE**2 // 1024**2
    processor.save_pretrained(folder)


def save_retriever(model: ColQwen3, processor: Qwen3VLProcessor, folder: Path) -> None:
    """Write the checkpoint, with colpali-engine's processor."""
    _save_halved(model, folder)
    own = ColQwen3Processor(
        processor.image_processor, processor.tokenizer, processor.video_processor, processor.chat_template
    )
    own.save_pretrained(folder)


def _save_halved(model: PreTrainedModel, folder: Path) -> None:
    """Write weights in half precision that load as float32: the circuit's attention is too sharp to run in less.

    In float16 its logits overflow, in bfloat16 no order of twenty pages stays.
    """
    model.half().save_pretrained(folder)
    model.float().config.dtype = torch.float32
    model.config.save_pretrained(folder)
