"""Before the ranker ranks lists: its layers learn to vote, many questions and many blocks at once.

What the circuit will compute inside the ranker is computed here on the multi-vectors of a copy of the retriever, so
that each block of a batch is a candidate of every question of the batch: dozens of lists for the cost of one.
"""

import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from colpali_engine.models import ColQwen3, ColQwen3Processor
from torch import Tensor, nn

from llama_index_ziprerank.training.nano.circuit import VoteScale
from llama_index_ziprerank.training.nano.export import keep_reserved
from llama_index_ziprerank.training.nano.lists import ListMaker
from llama_index_ziprerank.training.nano.retrieval import encode_blocks, encode_queries


@dataclass(frozen=True)
class VotingConfig:
    """How voting is trained."""

    minutes: float = 10.0
    """Wall-clock time."""
    learning_rate: float = 3e-4
    """Peak; short warm-up, then cosine over the time to 3 %."""
    blocks: tuple[tuple[float, tuple[int, int], int], ...] = ((0.5, (10, 16), 24), (1.0, (16, 24), 14))
    """Until this share of the time, blocks of these rows and columns, this many pages in a batch."""


class Votes(nn.Module):
    """Words vote for pages: softmax over all visual tokens of all pages and a doubt, averaged by the words' rarity."""

    def __init__(self) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(15.0))
        self.doubt = nn.Parameter(torch.tensor(0.5))
        self.rarity = nn.Parameter(torch.tensor(2.0))
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, queries: Tensor, weights: Tensor, documents: Tensor) -> Tensor:
        """B questions of T tokens, N pages of L tokens: (B, T, D), rarity (B, T), (N, L, D) -> logits (B, N).

        Tokens with a weight of zero do not vote; visual tokens of zeros are padding.
        """
        cosines = torch.einsum("btd,nld->btnl", queries, documents)
        padding = ~documents.any(-1)
        hits = (self.sharpness * cosines).masked_fill(padding, -torch.inf).logsumexp(-1)  # (B, T, N)
        doubt = (self.sharpness * self.doubt).expand(*hits.shape[:2], 1)
        votes = torch.cat([hits, doubt], -1).softmax(-1)[..., :-1]
        share = (self.rarity * weights).masked_fill(weights == 0, -torch.inf).softmax(-1)  # (B, T)
        return self.scale * (share[..., None] * votes).sum(1)


def word_weights(processor: ColQwen3Processor, queries: list[str], rarity: Tensor) -> Tensor:
    """Rarity of the questions' own words, zero for what the processor writes around them: (B, T)."""
    ids = processor.process_queries(queries)["input_ids"]
    weights = rarity[ids].clamp(min=1e-3)
    for row, query in enumerate(queries):
        own = processor.tokenizer(query, add_special_tokens=False).input_ids
        line = ids[row].tolist()
        start = next(i for i in range(len(line)) if line[i : i + len(own)] == own)
        weights[row, :start] = 0
        weights[row, start + len(own) :] = 0
    return weights


def train_votes(
    model: ColQwen3,
    processor: ColQwen3Processor,
    maker: ListMaker,
    rarity: Tensor,
    config: VotingConfig,
    folder: Path,
) -> VoteScale:
    """Train `model`, a copy of the retriever, in place; returns what was learned about votes.

    `rarity` (V,) in 0..1 says how much each word piece tells. Logs to `folder`/voting.log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    votes = Votes()
    model.train()
    model.visual.requires_grad_(False)
    embeddings = model.language_model.embed_tokens.weight
    others = [p for p in model.parameters() if p.requires_grad and p is not embeddings]
    groups = [
        {"params": others, "part": 1.0},
        {"params": [embeddings], "part": 0.1},
        {"params": votes.parameters(), "part": 100.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    rng, step, started, right = random.Random(1), 0, time.monotonic(), 0.0
    while (share := (time.monotonic() - started) / (60 * config.minutes)) < 1:
        rate = config.learning_rate * min(1.0, (step + 1) / 30) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["part"]
        _, size, pages = next(entry for entry in config.blocks if share <= entry[0])
        pairs = maker.pairs(pages, size, manuals=rng.choice([1, 1, 2]))
        queries = [query for query, _ in pairs]
        asked = encode_queries(model, processor, queries)
        shown = encode_blocks(model, processor, [block for _, block in pairs])
        logits = votes(asked, word_weights(processor, queries, rarity), shown)
        loss = F.cross_entropy(logits, torch.arange(len(pairs)))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        keep_reserved(model)
        step += 1
        right += 0.05 * ((logits.argmax(1) == torch.arange(len(pairs))).float().mean().item() - right)
        if step % 10 == 0:
            learned = " ".join(f"{name} {value.item():.2f}" for name, value in votes.named_parameters())
            with (folder / "voting.log").open("a") as log:
                where = f"{step} {share * config.minutes:.2f} min {pages}x{size}"
                log.write(f"{where} loss {loss.item():.3f} top1 {right:.3f} {learned}\n")
    model.eval()
    return VoteScale(votes.sharpness.item(), votes.doubt.item(), votes.scale.item())
