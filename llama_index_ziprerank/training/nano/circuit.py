"""nano's ranker: two looks around, and four layers of attention written by hand that let words vote.

Learned from random weights, a listwise ranker of this size needs tens of thousands of lists before it beats chance. The
path that it has to find is known, so it is written down:

1. Tag: a visual token looks at the identifier in front of its page and takes its letter along. Text marks that the
   question, with which the prompt begins, is over.
2. Match and first vote: a visual token looks for itself in the question in front of all pages and takes along how rare
   the word is that it finds. Each word of the question behind the pages looks for its own pieces on all of them, as
   they are spelled, and takes the letters of what it finds along.
3. Gather: a visual token adds up what the tokens to its left have matched, so that words that stand together count.
4. The retriever's layers (see `write_neighbours`): each token looks at its neighbours, so that pieces become words.
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

import math

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextAttention,
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextMLP,
    Qwen3VLTextModel,
)

from llama_index_ziprerank.reranking.inputs import ANSWER_OPENING
from llama_index_ziprerank.reranking.permutation import IDENTIFIERS
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
from llama_index_ziprerank.training.nano.model import HEAD_WIDTH, HEADS, ROTARY_BASE, WIDTH

LAYERS_IN_FRONT, LAYERS_BEHIND = 3, 2
"""Tag, match and gather, second vote and count: the layers around the retriever's own."""

STABLE = range(19, 62)
"""Rotary pairs that turn by less than a third of a radian over twenty pages: they compare content."""

_SLOWEST, _IDLE = 63, 62
"""Rotary pairs that do not turn at all: marks are compared in the first, and tokens without a task meet the first
token in the other."""

_ALONG_TIME = (6, 9, 12)
"""Rotary pairs along time with periods of some 80, 300 and 1,100 positions: together they know the nearest page."""

_BEHIND_THE_PAGES = (9, 12, 15)
"""The same with a period of 4,000 positions instead of the shortest: what is near is behind the pages."""

_AXES = ((3, 6), (1, 4), (2, 5))
"""Rotary pairs along time, rows and columns (interleaved M-RoPE) that tell neighbours apart."""

_STRENGTHS = ((0.5, 1.0), (3.0, 1.0), (3.0, 1.0))
"""How much each of `_AXES` counts."""

_LEFT, _UP = (0, 0, -1), (0, -1, 0)
"""(time, row, column) that the two heads of a neighbour layer look at first."""

_NEIGHBOUR_GAIN, _TAG_GAIN, _COUNT_GAIN = 2.9, 2.3, 1.06
"""Gains of queries and keys: how sharply neighbours, identifiers, and words of the question are told from others.

A sharper tag leaves denormal numbers of the other letters, over which a CPU takes four times as long in the first vote.
"""

_NO_NEIGHBOUR = 0.9
"""A token whose neighbours were pruned looks at the first one instead: that counts as this part of a neighbour."""

_PIXELS_ONLY = 2.0
"""How much it counts that a token is visual when a word looks for itself: more than that words are the same, or it
would find itself in the instructions."""

_QUESTION_IS_OVER = 0.05
"""Gain of the mark of what stands behind the question: little, or words grow longer by it."""

_TEXT_ONLY, _QUESTION_ONLY = 2.0, 18.0
"""How much it counts that a token is text, and none behind the question, when a visual token looks for itself."""

_NO_MATCH = 2.4
"""How much it draws a visual token to the first token, where it matches nothing: as a word whose cosine is 0.55."""

_MATCHED, _GATHERED = 0.2, 0.33
"""Gains of what is matched and gathered: the rarity of words, added up, is about the mark that it is written to."""

_WINDOW = ((5, 10.0), (1, 20.0), (4, 8.0), (6, 4.0), (9, 4.0), (12, 4.0))
"""Rotary pairs and how much they count: what is gathered comes from a page's own row, within some five columns."""

_WINDOW_MIDDLE = {5: -3}
"""Columns from a token to the middle of what it gathers: to its left, since a page is read in order."""

_GATHER_MILDNESS = 10.0
"""What the first token weighs against one that is gathered: so much that the sum counts, not the mean."""

_NEARBY = (2.5, 0.7)
"""Of queries and keys: what it counts in the second vote that other words of the question stand nearby."""

_CONTENT_SHARE = 0.69
"""Part of a vote's attention logit that is the cosine of contents; marks are the rest."""

_SHARPNESS = 20.0
"""Attention logit of a cosine of 1 in the vote."""

_TAGGED, _FIRST_VOTED, _VOTED = 0.03, 0.078, 0.1
"""Gains of letters on their way: a page's letter is about 0.4 long, and a page that gets all of both votes
`_WHOLE_VOTE`."""

_WHOLE_VOTE = 0.2
"""Short, because a share is taken away from its logarithm only as exactly as `_TYPICAL_GAIN` is right."""

_STEEPNESS = 6.0
"""Of the steps that the logarithm is made of: a step is silent for shares of more than its own."""

_SMALLEST_SHARE = 12
"""Shares of the votes below two to minus this are the same."""

_LOGARITHM = 0.05
"""What a factor of two in a word's votes adds to a letter: little, or words that are sure of themselves grow so long
that the next norm makes them smaller."""

_COUNTED = 3.0
"""Gain of letters in the count, to make up for it."""

_FIRST_IMPRESSION = 0.3
"""What the page of rank r is set back before any word has voted: this times the logarithm of r."""

_CALM = 0.3
"""Gain of the last norm: how sure the ranker is of itself at first."""

_TYPICAL_GAIN = 3.2
"""What the norm before the feed-forward layer multiplies a word of the question by, about."""

_OPENING_GAIN = WIDTH**0.5 / (2 * MARK**2) ** 0.5
"""The same for the opening bracket, which is two marks long until the words are counted."""


@torch.no_grad()
def write_neighbours(attention: Qwen3VLTextAttention) -> None:
    """Let one head look at the token to the left and one at the token above; both at the previous word in text.

    Like a convolution that training turns into what it needs; the values start unread (`o_proj` is zero).
    """
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.normal_(std=0.01)
    for head, offset in zip(range(HEADS), (_LEFT, _UP), strict=True):
        for pairs, strengths, away in zip(_AXES, _STRENGTHS, offset, strict=True):
            for pair, strength in zip(pairs, strengths, strict=True):
                first, second = _rows(head, pair)
                frequency = ROTARY_BASE ** (-pair / (HEAD_WIDTH // 2))
                in_text, on_page = torch.tensor(-frequency), torch.tensor(away * frequency)
                for row, turn in ((first, torch.cos), (second, torch.sin)):
                    attention.q_proj.weight[row, ANY] = strength**0.5 * turn(in_text)
                    attention.q_proj.weight[row, VISUAL] = strength**0.5 * (turn(on_page) - turn(in_text))
                attention.k_proj.weight[first, ANY] = strength**0.5
        away_from_all = _rows(head, _IDLE)[0]
        attention.q_proj.weight[away_from_all, ANY] = _NO_NEIGHBOUR * sum(sum(pair) for pair in _STRENGTHS) ** 0.5
        attention.k_proj.weight[away_from_all, FIRST] = 30  # so much that nothing else of the first token counts
    _sharpen(attention, _NEIGHBOUR_GAIN)
    attention.o_proj.weight.zero_()


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
    _write_gather(gather.self_attn)
    for layer in model.layers[LAYERS_IN_FRONT:-LAYERS_BEHIND]:
        _overlook(layer, [MATCHED, OVER])
    vote.input_layernorm.weight[:CONTENT] = compare_norm[:CONTENT]
    _write_vote(vote.self_attn, compare, _VOTED)
    _prefer_nearby(vote.self_attn)
    _write_logarithm(vote.mlp)
    _write_first_impression(vote.mlp)
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


def _rows(head: int, pair: int) -> tuple[int, int]:
    """The two rows of a projection that one rotary pair of a head turns."""
    return head * HEAD_WIDTH + pair, head * HEAD_WIDTH + pair + HEAD_WIDTH // 2


def _rest(attention: Qwen3VLTextAttention) -> None:
    """Let every token look at the first one, unless it has a task, and take letters along and nothing else."""
    attention.q_proj.weight.normal_(std=0.002)
    attention.k_proj.weight.normal_(std=0.002)
    attention.v_proj.weight.normal_(std=0.002)
    attention.o_proj.weight.normal_(std=0.002)
    attention.o_proj.weight[RESERVED] = 0
    for head in range(HEADS):
        first, second = _rows(head, _IDLE)
        attention.q_proj.weight[first, ANY] = 1
        attention.k_proj.weight[first, FIRST] = 3
        attention.k_proj.weight[second, ANY] = 0.3  # which nobody asks for
        values = slice(head * HEAD_WIDTH, head * HEAD_WIDTH + len(IDENTIFIERS))
        attention.v_proj.weight[values] = 0
        attention.v_proj.weight[values, LETTERS] = torch.eye(len(IDENTIFIERS))
        attention.o_proj.weight[LETTERS, values] = torch.eye(len(IDENTIFIERS)) / HEADS


def _sharpen(attention: Qwen3VLTextAttention, gain: float) -> None:
    attention.q_norm.weight.fill_(gain)
    attention.k_norm.weight.fill_(gain)


def _write_tag(attention: Qwen3VLTextAttention) -> None:
    for head in range(HEADS):
        for pair in _ALONG_TIME:
            attention.q_proj.weight[_rows(head, pair)[0], VISUAL] = 2
            attention.k_proj.weight[_rows(head, pair)[0], IDENTIFIER] = 1
        ends = _rows(head, _SLOWEST)[0]
        attention.q_proj.weight[ends, [ANY, VISUAL]] = torch.tensor([2.0, -2.0])
        attention.k_proj.weight[ends, OVER] = 2
        _take_along(attention, head, OVER, OVER, _QUESTION_IS_OVER)
    attention.o_proj.weight[LETTERS] *= _TAGGED
    _sharpen(attention, _TAG_GAIN)


def _write_vote(attention: Qwen3VLTextAttention, compare: Tensor, gain: float) -> None:
    """Let words look for what is like them in the first directions of `compare` (K, D), and take letters along."""
    used = compare[: 2 * len(STABLE)]
    content = used * CONTENT**0.5 / used.norm()  # keeps the length of content that is spread over all dimensions
    for head in range(HEADS):
        rows = [row for pair in STABLE for row in _rows(head, pair)]
        pixels = _rows(head, _SLOWEST)[0]
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight[rows] = content
        attention.q_proj.weight[pixels, ANY] = _PIXELS_ONLY
        attention.k_proj.weight[pixels, ANY] = -_PIXELS_ONLY
        attention.k_proj.weight[pixels, [VISUAL, FIRST]] = 2 * _PIXELS_ONLY
        attention.q_proj.weight[_rows(head, _IDLE)[0], ANY] = 0
        attention.q_proj.weight[_rows(head, _IDLE)[0], [OPENING, VISUAL]] = 100  # they must not vote themselves
        attention.k_proj.weight[_rows(head, _IDLE)[0], FIRST] = 30
    attention.o_proj.weight[LETTERS] *= gain
    _sharpen(attention, (_SHARPNESS / _CONTENT_SHARE / HEAD_WIDTH**0.5) ** 0.5)


def _write_match(attention: Qwen3VLTextAttention) -> None:
    """Let visual tokens look for themselves in the question in front, where words vote already."""
    for head in range(HEADS):
        pixels, over = _rows(head, _SLOWEST)
        attention.q_proj.weight[pixels, VISUAL] = -_PIXELS_ONLY - _TEXT_ONLY
        attention.q_proj.weight[over, VISUAL], attention.k_proj.weight[over, OVER] = 1, -_QUESTION_ONLY
        attention.q_proj.weight[_rows(head, _IDLE)[0], VISUAL] = _NO_MATCH
        _take_along(attention, head, WEIGHT, MATCHED, _MATCHED)


def _write_gather(attention: Qwen3VLTextAttention) -> None:
    """Let the first head of visual tokens look at the tokens to their left in the same row, and at themselves."""
    head, total = 0, sum(strength for _, strength in _WINDOW)
    for pair, strength in _WINDOW:
        first, second = _rows(head, pair)
        away = torch.tensor(_WINDOW_MIDDLE.get(pair, 0) * ROTARY_BASE ** (-pair / (HEAD_WIDTH // 2)))
        attention.q_proj.weight[first, VISUAL] = strength**0.5 * torch.cos(away)
        attention.q_proj.weight[second, VISUAL] = strength**0.5 * torch.sin(away)
        attention.k_proj.weight[first, VISUAL] = strength**0.5
    away_from_all = (total + math.log(_GATHER_MILDNESS)) / total**0.5
    idle = _rows(head, _IDLE)[0]
    attention.q_proj.weight[idle, [ANY, VISUAL]] = torch.tensor([100, away_from_all - 100])
    attention.k_proj.weight[idle, FIRST] = 30
    attention.o_proj.weight[LETTERS] = 0
    _take_along(attention, head, MATCHED, MATCHED, _GATHERED * _GATHER_MILDNESS)
    length = (total + away_from_all**2) ** 0.5  # of a query; one of `_WINDOW` counts as one in the attention's logit
    _sharpen(attention, (length * total**0.5 / HEAD_WIDTH**0.5) ** 0.5)


def _prefer_nearby(attention: Qwen3VLTextAttention) -> None:
    """Let words of the question look rather where others of them stand."""
    for head in range(HEADS):
        nearby = _rows(head, _SLOWEST)[1]
        attention.q_proj.weight[nearby, ANY], attention.k_proj.weight[nearby, MATCHED] = _NEARBY


def _take_along(attention: Qwen3VLTextAttention, head: int, mark: int, to: int, gain: float) -> None:
    """Let a head take a mark along, beside the letters."""
    value = head * HEAD_WIDTH + len(IDENTIFIERS)
    attention.v_proj.weight[value] = 0
    attention.v_proj.weight[value, mark] = 1
    attention.o_proj.weight[:, value] = 0
    attention.o_proj.weight[to, value] = gain


def _overlook(layer: Qwen3VLTextDecoderLayer, marks: list[int]) -> None:
    """Keep a layer that has never met these marks from seeing them."""
    attention, mlp = layer.self_attn, layer.mlp
    for reader in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
        reader.weight[:, marks] = 0


def _write_logarithm(layer: Qwen3VLTextMLP) -> None:
    """Add to each letter the logarithm of its share of a word's votes, as steps that fall silent above their share.

    log2(v) is about -sum over j of relu(1 - v / 2**-j) - relu(-v / 2**-j): no term is larger than one, so that half
    precision is enough, and a share that noise made negative counts as none.
    """
    unit = 1 / (MARK * _TYPICAL_GAIN)  # times what the norm makes of a mark: about one
    letters = range(LETTERS.start, LETTERS.stop)
    neurons = iter(range(1, layer.gate_proj.out_features))  # the first is `_write_first_impression`'s
    for step in range(1, _SMALLEST_SHARE + 1):
        for start, sign in ((1, -1), (0, 1)):
            for letter in letters:
                neuron = next(neurons)
                layer.gate_proj.weight[neuron], layer.up_proj.weight[neuron] = 0, 0
                layer.gate_proj.weight[neuron, ANY] = _STEEPNESS * unit * start
                layer.gate_proj.weight[neuron, letter] = -_STEEPNESS * MARK / _WHOLE_VOTE * unit * 2**step
                layer.up_proj.weight[neuron, ANY] = unit
                layer.up_proj.weight[neuron, OPENING] = -unit  # it has no vote
                layer.down_proj.weight[letter, neuron] = sign * _LOGARITHM / _STEEPNESS
    middle = next(neurons)  # one more that is always on, so that letters are about zero
    layer.gate_proj.weight[middle], layer.up_proj.weight[middle] = 0, 0
    layer.gate_proj.weight[middle, ANY], layer.up_proj.weight[middle, ANY] = _STEEPNESS * unit, unit
    layer.up_proj.weight[middle, OPENING] = -unit
    layer.down_proj.weight[LETTERS, middle] = _LOGARITHM / _STEEPNESS * _SMALLEST_SHARE / 2
    for letter in letters:  # the share itself must not be added to its logarithm
        neuron = next(neurons)
        layer.gate_proj.weight[neuron], layer.up_proj.weight[neuron] = 0, 0
        layer.gate_proj.weight[neuron, ANY], layer.up_proj.weight[neuron, letter] = _STEEPNESS * unit, MARK * unit
        layer.down_proj.weight[letter, neuron] = -1 / _STEEPNESS


def _write_count(attention: Qwen3VLTextAttention) -> None:
    """Weigh the words behind the pages about as their rarity, and all other tokens hardly.

    The norm of keys does it: what is rare stands out from the anchor in `_rest`, and four times as rare hardly more.
    """
    for head in range(HEADS):
        pixels = _rows(head, _SLOWEST)[0]
        attention.q_proj.weight[_rows(head, _IDLE)[0], OPENING] = -1  # the opening has a task
        for pair in _BEHIND_THE_PAGES:
            row = _rows(head, pair)[0]
            attention.q_proj.weight[row, OPENING] = attention.k_proj.weight[row, WEIGHT] = 1
        attention.q_proj.weight[pixels, OPENING], attention.k_proj.weight[pixels, VISUAL] = 1, -1
    attention.o_proj.weight[LETTERS] *= _COUNTED
    _sharpen(attention, _COUNT_GAIN)


def _write_first_impression(layer: Qwen3VLTextMLP) -> None:
    """Set pages back by the logarithm of their place: the first stage, which chose the order, has read them too."""
    unit = 1 / (MARK * _OPENING_GAIN)
    layer.gate_proj.weight[0], layer.up_proj.weight[0] = 0, 0
    layer.gate_proj.weight[0, OPENING], layer.up_proj.weight[0, ANY] = _STEEPNESS * unit, unit
    layer.down_proj.weight[LETTERS, 0] = -_FIRST_IMPRESSION / _STEEPNESS * torch.arange(1.0, len(IDENTIFIERS) + 1).log()
