"""The model card that goes with every checkpoint: what it was trained on, how, and how good it was found to be."""

from collections.abc import Mapping, Sequence
from typing import Any

from llama_index_ziprerank.training.metrics import METRICS, metrics_table
from llama_index_ziprerank.training.recipes import RankingRecipe

_CARD = """\
---
library_name: transformers
pipeline_tag: visual-document-retrieval
base_model: {model}
tags: [ziprerank, reranking, qwen3_vl]
---

# A ZipRerank reranker, {kind}

Ranks up to 20 page images for a query in one forward pass (ZipRerank, arXiv:2605.11864). Trained for {steps} steps.

```python
from llama_index_ziprerank import ZipRerankPostprocessor

reranker = ZipRerankPostprocessor(model="PATH OF THIS FOLDER", top_n=5)
```

## Data

{data}

## Quality

{quality}

## Recipe

`recipe.json` beside this card holds every setting; `ziprerank train {command} --config recipe.json` trains again.
Loss: {recipe.language_model_weight:g} x language-model loss + {recipe.ranking_weight:g} x {recipe.ranking_loss}; \
learning rate {recipe.learning_rate:g}, {recipe.schedule}, {recipe.warmup_steps} warm-up steps; {weights}; \
vision tower {vision}; keep_ratio {recipe.keep_ratio:g}, pruning by {recipe.pruning}.
"""

_FIGURES = """\
Percent, on {lists} held-out lists: in the order of the first stage, and reranked by the model before and after
training. Where a list names no positive, the teacher's favourite counts as relevant. Other documents may give other
figures.

{table}
"""


def model_card(recipe: RankingRecipe, data: str, steps: int, figures: str) -> str:
    """Write the card of a checkpoint.

    Args:
        recipe: what it was trained with.
        data: a sentence on what it was trained on.
        steps: optimiser steps so far.
        figures: how good it was found to be, as Markdown.
    """
    command = type(recipe).__name__.lower()
    weights = f"LoRA of rank {recipe.lora_rank}" if recipe.lora_rank else "all weights of the language model"
    return (
        _CARD.format(
            model=recipe.model,
            kind="stage 1" if command == "stage1" else "stage 2",
            command=command,
            steps=steps,
            data=data,
            quality=figures,
            recipe=recipe,
            weights=weights,
            vision="trained" if recipe.train_vision else "frozen",
        ).strip()
        + "\n"
    )


def figures(lists: int, history: Sequence[Mapping[str, Any]]) -> str:
    """Write the measurements in the Trainer's log, on so many held-out lists, as Markdown."""
    columns = quality(history)
    return _FIGURES.format(lists=lists, table=metrics_table(columns)) if columns else "Not measured."


def quality(history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Pick the measurements out of the Trainer's log: the given order if there is one, the first one, and the last."""
    measured = _measured(history)
    if not measured:
        return {}
    columns = {}
    if f"eval_base_{METRICS[0]}" in measured[0]:
        columns["first stage"] = {metric: measured[0][f"eval_base_{metric}"] for metric in METRICS}
    for entry in (measured[0], measured[-1]):
        name = f"step {entry['step']}" if entry["step"] else "before training"
        columns[name] = {metric: entry[f"eval_{metric}"] for metric in METRICS}
    return columns


def last_measured(history: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the step of the last measurement in the Trainer's log."""
    measured = _measured(history)
    return measured[-1]["step"] if measured else None


def _measured(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [entry for entry in history if f"eval_{METRICS[0]}" in entry]
