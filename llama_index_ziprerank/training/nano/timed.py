"""A stage of training that lasts so many minutes, is written down as it goes, and goes on after an interruption."""

import math
import random
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import PreTrainedModel

LOG_EVERY = 10
"""Steps between two lines of the log."""

_LOWEST = 0.03
"""The learning rate ends at this part of its peak."""

Step = Callable[[float, random.Random], tuple[str, float, float]]
"""Share of the time that is over, chance -> what was trained on, mean loss, share of right firsts; adds gradients."""


def train_for(
    minutes: float,
    model: PreTrainedModel,
    step: Step,
    folder: Path,
    stage: str,
    *,
    learning_rate: float,
    part: Callable[[nn.Parameter], float],
    warmup_steps: int,
    save_every: int,
    weight_decay: float = 0.0,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Train what `model` leaves unfrozen; each weight learns at its `part` of the learning rate.

    The rate rises over `warmup_steps`, then falls as a cosine over the time. Resumes from `folder`, where weights are
    written whole or not at all, and logs to `folder`/`stage`.log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.train()
    parts: dict[float, list[nn.Parameter]] = defaultdict(list)
    for weight in model.parameters():
        if weight.requires_grad:
            parts[part(weight)].append(weight)
    groups = [{"params": weights, "part": share} for share, weights in parts.items()]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True)
    state = _resume(model, optimizer, folder, stage)
    rng = random.Random(state["step"])
    while state["spent"] < 60 * minutes:
        started = time.monotonic()
        share = state["spent"] / (60 * minutes)
        rate = learning_rate * min(1.0, (state["step"] + 1) / warmup_steps)
        rate *= _LOWEST + (1 - _LOWEST) * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["part"]
        where, loss, right = step(share, rng)
        if nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite():  # or one step would spoil all weights
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after_step()
        state["step"] += 1
        state["right"] += max(0.05, 1 / state["step"]) * (right - state["right"])
        state["spent"] += time.monotonic() - started
        if state["step"] % LOG_EVERY == 0:
            with (folder / f"{stage}.log").open("a") as log:
                log.write(
                    f"{state['step']} {state['spent'] / 60:.2f} min {where} loss {loss:.3f} top1 {state['right']:.3f}\n"
                )
        if state["step"] % save_every == 0:
            _save(model, optimizer, folder, stage, state)
    _save(model, optimizer, folder, stage, state)
    model.eval()


def _save(
    model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, stage: str, state: dict[str, float]
) -> None:
    """Write the weights, then what the optimizer and the stage's clock remember."""
    save_model(model, str(folder / f"{stage}-weights.partial"))
    (folder / f"{stage}-weights.partial").rename(folder / f"{stage}.safetensors")
    torch.save({"optimizer": optimizer.state_dict(), "state": state}, folder / f"{stage}-state.partial")
    (folder / f"{stage}-state.partial").rename(folder / f"{stage}.pt")


def _resume(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, stage: str) -> dict[str, float]:
    """Go on from what `_save` left: steps, seconds spent, share of right firsts; zeros at the start."""
    if not (folder / f"{stage}.pt").exists():
        return {"step": 0, "spent": 0.0, "right": 0.0}
    load_model(model, str(folder / f"{stage}.safetensors"))
    saved = torch.load(folder / f"{stage}.pt", weights_only=True)
    optimizer.load_state_dict(saved["optimizer"])
    return saved["state"]
