"""Stage 1 and 2 for nano: the language model learns to rank what the frozen tower reads.

Lists of twenty small blocks come first, then twenty pages: all letters take part from the start, or those that do
not drift. The prompt is that of inference
(`build_ranking_prompt`), the loss the paper's soft ranking.
"""

import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from llama_index_ziprerank.reranking.inputs import build_ranking_prompt
from llama_index_ziprerank.reranking.pruning import WindowInputs, window_inputs
from llama_index_ziprerank.reranking.scoring import window_logits
from llama_index_ziprerank.training.losses import soft_ranking_loss
from llama_index_ziprerank.training.nano.checkpoint import resume_progress, save_progress
from llama_index_ziprerank.training.nano.circuit import freeze_written
from llama_index_ziprerank.training.nano.lists import ListMaker, RankingList


@dataclass(frozen=True)
class Level:
    """One step of the curriculum."""

    until: float
    """The level ends at this share of the time, reached or not."""
    candidates: int
    """Candidates of a list."""
    block: tuple[int, int] | None
    """Rows and columns of a candidate's block of visual tokens; None for whole pages."""
    keep_ratio: tuple[float, float] = (1.0, 1.0)
    """Range that each list's keep_ratio is drawn from."""
    hard: float = 0.5
    """Share of the other candidates that hold a word of the query too."""
    decay: float = 0.1
    """Of the soft ranking targets; the paper's 0.5 is for a teacher that reads, ours counts words."""
    tokens: int = 3_000
    """Language-model tokens in one step; the number of lists follows from it."""


@dataclass(frozen=True)
class RankingConfig:
    """How the reranker is trained."""

    minutes: float = 30.0
    """Wall-clock time; a resumed run continues with what is left."""
    learning_rate: float = 5e-5
    """Peak; warm-up over `warmup_steps`, then cosine over the time to 3 %."""
    embedding_rate: float = 0.1
    """The token embeddings learn at this part of the rate: the tower was taught to point at them."""
    warmup_steps: int = 20
    levels: tuple[Level, ...] = (
        Level(0.70, 20, (8, 10), tokens=9_000),
        Level(1.00, 20, None, (0.1, 0.4), tokens=12_000),
    )
    save_every: int = 20
    """Steps between checkpoints."""


def prepare(
    model: Qwen3VLForConditionalGeneration,
    processor: Qwen3VLProcessor,
    ranking_list: RankingList,
    keep_ratio: float,
    pruning: str,
) -> WindowInputs:
    """The same words, pruning and positions as inference, for one training list."""
    features = [block.features for block in ranking_list.candidates]
    prompt = build_ranking_prompt(processor, ranking_list.query, [page.grid for page in features])
    return window_inputs(model, prompt, features, keep_ratio=keep_ratio, pruning=pruning)  # type: ignore[arg-type]


def train_ranking(
    model: Qwen3VLForConditionalGeneration,
    processor: Qwen3VLProcessor,
    maker: ListMaker,
    config: RankingConfig,
    folder: Path,
) -> None:
    """Train `model` in place; resumes from `folder` and logs to `folder`/ranking.log."""
    folder.mkdir(parents=True, exist_ok=True)
    model.train()
    freeze_written(model)
    embeddings = model.get_input_embeddings().weight
    others = [p for p in model.parameters() if p.requires_grad and p is not embeddings]
    optimizer = torch.optim.AdamW(
        [{"params": others, "part": 1.0}, {"params": [embeddings], "part": config.embedding_rate}],
        lr=config.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=0.0,
    )
    state = resume_progress(model, optimizer, folder, "ranking")
    rng = random.Random(state["step"])
    while state["spent"] < 60 * config.minutes:
        started = time.monotonic()
        share = state["spent"] / (60 * config.minutes)
        level = next(level for level in config.levels if share <= level.until)
        rate = config.learning_rate * min(1.0, (state["step"] + 1) / config.warmup_steps)
        rate *= 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["part"]
        loss, right = _step(model, processor, maker, level, rng)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state["right"] += 0.05 * (right - state["right"])
        state["step"] += 1
        state["spent"] += time.monotonic() - started
        if state["step"] % 10 == 0:
            with (folder / "ranking.log").open("a") as log:
                where = f"{state['step']} {state['spent'] / 60:.2f} min {level.candidates}x{level.block}"
                log.write(f"{where} loss {loss:.3f} top1 {state['right']:.3f}\n")
        if state["step"] % config.save_every == 0:
            save_progress(model, optimizer, folder, "ranking", state)
    save_progress(model, optimizer, folder, "ranking", state)
    model.eval()


def _step(
    model: Qwen3VLForConditionalGeneration,
    processor: Qwen3VLProcessor,
    maker: ListMaker,
    level: Level,
    rng: random.Random,
) -> tuple[float, float]:
    """Add the gradients of one batch; return mean loss and share of right firsts."""
    lists: list[RankingList] = []
    windows: list[WindowInputs] = []
    while sum(len(window.input_ids) for window in windows) < level.tokens:
        drawn = maker.draw(level.candidates, level.block, level.hard)
        keep = rng.uniform(*level.keep_ratio)
        lists.append(drawn)
        windows.append(prepare(model, processor, drawn, keep, rng.choice(["prompt", "query"])))
    logits = window_logits(model, windows)
    losses = [
        soft_ranking_loss(scores, each.order, {each.positive}, level.decay)
        for scores, each in zip(logits, lists, strict=True)
    ]
    loss = torch.stack(losses).mean()
    loss.backward()
    right = [scores.argmax().item() == each.positive for scores, each in zip(logits, lists, strict=True)]
    return loss.item(), sum(right) / len(right)
