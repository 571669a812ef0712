"""Where nano's ranker starts: attention written by hand that counts the question's words on each page.

Learned from random weights, a listwise ranker of this size needs tens of thousands of lists before it beats chance. The
path that it has to find is known, so it is written down, and training only has to improve it:

1. A visual token looks for its word among the words before the pages; other pixels repel it, and where no word is like
   it, it looks at the first token of all. What it takes along is how rare the word is: a hit.
2. The identifier behind a page looks at the page in front of it and takes along the mean hit (one head) and the best
   hits (the other): the page's fit.
3. The opening bracket, where the letters are read, looks at the identifiers by their fit and takes their letters along.

Marks in the last dimensions of the residual stream carry what is not content. Everything is ordinary weights; the last
layer and all feed-forward layers start silent and are free to learn.
"""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextAttention, Qwen3VLTextModel

from llama_index_ziprerank.reranking.inputs import ANSWER_OPENING
from llama_index_ziprerank.reranking.permutation import IDENTIFIERS
from llama_index_ziprerank.reranking.prompt import prompt_words
from llama_index_ziprerank.training.nano.model import HEAD_WIDTH, HEADS

EMBEDDING_NORM = 4.0
"""Length of the token embeddings and, on average, of the merged visual tokens."""

VISUAL, IDENTIFIER, OPENING, WEIGHT, HIT, FIT, FIRST, ANY = range(-1, -9, -1)
MARKS = [VISUAL, IDENTIFIER, OPENING, WEIGHT, HIT, FIT, FIRST, ANY]
"""Dimensions for: pixels, identifiers, the opening bracket, a word's rarity, a token's hit, a page's fit, the first
token of all, and any token."""

MARK = 2.0
"""Value of a mark."""

_STABLE = range(18, 62)
"""Rotary pairs that turn by less than a third of a radian over twenty pages: they compare content."""

_SLOWEST, _IDLE = 63, 62
"""Rotary pairs that do not turn at all: marks are compared in the first, and tokens without a task meet the first
token in the other."""

_NEAREST = (9, 12)
"""Rotary pairs along time with periods of some 300 and 1,100 positions: the nearest page is looked at most."""

_COLLECT_GAIN, _BEST_GAIN, _READ_SHARPNESS = 60.0, 0.5, 1.5
"""How strongly a page's mean hit and its best hits become its fit, and how sharply the fits are compared."""

_CALM = 0.2
"""Gain of the last norm: the letters' logits start a few apart and not by dozens."""

_COLLECT_TASK, _TASK = 1.5, 4.0
"""How much a token's task outweighs its rest, when it collects hits and when it reads fits."""

_REPEL = 1.6
"""Strength of the visual mark beside a visual token's content."""

_MATCH_SHARPNESS = 4.0
"""Gain of the queries that look for words."""

_THRESHOLD = 0.2
"""Cosine at which a word outweighs the first token."""


@torch.no_grad()
def write_circuit(model: Qwen3VLTextModel, tokenizer: PreTrainedTokenizerFast, rarity: Tensor) -> None:
    """Write the start described above into `model`; `rarity` (V,) in 0..1 says how much each word piece tells."""
    words = model.embed_tokens.weight
    _mark_words(words, tokenizer, rarity)
    match, collect, read, *free = (layer.self_attn for layer in model.layers)
    for layer in model.layers:
        layer.mlp.down_proj.weight.zero_()
        layer.self_attn.o_proj.weight.zero_()
    _write_match(match, words)
    _write_collect(collect)
    _write_read(read)
    model.norm.weight.fill_(_CALM)


def _mark_words(words: Tensor, tokenizer: PreTrainedTokenizerFast, rarity: Tensor) -> None:
    fixed = set(tokenizer(prompt_words("?", len(IDENTIFIERS)).text, add_special_tokens=False).input_ids)
    telling = rarity.clone()
    telling[list(fixed | set(tokenizer.all_special_ids))] = 0
    words[:, WEIGHT] = MARK * telling
    words[:, ANY] = MARK
    words[tokenizer.convert_tokens_to_ids(list(IDENTIFIERS)), IDENTIFIER] = MARK
    words[tokenizer.convert_tokens_to_ids(ANSWER_OPENING), OPENING] = MARK
    letters = tokenizer.convert_tokens_to_ids([*IDENTIFIERS, ANSWER_OPENING])
    own, _ = torch.linalg.qr(words[letters, : -len(MARKS)].T)  # letters that are not alike at all
    words[letters, : -len(MARKS)] = EMBEDDING_NORM * own.T
    first = words[tokenizer.convert_tokens_to_ids("<|im_start|>")]
    first.zero_()
    first[VISUAL], first[FIRST] = -_THRESHOLD / _REPEL, (1 - _THRESHOLD**2) ** 0.5
    first *= EMBEDDING_NORM


def _rows(head: int, pair: int) -> tuple[int, int]:
    """The two rows of a projection that one rotary pair of a head turns."""
    return head * HEAD_WIDTH + pair, head * HEAD_WIDTH + pair + HEAD_WIDTH // 2


def _write_match(attention: Qwen3VLTextAttention, words: Tensor) -> None:
    content = words.clone()
    content[:, MARKS] = 0
    principal = torch.linalg.eigh(content.T @ content).eigenvectors.T.flip(0)  # (D, D): what tells words apart, first
    for projection, sign in ((attention.q_proj, 1.0), (attention.k_proj, -1.0)):
        projection.weight.normal_(std=0.002)
        for head in range(HEADS):
            rows = [row for pair in _STABLE for row in _rows(head, pair)]
            projection.weight[rows] = principal[head : head + HEADS * len(rows) : HEADS]
            mark, pad = _rows(head, _SLOWEST)
            projection.weight[mark], projection.weight[pad] = 0, 0
            projection.weight[mark, VISUAL] = sign * _REPEL
            projection.weight[pad, FIRST] = 1
    attention.q_norm.weight.fill_(_MATCH_SHARPNESS)
    _carry(attention, WEIGHT, HIT, gain=0.15)


def _write_collect(attention: Qwen3VLTextAttention) -> None:
    _rest(attention)
    for head in range(HEADS):
        for pair in _NEAREST:
            attention.q_proj.weight[_rows(head, pair)[0], IDENTIFIER] = _COLLECT_TASK
            attention.k_proj.weight[_rows(head, pair)[0], VISUAL] = 1
    best = _rows(1, _SLOWEST)[0]
    attention.q_proj.weight[best, IDENTIFIER] = _COLLECT_TASK
    attention.k_proj.weight[best, HIT] = 1
    attention.q_norm.weight.fill_(4.0)
    _carry(attention, HIT, FIT, gain=_COLLECT_GAIN, heads=1)
    attention.v_proj.weight[HEAD_WIDTH] = 0
    attention.v_proj.weight[HEAD_WIDTH, HIT] = 1
    attention.o_proj.weight[FIT, HEAD_WIDTH] = _BEST_GAIN


def _write_read(attention: Qwen3VLTextAttention) -> None:
    _rest(attention)
    for head in range(HEADS):
        mark, fit = _rows(head, _SLOWEST)
        attention.q_proj.weight[mark, OPENING] = 0.3 * _TASK  # enough to prefer any identifier to all other tokens
        attention.q_proj.weight[fit, OPENING] = _TASK
        attention.k_proj.weight[mark, IDENTIFIER] = 1
        attention.k_proj.weight[fit, FIT] = 1
    torch.nn.init.orthogonal_(attention.v_proj.weight)
    attention.o_proj.weight.copy_(2 * attention.v_proj.weight.T)  # letters come out as they went in
    attention.v_proj.weight[:, MARKS] = 0
    attention.q_norm.weight.fill_(_READ_SHARPNESS)


def _rest(attention: Qwen3VLTextAttention) -> None:
    """Let every token look at the first one, unless it has a task."""
    attention.q_proj.weight.normal_(std=0.002)
    attention.k_proj.weight.normal_(std=0.002)
    for head in range(HEADS):
        attention.q_proj.weight[_rows(head, _IDLE)[0], ANY] = 1
        attention.k_proj.weight[_rows(head, _IDLE)[0], FIRST] = 1
        attention.k_proj.weight[_rows(head, _IDLE)[1], ANY] = 1  # which nobody asks for


def _carry(attention: Qwen3VLTextAttention, source: int, target: int, *, gain: float, heads: int = HEADS) -> None:
    """Let the first value of each head be the mark `source`, added to the mark `target` of the token that looks."""
    for head in range(heads):
        attention.v_proj.weight[head * HEAD_WIDTH] = 0
        attention.v_proj.weight[head * HEAD_WIDTH, source] = 1
        attention.o_proj.weight[target, head * HEAD_WIDTH] = gain
