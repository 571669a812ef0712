"""nano's ranker: two looks around, and four layers of attention written by hand that let words vote.

Learned from random weights, a listwise ranker of this size needs tens of thousands of lists before it beats chance. The
path that it has to find is known, so it is written down:

1. Tag: a visual token looks at the identifier in front of its page and takes its letter along. Text marks that the
   question, with which the prompt begins, is over.
2. Match and first vote: a visual token looks for itself in the question in front of all pages and takes along how rare
   the word is that it finds. Each word of the question behind the pages looks for its own pieces on all of them, as
   they are spelled, and takes the letters of what it finds along.
3. Gather: a visual token adds up what the tokens to its left have matched, so that words that stand together count.
4. The retriever's layers (see `neighbours.py`): each token looks at its neighbours, so that pieces become words.
   Where they look never changes in training: a page must not see the pages before it, which the retriever never met.
   Letters are so short that these layers do not notice them.
5. Second vote: as the first one, in the space in which the retriever compares, and rather where other words of the
   question stand. The feed-forward layer takes the logarithm of each letter's share of both votes, so that adding
   votes up is a sum of graded similarities as in MaxSim: the logarithm of a softmax over all pages is, but for a
   constant, the soft maximum over each one. The opening bracket, which has no vote, gets the order of the first stage
   instead.
6. Count: the bracket, where the letters are read, adds the average of the words' votes to that, rare words most.

Everything is ordinary weights, free to learn.
"""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextAttention,
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextModel,
)

from llama_index_ziprerank.reranking.inputs import ANSWER_OPENING
from llama_index_ziprerank.reranking.permutation import IDENTIFIERS
from llama_index_ziprerank.training.nano.heads import IDLE, SLOWEST, rows, sharpen, take_along
from llama_index_ziprerank.training.nano.layout import (
    ANY,
    CONTENT,
    EMBEDDING_NORM,
    FIRST,
    IDENTIFIER,
    LETTERS,
    MARK,
    MATCHED,
    OPENING,
    OVER,
    RESERVED,
    VISUAL,
    WEIGHT,
)
from llama_index_ziprerank.training.nano.model import HEAD_WIDTH, HEADS, WIDTH
from llama_index_ziprerank.training.nano.neighbours import write_gather
from llama_index_ziprerank.training.nano.shares import write_first_impression, write_logarithm

LAYERS_IN_FRONT, LAYERS_BEHIND = 3, 2
"""Tag, match and gather, second vote and count: the layers around the retriever's own."""

STABLE = range(19, 62)
"""Rotary pairs that turn by less than a third of a radian over twenty pages: they compare content."""

_ALONG_TIME = (6, 9, 12)
"""Rotary pairs along time with periods of some 80, 300 and 1,100 positions: together they know the nearest page."""

_BEHIND_THE_PAGES = (9, 12, 15)
"""The same with a period of 4,000 positions instead of the shortest: what is near is behind the pages."""

_TAG_GAIN, _COUNT_GAIN = 2.3, 1.06
"""Gains of queries and keys: how sharply identifiers, and words of the question, are told from others.

A sharper tag leaves denormal numbers of the other letters, over which a CPU takes four times as long in the first vote.
"""

_PIXELS_ONLY = 2.0
"""How much it counts that a token is visual when a word looks for itself: more than that words are the same, or it
would find itself in the instructions."""

_QUESTION_IS_OVER = 0.05
"""Gain of the mark of what stands behind the question: little, or words grow longer by it."""

_TEXT_ONLY, _QUESTION_ONLY = 2.0, 18.0
"""How much it counts that a token is text, and none behind the question, when a visual token looks for itself."""

_NO_MATCH = 2.4
"""How much it draws a visual token to the first token, where it matches nothing: as a word whose cosine is 0.55."""

_MATCHED = 0.2
"""Gain of what is matched: the rarity of a word is about the mark that it is written to."""

_NEARBY = (2.5, 0.7)
"""Of queries and keys: what it counts in the second vote that other words of the question stand nearby."""

_CONTENT_SHARE = 0.69
"""Part of a vote's attention logit that is the cosine of contents; marks are the rest."""

_SHARPNESS = 20.0
"""Attention logit of a cosine of 1 in the vote."""

_TAGGED, _FIRST_VOTED, _VOTED = 0.03, 0.078, 0.1
"""Gains of letters on their way: a page's letter is about 0.4 long, and a page that gets all of both votes
0.2 (`shares.py`)."""

_COUNTED = 3.0
"""Gain of letters in the count, to make up for it."""

_CALM = 0.3
"""Gain of the last norm: how sure the ranker is of itself at first."""


@torch.no_grad()
def write_circuit(
    model: Qwen3VLTextModel,
    tokenizer: PreTrainedTokenizerFast,
    compare: Tensor,
    compare_norm: Tensor,
) -> None:
    """Write the path described above around the layers that are there already.

    K compared dimensions: `compare` (K, D), the most telling first, is read behind a norm of gains `compare_norm` (D,).
    """
    _mark_structure(model.embed_tokens.weight, tokenizer)
    tag, match, gather, *_, vote, count = model.layers
    for layer in (tag, match, gather, vote, count):
        layer.mlp.down_proj.weight.zero_()
        _rest(layer.self_attn)
    _write_tag(tag.self_attn)
    _write_vote(match.self_attn, torch.eye(WIDTH), _FIRST_VOTED)
    _write_match(match.self_attn)
    write_gather(gather.self_attn)
    for layer in model.layers[LAYERS_IN_FRONT:-LAYERS_BEHIND]:
        _overlook(layer, [MATCHED, OVER])
    vote.input_layernorm.weight[:CONTENT] = compare_norm[:CONTENT]
    _write_vote(vote.self_attn, compare, _VOTED)
    _prefer_nearby(vote.self_attn)
    write_logarithm(vote.mlp)
    write_first_impression(vote.mlp)
    _write_count(count.self_attn)
    model.norm.weight.fill_(_CALM)


@torch.no_grad()
def mark_first(words: Tensor, tokenizer: PreTrainedTokenizerFast) -> None:
    """Mark the token that prompts begin with: it is looked at when there is nothing to see."""
    words[tokenizer.convert_tokens_to_ids("<|im_start|>"), FIRST] = MARK


def _mark_structure(words: Tensor, tokenizer: PreTrainedTokenizerFast) -> None:
    letters = tokenizer.convert_tokens_to_ids(list(IDENTIFIERS))
    opening = tokenizer.convert_tokens_to_ids(ANSWER_OPENING)
    words[[*letters, opening]] = 0
    words[[*letters, opening], ANY] = MARK
    words[letters, LETTERS] = EMBEDDING_NORM * torch.eye(len(letters))
    words[letters, IDENTIFIER] = MARK
    words[opening, OPENING] = MARK
    words[tokenizer.convert_tokens_to_ids("<|im_end|>"), OVER] = MARK
    words[tokenizer.convert_tokens_to_ids("?"), WEIGHT] = 0  # questions end with it, and mean nothing by it
    mark_first(words, tokenizer)


def _rest(attention: Qwen3VLTextAttention) -> None:
    """Let every token look at the first one, unless it has a task, and take letters along and nothing else."""
    attention.q_proj.weight.normal_(std=0.002)
    attention.k_proj.weight.normal_(std=0.002)
    attention.v_proj.weight.normal_(std=0.002)
    attention.o_proj.weight.normal_(std=0.002)
    attention.o_proj.weight[RESERVED] = 0
    for head in range(HEADS):
        first, second = rows(head, IDLE)
        attention.q_proj.weight[first, ANY] = 1
        attention.k_proj.weight[first, FIRST] = 3
        attention.k_proj.weight[second, ANY] = 0.3  # which nobody asks for
        values = slice(head * HEAD_WIDTH, head * HEAD_WIDTH + len(IDENTIFIERS))
        attention.v_proj.weight[values] = 0
        attention.v_proj.weight[values, LETTERS] = torch.eye(len(IDENTIFIERS))
        attention.o_proj.weight[LETTERS, values] = torch.eye(len(IDENTIFIERS)) / HEADS


def _write_tag(attention: Qwen3VLTextAttention) -> None:
    for head in range(HEADS):
        for pair in _ALONG_TIME:
            attention.q_proj.weight[rows(head, pair)[0], VISUAL] = 2
            attention.k_proj.weight[rows(head, pair)[0], IDENTIFIER] = 1
        ends = rows(head, SLOWEST)[0]
        attention.q_proj.weight[ends, [ANY, VISUAL]] = torch.tensor([2.0, -2.0])
        attention.k_proj.weight[ends, OVER] = 2
        take_along(attention, head, OVER, OVER, _QUESTION_IS_OVER)
    attention.o_proj.weight[LETTERS] *= _TAGGED
    sharpen(attention, _TAG_GAIN)


def _write_vote(attention: Qwen3VLTextAttention, compare: Tensor, gain: float) -> None:
    """Let words look for what is like them in the first directions of `compare` (K, D), and take letters along."""
    used = compare[: 2 * len(STABLE)]
    content = used * CONTENT**0.5 / used.norm()  # keeps the length of content that is spread over all dimensions
    for head in range(HEADS):
        compared = [row for pair in STABLE for row in rows(head, pair)]
        pixels = rows(head, SLOWEST)[0]
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight[compared] = content
        attention.q_proj.weight[pixels, ANY] = _PIXELS_ONLY
        attention.k_proj.weight[pixels, ANY] = -_PIXELS_ONLY
        attention.k_proj.weight[pixels, [VISUAL, FIRST]] = 2 * _PIXELS_ONLY
        attention.q_proj.weight[rows(head, IDLE)[0], ANY] = 0
        attention.q_proj.weight[rows(head, IDLE)[0], [OPENING, VISUAL]] = 100  # they must not vote themselves
        attention.k_proj.weight[rows(head, IDLE)[0], FIRST] = 30
    attention.o_proj.weight[LETTERS] *= gain
    sharpen(attention, (_SHARPNESS / _CONTENT_SHARE / HEAD_WIDTH**0.5) ** 0.5)


def _write_match(attention: Qwen3VLTextAttention) -> None:
    """Let visual tokens look for themselves in the question in front, where words vote already."""
    for head in range(HEADS):
        pixels, over = rows(head, SLOWEST)
        attention.q_proj.weight[pixels, VISUAL] = -_PIXELS_ONLY - _TEXT_ONLY
        attention.q_proj.weight[over, VISUAL], attention.k_proj.weight[over, OVER] = 1, -_QUESTION_ONLY
        attention.q_proj.weight[rows(head, IDLE)[0], VISUAL] = _NO_MATCH
        take_along(attention, head, WEIGHT, MATCHED, _MATCHED)


def _prefer_nearby(attention: Qwen3VLTextAttention) -> None:
    """Let words of the question look rather where others of them stand."""
    for head in range(HEADS):
        nearby = rows(head, SLOWEST)[1]
        attention.q_proj.weight[nearby, ANY], attention.k_proj.weight[nearby, MATCHED] = _NEARBY


def _overlook(layer: Qwen3VLTextDecoderLayer, marks: list[int]) -> None:
    """Keep a layer that has never met these marks from seeing them."""
    attention, mlp = layer.self_attn, layer.mlp
    for reader in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
        reader.weight[:, marks] = 0


def _write_count(attention: Qwen3VLTextAttention) -> None:
    """Weigh the words behind the pages about as their rarity, and all other tokens hardly.

    The norm of keys does it: what is rare stands out from the anchor in `_rest`, and four times as rare hardly more.
    """
    for head in range(HEADS):
        pixels = rows(head, SLOWEST)[0]
        attention.q_proj.weight[rows(head, IDLE)[0], OPENING] = -1  # the opening has a task
        for pair in _BEHIND_THE_PAGES:
            row = rows(head, pair)[0]
            attention.q_proj.weight[row, OPENING] = attention.k_proj.weight[row, WEIGHT] = 1
        attention.q_proj.weight[pixels, OPENING], attention.k_proj.weight[pixels, VISUAL] = 1, -1
    attention.o_proj.weight[LETTERS] *= _COUNTED
    sharpen(attention, _COUNT_GAIN)
