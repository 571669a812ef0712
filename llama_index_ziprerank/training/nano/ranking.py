"""nano's second stage learns from lists: from the written circuit on, in small steps.

The circuit is right, but its constants were chosen by hand; here they, and what lies idle in its layers, fit the
questions. Steps are small beside the weights of each tensor: a rate that is three times as large forgets the circuit.
"""

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import Qwen3VLForConditionalGeneration

from llama_index_ziprerank.reranking.pruning import PruningMode, window_inputs
from llama_index_ziprerank.reranking.scoring import window_logits
from llama_index_ziprerank.training.cache import moved
from llama_index_ziprerank.training.losses import soft_ranking_loss
from llama_index_ziprerank.training.nano.circuit import LAYERS_BEHIND, LAYERS_IN_FRONT
from llama_index_ziprerank.training.nano.half_attention import LOSS_SCALE, use_half_attention
from llama_index_ziprerank.training.nano.lists import ListMaker, RankedList, pack, unpack
from llama_index_ziprerank.training.nano.neighbours import freeze_looks
from llama_index_ziprerank.training.nano.timed import train_for

SIZES = (20, 20, 20, 12)
"""Pages of a list: one of these."""


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
        (0.76, 0.25, "query"),
        (0.84, 0.25, "prompt"),
        (0.92, 0.5, "prompt"),
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

    The tower is frozen, and so is where the retriever's layers look (circuit.py says why). On a GPU attention has half
    precision, and other processes draw the lists.
    """
    model.model.visual.requires_grad_(False)
    freeze_looks(model.model.language_model.layers[LAYERS_IN_FRONT:-LAYERS_BEHIND])
    on_gpu = model.device.type == "cuda"
    attention = model.config.text_config._attn_implementation
    if on_gpu:
        use_half_attention(model)
    processes = max(1, (os.cpu_count() or 1) - 1) if on_gpu else 0
    streams: list[Iterator[Shown]] = []

    def step(share: float, rng: random.Random) -> tuple[str, float, float]:
        if not streams:  # `rng` knows how far training has come: what was shown before is not drawn again
            steps = Steps(maker, config, rng.random())
            streams.append(iter(DataLoader(steps, batch_size=None, num_workers=processes)))
        size, keep_ratio, pruning, packed = next(streams[0])
        where = f"{size} pages, {keep_ratio} by {pruning}"
        lists = [unpack(each) for each in packed]
        return where, *learn(model, maker, lists, keep_ratio, pruning, LOSS_SCALE if on_gpu else 1.0)

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
    model.set_attn_implementation({"text_config": attention})


Shown = tuple[int, float, PruningMode, list[bytes]]
"""What a step shows: pages of a list, which part is read, what decides that, lists as `pack` writes them."""


class Steps(IterableDataset[Shown]):
    """What the steps show, without end."""

    def __init__(self, maker: ListMaker, config: RankingConfig, seed: float) -> None:
        self._maker, self._config, self._seed = maker, config, seed

    def __iter__(self) -> Iterator[Shown]:
        worker = get_worker_info()
        rng = random.Random(f"{self._seed} {worker.id if worker else 0}")
        while True:
            chance = rng.random()
            _, keep_ratio, pruning = next(reading for reading in self._config.readings if chance <= reading[0])
            size = rng.choice(SIZES)
            yield size, keep_ratio, pruning, [pack(self._maker.draw(size, rng)) for _ in range(self._config.batch)]


def relative_rate(weight: nn.Parameter) -> float:
    """The root mean square of a tensor's weights, within bounds: idle tensors may learn too, huge ones not run away."""
    return min(0.1, max(0.004, float(weight.detach().square().mean().sqrt())))


def learn(
    model: Qwen3VLForConditionalGeneration,
    maker: ListMaker,
    lists: list[RankedList],
    keep_ratio: float,
    pruning: PruningMode,
    loss_scale: float = 1.0,
) -> tuple[float, float]:
    """Add the gradients of some lists; return mean loss and share of right firsts."""
    windows = [
        window_inputs(
            model,
            each.prompt,
            [moved(page, model.device) for page in maker.features(each)],
            keep_ratio=keep_ratio,
            pruning=pruning,
        )
        for each in lists
    ]
    logits = window_logits(model, windows)
    losses = [
        soft_ranking_loss(some, each.answers, each.answers, 1.0) for some, each in zip(logits, lists, strict=True)
    ]
    loss = torch.stack(losses).mean()
    (loss * loss_scale).backward()
    for weight in model.parameters():  # tensors whose gradients are huge must not silence the others
        if weight.grad is not None:
            nn.utils.clip_grad_norm_(weight, loss_scale)
            weight.grad /= loss_scale
    right = [int(some.argmax()) in each.answers for some, each in zip(logits, lists, strict=True)]
    return loss.item(), sum(right) / len(right)
