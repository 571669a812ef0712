"""Stage 1 and 2 for nano: the language model learns to rank what the frozen tower reads.

Lists grow from eight blocks to twenty pages; a level ends when the right candidate comes first often enough, or with
its share of the time. The prompt is that of inference (`build_ranking_prompt`), the loss the paper's soft ranking.
"""

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from llama_index_ziprerank.reranking.inputs import build_ranking_prompt
from llama_index_ziprerank.reranking.pruning import WindowInputs, window_inputs
from llama_index_ziprerank.reranking.scoring import window_logits
from llama_index_ziprerank.training.losses import soft_ranking_loss
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
    decay: float = 0.05
    """Of the soft ranking targets: nearly one right answer at first, the paper's 0.5 at the end."""
    tokens: int = 3_000
    """Language-model tokens in one step; the number of lists follows from it."""


@dataclass(frozen=True)
class RankingConfig:
    """How the reranker is trained."""

    minutes: float = 30.0
    """Wall-clock time; a resumed run continues with what is left."""
    learning_rate: float = 1.5e-4
    """Peak; warm-up over `warmup_steps`, then cosine over the time to 3 %."""
    written_rate: float = 0.02
    """The written circuit (attention of all layers but the last, embeddings) learns at this part of the rate:
    a few rough steps would undo it."""
    warmup_steps: int = 60
    enough: float = 0.9
    """Moving average of top-1 at which a level ends early."""
    levels: tuple[Level, ...] = (
        Level(0.45, 8, (10, 16), tokens=9_000),
        Level(0.60, 16, (10, 16), tokens=9_000),
        Level(0.80, 12, None, (0.1, 0.5), tokens=12_000, decay=0.25),
        Level(1.00, 20, None, (0.15, 0.8), tokens=14_000, decay=0.5),
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
    model.model.visual.requires_grad_(False)
    written = [model.get_input_embeddings().weight]
    for layer in model.model.language_model.layers[:-1]:
        written += layer.self_attn.parameters()
    known = set(written)
    free = [p for p in model.parameters() if p.requires_grad and p not in known]
    helper_loss = HelperLoss(model)
    optimizer = torch.optim.AdamW(
        [{"params": [*free, *helper_loss.parameters()], "part": 1.0}, {"params": written, "part": config.written_rate}],
        lr=config.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=0.01,
    )
    state = _resume(model, optimizer, folder)
    rng = random.Random(state["step"])
    while state["spent"] < 60 * config.minutes:
        started = time.monotonic()
        share = state["spent"] / (60 * config.minutes)
        while share > config.levels[int(state["level"])].until or (
            state["right"] >= config.enough and state["level"] < len(config.levels) - 1
        ):
            state["level"] += 1
            state["right"] = 0.0
        level = config.levels[int(state["level"])]
        rate = config.learning_rate * min(1.0, (state["step"] + 1) / config.warmup_steps)
        rate *= 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["part"]
        loss, helper, right = _step(model, processor, maker, level, rng, helper_loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state["right"] += 0.05 * (right - state["right"])
        state["step"] += 1
        state["spent"] += time.monotonic() - started
        if state["step"] % 10 == 0:
            with (folder / "ranking.log").open("a") as log:
                where = f"{state['step']} {state['spent'] / 60:.2f} min {level.candidates}x{level.block}"
                log.write(f"{where} loss {loss:.3f} helper {helper:.3f} top1 {state['right']:.3f}\n")
        if state["step"] % config.save_every == 0:
            _save(model, optimizer, folder, state)
    _save(model, optimizer, folder, state)
    model.eval()


class HelperLoss(nn.Module):
    """What only training asks of the layers in between.

    Behind the second layer each visual token says whether it shows a word of the query; behind the third, each page's
    identifier says how well its page fits. Both are dense where the list has one right answer for hundreds of tokens.
    """

    def __init__(self, model: Qwen3VLForConditionalGeneration) -> None:
        super().__init__()
        width = model.config.text_config.hidden_size
        self.matches, self.fits = nn.Linear(width, 1), nn.Linear(width, 1)
        self.image_token_id = model.config.image_token_id
        self.vision_end_token_id = model.config.vision_end_token_id
        self.states: dict[int, Tensor] = {}
        for layer in (1, 2):
            model.model.language_model.layers[layer].register_forward_hook(self._keep(layer))

    def _keep(self, layer: int) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, arguments: object, output: Tensor) -> None:
            self.states[layer] = output

        return hook

    def forward(self, lists: list[RankingList], windows: list[WindowInputs], *, whole: bool) -> Tensor:
        """Sum of both losses; the first only where no visual token was pruned (`whole`)."""
        losses = []
        for each, window, states in zip(lists, windows, self.states[2], strict=True):
            ends = torch.nonzero(window.input_ids == self.vision_end_token_id)[:, 0]
            fits = self.fits(states[ends + 2])[:, 0]  # behind a page stands "[A]"
            losses.append(F.cross_entropy(fits, torch.tensor(each.positive)))
        if not whole:
            return torch.stack(losses).mean()
        seen = [
            states[: len(window.input_ids)][window.input_ids == self.image_token_id]
            for window, states in zip(windows, self.states[1], strict=True)
        ]
        logits = self.matches(torch.cat(seen))[:, 0]
        truth = torch.cat([block.matches(each.query) for each in lists for block in each.candidates])
        matches = (F.softplus(-logits[truth]).mean() + F.softplus(logits[~truth]).mean()) / 2
        return torch.stack(losses).mean() + matches


def _step(
    model: Qwen3VLForConditionalGeneration,
    processor: Qwen3VLProcessor,
    maker: ListMaker,
    level: Level,
    rng: random.Random,
    helper_loss: HelperLoss,
) -> tuple[float, float, float]:
    """Add the gradients of one batch; return mean loss, helper loss and share of right firsts."""
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
    helper = helper_loss(lists, windows, whole=level.keep_ratio[0] == 1.0)
    (loss + helper).backward()
    right = [scores.argmax().item() == each.positive for scores, each in zip(logits, lists, strict=True)]
    return loss.item(), helper.item(), sum(right) / len(right)


def _save(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, state: dict[str, float]) -> None:
    save_model(model, str(folder / "ranker.partial"))
    (folder / "ranker.partial").rename(folder / "ranker.safetensors")
    torch.save({"optimizer": optimizer.state_dict(), "state": state}, folder / "ranking.partial")
    (folder / "ranking.partial").rename(folder / "ranking.pt")


def _resume(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> dict[str, float]:
    if not (folder / "ranking.pt").exists():
        return {"step": 0, "spent": 0.0, "level": 0, "right": 0.0}
    load_model(model, str(folder / "ranker.safetensors"))
    saved = torch.load(folder / "ranking.pt", weights_only=True)
    optimizer.load_state_dict(saved["optimizer"])
    return saved["state"]
