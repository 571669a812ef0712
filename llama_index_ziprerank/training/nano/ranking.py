"""nano's second stage learns from lists: from the written circuit on, in small steps.

The circuit is right, but its constants were chosen by hand; here they, and what lies idle in its layers, fit the
questions. Steps are small beside the weights of each tensor: a rate that is three times as large forgets the circuit.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import Qwen3VLForConditionalGeneration

from llama_index_ziprerank.reranking.pruning import PruningMode, window_inputs
from llama_index_ziprerank.reranking.scoring import window_logits
from llama_index_ziprerank.training.cache import moved
from llama_index_ziprerank.training.losses import soft_ranking_loss
from llama_index_ziprerank.training.nano.circuit import LAYERS_BEHIND, LAYERS_IN_FRONT
from llama_index_ziprerank.training.nano.lists import ListMaker, RankedList
from llama_index_ziprerank.training.nano.neighbours import freeze_looks
from llama_index_ziprerank.training.nano.timed import train_for

SIZES = (20, 12)
"""Pages of a list."""


@dataclass(frozen=True)
class RankingConfig:
    """How the ranker is trained."""

    minutes: float = 10.0
    """Wall-clock time."""
    learning_rate: float = 1e-3
    """Peak, relative to the size of each tensor's weights; short warm-up, then cosine over the time to 3 %."""
    embedding_rate: float = 0.3
    """The token embeddings learn at this part of the rate."""
    batch: int = 8
    """Lists of a step."""
    readings: tuple[tuple[float, float, PruningMode], ...] = (
        (0.85, 0.25, "query"),
        (0.93, 0.25, "prompt"),
        (1.0, 0.5, "query"),
    )
    """Up to this share of the lists, which part of the visual tokens is read, and what decides that."""
    warmup_steps: int = 30
    save_every: int = 50
    """Steps between checkpoints."""


def train_ranking(
    model: Qwen3VLForConditionalGeneration, maker: ListMaker, config: RankingConfig, folder: Path
) -> None:
    """Train `model` in place; resumes from `folder` and logs to `folder`/ranking.log.

    The tower is frozen, and so is where the retriever's layers look (circuit.py says why).
    """
    model.model.visual.requires_grad_(False)
    freeze_looks(model.model.language_model.layers[LAYERS_IN_FRONT:-LAYERS_BEHIND])

    def step(share: float, rng: random.Random) -> tuple[str, float, float]:
        chance = rng.random()
        _, keep_ratio, pruning = next(reading for reading in config.readings if chance <= reading[0])
        size = rng.choice(SIZES)
        lists = [maker.draw(size, rng) for _ in range(config.batch)]
        return f"{size} pages, {keep_ratio} by {pruning}", *learn(model, lists, keep_ratio, pruning)

    embeddings = model.get_input_embeddings().weight
    train_for(
        config.minutes,
        model,
        step,
        folder,
        "ranking",
        learning_rate=config.learning_rate,
        part=lambda weight: relative_rate(weight) * (config.embedding_rate if weight is embeddings else 1),
        warmup_steps=config.warmup_steps,
        save_every=config.save_every,
    )


def relative_rate(weight: nn.Parameter) -> float:
    """The root mean square of a tensor's weights, within bounds: idle tensors may learn too, huge ones not run away."""
    return min(0.1, max(0.004, float(weight.detach().square().mean().sqrt())))


def learn(
    model: Qwen3VLForConditionalGeneration, lists: list[RankedList], keep_ratio: float, pruning: PruningMode
) -> tuple[float, float]:
    """Add the gradients of some lists, matrix products in bfloat16; return mean loss and share of right firsts."""
    windows = [
        window_inputs(
            model,
            each.prompt,
            [moved(page, model.device) for page in each.pages],
            keep_ratio=keep_ratio,
            pruning=pruning,
        )
        for each in lists
    ]
    with torch.autocast(model.device.type, torch.bfloat16):
        logits = [some.float() for some in window_logits(model, windows)]
    losses = [
        soft_ranking_loss(some, each.answers, each.answers, 1.0) for some, each in zip(logits, lists, strict=True)
    ]
    loss = torch.stack(losses).mean()
    loss.backward()
    for weight in model.parameters():  # tensors whose gradients are huge must not silence the others
        if weight.grad is not None:
            nn.utils.clip_grad_norm_(weight, 1.0)
    right = [int(some.argmax()) in each.answers for some, each in zip(logits, lists, strict=True)]
    return loss.item(), sum(right) / len(right)
