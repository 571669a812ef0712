"""Lists for the price of one: many questions are asked about the same twenty pages, in one pass of the ranker.

In a ranker's prompt each question has pages of its own, and twenty pages are a long sequence for one answer. The layers
before the vote look at a token's own page or question only (circuit.py), so pages and questions can go through them
apart, and the vote of every question can be taken over the same pages: what the ranker computes in its own prompt, but
for the little that leaks from page to page. Letters: B questions of T tokens, N pages of L tokens, H heads, d head
width, D width of the model.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextAttention,
    Qwen3VLTextDecoderLayer,
    apply_rotary_pos_emb,
)

from llama_index_ziprerank.reranking.inputs import RankingPrompt, build_ranking_prompt
from llama_index_ziprerank.reranking.positions import rope_positions
from llama_index_ziprerank.training.losses import soft_ranking_loss
from llama_index_ziprerank.training.nano.circuit import freeze_written
from llama_index_ziprerank.training.nano.lists import Block, ListMaker
from llama_index_ziprerank.training.nano.model import MERGE
from llama_index_ziprerank.training.nano.queries import relevances
from llama_index_ziprerank.training.nano.timed import train_for

_BEFORE_A_PAGE = 4
"""Tokens that belong to a page before its first visual token: its identifier in brackets and the vision marker."""


@dataclass(frozen=True)
class VotingConfig:
    """How the ranker learns to let words vote."""

    minutes: float = 15.0
    """Wall-clock time; a resumed run continues with what is left."""
    learning_rate: float = 1.5e-4
    """Peak; warm-up over `warmup_steps`, then cosine over the time to 3 %. At 5e-4 the ranker falls to chance."""
    embedding_rate: float = 0.2
    """The token embeddings learn at this part of the rate: the tower was taught to point at them."""
    warmup_steps: int = 40
    blocks: tuple[tuple[float, tuple[int, int] | None], ...] = ((0.3, (10, 16)), (0.6, (16, 24)), (1.0, None))
    """Until this share of the time, blocks of these rows and columns; None for whole pages."""
    pages: int = 20
    """Pages of a batch."""
    questions: int = 3
    """Questions about each page of a batch."""
    hard: float = 0.6
    """Share of the batches whose pages share words with one of the questions."""
    keep: tuple[float, float] = (0.25, 1.0)
    """Range of the share of visual tokens that a batch keeps, so that the ranker gets used to pruned pages."""
    decay: float = 0.1
    """Of the soft ranking targets; the paper's 0.5 is for a teacher that reads, ours counts words."""
    save_every: int = 50
    """Steps between checkpoints."""


@dataclass(frozen=True)
class _Rows:
    """Token sequences of different lengths, padded on the right."""

    hidden: Tensor  # (R, L, D)
    positions: Tensor  # (3, R, L)
    lengths: Tensor  # (R,)

    @property
    def padding(self) -> Tensor:
        """(R, L) bool."""
        return torch.arange(self.hidden.shape[1]) >= self.lengths[:, None]


def shared_logits(
    model: Qwen3VLForConditionalGeneration,
    processor: Qwen3VLProcessor,
    queries: Sequence[str],
    blocks: Sequence[Block],
    kept: Sequence[Tensor] | None = None,
) -> Tensor:
    """Score all pages for all questions: (B, N), differentiably.

    `kept` holds the visual tokens that stay of each page, ascending; by default all do.
    """
    text = model.model.language_model
    grids = [block.features.grid for block in blocks]
    prompt = build_ranking_prompt(processor, queries[0], grids)
    small = [(1, MERGE, MERGE)] * len(blocks)  # the pages have had their turn, their size is no matter any more
    pages = _page_rows(model, prompt, blocks, kept)
    tails = _tail_rows(model, [build_ranking_prompt(processor, query, small) for query in queries])
    *before, vote, count = text.layers
    turns = [text.rotary_emb(rows.hidden, rows.positions) for rows in (pages, tails)]
    pages_hidden, tails_hidden = pages.hidden, tails.hidden
    for layer in before:
        pages_hidden = layer(pages_hidden, position_embeddings=turns[0])
        tails_hidden = layer(tails_hidden, position_embeddings=turns[1])
    unseen = pages.padding.clone()
    unseen[:, 0] = True  # the first token of all is in the tails
    tails_hidden = _vote(vote, tails_hidden, pages_hidden, unseen, turns[1], turns[0])
    tails_hidden = count(tails_hidden, position_embeddings=turns[1])
    last = text.norm(tails_hidden)[torch.arange(len(queries)), tails.lengths - 1]  # (B, D)
    return last @ model.get_output_embeddings().weight[prompt.identifier_ids].T


def _page_rows(
    model: Qwen3VLForConditionalGeneration,
    prompt: RankingPrompt,
    blocks: Sequence[Block],
    kept: Sequence[Tensor] | None,
) -> _Rows:
    """The first token of all, then one page with its identifier, a row each."""
    positions = rope_positions(prompt.is_visual, prompt.image_grid_thw, MERGE)
    starts = prompt.is_visual.nonzero()[:, 0][torch.tensor([0, *prompt.visual_counts[:-1]]).cumsum(0)].tolist()
    hidden, places = [], []
    for number, (start, block) in enumerate(zip(starts, blocks, strict=True)):
        stay = torch.arange(len(block.features.merged)) if kept is None else kept[number]
        lead = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(start - _BEFORE_A_PAGE, start)])
        words = model.get_input_embeddings()(prompt.input_ids[lead])
        hidden.append(torch.cat([words, block.features.merged[stay]]))
        places.append(positions[:, torch.cat([lead, start + stay])].T)
    return _padded(hidden, places)


def _tail_rows(model: Qwen3VLForConditionalGeneration, prompts: Sequence[RankingPrompt]) -> _Rows:
    """The first token of all, then what stands behind the pages, a row for each question."""
    hidden, places = [], []
    for prompt in prompts:
        behind = int(prompt.is_visual.nonzero()[-1, 0]) + 1
        chosen = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(behind, len(prompt.input_ids))])
        hidden.append(model.get_input_embeddings()(prompt.input_ids[chosen]))
        places.append(rope_positions(prompt.is_visual, prompt.image_grid_thw, MERGE)[:, chosen].T)
    return _padded(hidden, places)


def _padded(hidden: list[Tensor], places: list[Tensor]) -> _Rows:
    lengths = torch.tensor([len(row) for row in hidden])
    return _Rows(pad_sequence(hidden, True), pad_sequence(places, True).permute(2, 0, 1), lengths)


def _vote(
    layer: Qwen3VLTextDecoderLayer,
    tails: Tensor,
    pages: Tensor,
    unseen: Tensor,
    tail_turns: tuple[Tensor, Tensor],
    page_turns: tuple[Tensor, Tensor],
) -> Tensor:
    """The vote's layer for questions that all look at the same pages: (B, T, D), (N, L, D), (N, L) -> (B, T, D)."""
    attention = layer.self_attn
    asked, shown = layer.input_layernorm(tails), layer.input_layernorm(pages)
    query, own_key, own_value = _heads(attention, asked, tail_turns)
    _, key, value = _heads(attention, shown, page_turns)
    on_pages = torch.einsum("bhtd,nhld->bhtnl", query, key).masked_fill(unseen, -torch.inf)
    in_text = query @ own_key.transpose(2, 3)  # (B, H, T, T)
    later = torch.ones(in_text.shape[2:], dtype=torch.bool).triu(1)
    logits = torch.cat([on_pages.flatten(3), in_text.masked_fill(later, -torch.inf)], -1)
    weights = (attention.scaling * logits).softmax(-1)
    to_pages, to_text = weights.split([on_pages.shape[3] * on_pages.shape[4], in_text.shape[3]], -1)
    taken = torch.einsum("bhtm,hmd->bhtd", to_pages, value.transpose(0, 1).flatten(1, 2)) + to_text @ own_value
    hidden = tails + attention.o_proj(taken.transpose(1, 2).flatten(2))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def _heads(
    attention: Qwen3VLTextAttention, hidden: Tensor, turns: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of all heads: (R, L, D) -> (R, H, L, d) each."""
    shape = (*hidden.shape[:2], -1, attention.head_dim)
    query = attention.q_norm(attention.q_proj(hidden).view(shape)).transpose(1, 2)
    key = attention.k_norm(attention.k_proj(hidden).view(shape)).transpose(1, 2)
    query, key = apply_rotary_pos_emb(query, key, *turns)
    return query, key, attention.v_proj(hidden).view(shape).transpose(1, 2)


def train_votes(
    model: Qwen3VLForConditionalGeneration,
    processor: Qwen3VLProcessor,
    maker: ListMaker,
    config: VotingConfig,
    folder: Path,
) -> None:
    """Train `model` in place; resumes from `folder` and logs to `folder`/voting.log."""
    freeze_written(model)

    def step(share: float, rng: random.Random) -> tuple[str, float, float]:
        size = next(size for until, size in config.blocks if share <= until)
        return f"{config.pages}x{size}", *_step(model, processor, maker, config, size, rng)

    train_for(
        config.minutes,
        model,
        step,
        folder,
        "voting",
        learning_rate=config.learning_rate,
        embedding_rate=config.embedding_rate,
        warmup_steps=config.warmup_steps,
        save_every=config.save_every,
    )


def _step(
    model: Qwen3VLForConditionalGeneration,
    processor: Qwen3VLProcessor,
    maker: ListMaker,
    config: VotingConfig,
    size: tuple[int, int] | None,
    rng: random.Random,
) -> tuple[float, float]:
    """Add the gradients of one batch; return mean loss and share of right firsts."""
    pairs = maker.pairs(config.pages, size, hard=0.7 if rng.random() < config.hard else 0.0)
    blocks = [block for _, block in pairs]
    queries = [query for query, _ in pairs]
    queries += [maker.ask(block) or query for _ in range(config.questions - 1) for query, block in pairs]
    keep = rng.uniform(*config.keep)
    kept = [_some(block, keep) for block in blocks]
    logits = shared_logits(model, processor, queries, blocks, kept)
    losses, terms = [], [block.terms for block in blocks]
    for number, (query, scores) in enumerate(zip(queries, logits, strict=True)):
        teacher = torch.tensor(relevances(query, terms, maker.rarity))
        order = teacher.argsort(descending=True, stable=True).tolist()
        losses.append(soft_ranking_loss(scores, order, {number % len(blocks)}, config.decay))
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.item(), (logits.argmax(1) == torch.arange(len(queries)) % len(blocks)).float().mean().item()


def _some(block: Block, keep: float) -> Tensor:
    """Choose the tokens that stay of a block, ascending: with words under them rather than blank ones."""
    count = len(block.features.merged)
    chance = torch.rand(count)
    chance[[token for _, token in block.placed]] += 0.5
    return chance.topk(max(1, round(keep * count))).indices.sort().values
