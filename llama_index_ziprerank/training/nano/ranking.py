"""Stage 1 and 2 for nano: the language model learns to rank what the frozen tower reads.

Lists of twenty small blocks come first, then twenty pages: all letters take part from the start, or those that do
not drift. The prompt is that of inference
(`build_ranking_prompt`), the loss the paper's soft ranking.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from llama_index_ziprerank.reranking.inputs import build_ranking_prompt
from llama_index_ziprerank.reranking.pruning import WindowInputs, window_inputs
from llama_index_ziprerank.reranking.scoring import window_logits
from llama_index_ziprerank.training.losses import soft_ranking_loss
from llama_index_ziprerank.training.nano.circuit import freeze_written
from llama_index_ziprerank.training.nano.lists import ListMaker, RankingList
from llama_index_ziprerank.training.nano.timed import train_for


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
    freeze_written(model)

    def step(share: float, rng: random.Random) -> tuple[str, float, float]:
        level = next(level for level in config.levels if share <= level.until)
        return f"{level.candidates}x{level.block}", *_step(model, processor, maker, level, rng)

    train_for(
        config.minutes,
        model,
        step,
        folder,
        "ranking",
        learning_rate=config.learning_rate,
        embedding_rate=config.embedding_rate,
        warmup_steps=config.warmup_steps,
        save_every=config.save_every,
    )


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
