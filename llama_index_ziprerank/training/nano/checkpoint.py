"""A stage's weights and where it stands, written whole or not at all, so that an interrupted training goes on."""

from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import nn


def save_progress(
    model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, stage: str, state: dict[str, float]
) -> None:
    """Write the weights, then what the optimizer and the stage's clock remember."""
    save_model(model, str(folder / f"{stage}-weights.partial"))
    (folder / f"{stage}-weights.partial").rename(folder / f"{stage}.safetensors")
    torch.save({"optimizer": optimizer.state_dict(), "state": state}, folder / f"{stage}-state.partial")
    (folder / f"{stage}-state.partial").rename(folder / f"{stage}.pt")


def resume_progress(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, stage: str) -> dict[str, float]:
    """Go on from what `save_progress` left: steps, seconds spent, share of right firsts; zeros at the start."""
    if not (folder / f"{stage}.pt").exists():
        return {"step": 0, "spent": 0.0, "right": 0.0}
    load_model(model, str(folder / f"{stage}.safetensors"))
    saved = torch.load(folder / f"{stage}.pt", weights_only=True)
    optimizer.load_state_dict(saved["optimizer"])
    return saved["state"]
