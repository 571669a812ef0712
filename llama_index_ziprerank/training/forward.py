"""Training rows become one differentiable forward pass: the read position's scores and the answer's logits.

The rows enter the plain transformers forward as in inference (`reranking.scoring`), pruned or not, with the answer
behind the read position; the language-model head runs only where something is read. The forward is that of the given
model, so wrappers (DDP, PEFT) see it. Letters: B rows, T target tokens of a row, N candidates, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn
from transformers import Qwen3VLForConditionalGeneration

from llama_index_ziprerank.reranking.features import PageFeatures
from llama_index_ziprerank.reranking.pruning import PruningMode, WindowInputs, window_inputs
from llama_index_ziprerank.reranking.scoring import forward_arguments
from llama_index_ziprerank.training.collator import TrainingRow

PaddingSide = Literal["right", "left"]


@dataclass(frozen=True, eq=False)
class RowOutput:
    """What the model says about one row."""

    logits: torch.Tensor  # (T, V): row t predicts target token t
    scores: torch.Tensor  # (N,): the letters' logits at the read position, float32


def training_window(
    model: Qwen3VLForConditionalGeneration,
    row: TrainingRow,
    features: Sequence[PageFeatures],
    *,
    keep_ratio: float = 1.0,
    pruning: PruningMode = "prompt",
) -> WindowInputs:
    """Join a row with its pages' features as inference does, prune it, and let the answer follow the read position."""
    window = window_inputs(model, row.prompt, features, keep_ratio=keep_ratio, pruning=pruning)
    targets = row.target_ids.to(window.input_ids.device)  # (T,)
    steps = torch.arange(1, len(targets) + 1, device=targets.device)
    positions = window.position_ids[:, -1:] + steps  # (3, T): text, so one step each in all three
    return replace(
        window,
        input_ids=torch.cat([window.input_ids, targets]),
        position_ids=torch.cat([window.position_ids, positions], dim=1),
    )


def row_outputs(model: nn.Module, windows: Sequence[WindowInputs], *, padding_side: PaddingSide) -> list[RowOutput]:
    """Run B windows of `training_window` through the model, wrapped or not, in one forward pass."""
    arguments = forward_arguments(windows, padding_side=padding_side)
    length = arguments["input_ids"].shape[1]
    spans = []
    for window in windows:
        shift = length - len(window.input_ids) if padding_side == "left" else 0
        spans.append(range(shift + window.read_position, shift + len(window.input_ids) - 1))  # T columns
    columns = sorted({column for span in spans for column in span})
    place = {column: index for index, column in enumerate(columns)}
    read = torch.tensor(columns, device=arguments["input_ids"].device)
    logits = model(**arguments, logits_to_keep=read).logits  # (B, columns, V)
    return [
        _row_output(rows[place[span[0]] : place[span[-1]] + 1], window)
        for rows, span, window in zip(logits, spans, windows, strict=True)
    ]


def _row_output(logits: torch.Tensor, window: WindowInputs) -> RowOutput:
    return RowOutput(logits, logits[0, window.identifier_ids.to(logits.device)].float())
