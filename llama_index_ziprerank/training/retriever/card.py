"""The model card of a trained retriever."""

from collections.abc import Mapping, Sequence
from typing import Any

from llama_index_ziprerank.training.card import quality
from llama_index_ziprerank.training.metrics import metrics_table
from llama_index_ziprerank.training.retriever.pairs import Corpus
from llama_index_ziprerank.training.retriever_recipe import Retriever

_CARD = """\
---
library_name: colpali
pipeline_tag: visual-document-retrieval
base_model: {recipe.model}
tags: [colpali, multi-vector, late-interaction]
---

# A {family} retriever

Gives a page image many vectors, and finds pages by MaxSim (ColPali, arXiv:2407.01449). Trained for {steps} steps with
colpali-engine.

```python
from llama_index_ziprerank import ColPaliIndex, PDFPageReader

index = ColPaliIndex.from_documents(PDFPageReader().load_data("manual.pdf"), model="PATH OF THIS FOLDER")
```

## Data

{data}

## Quality

{quality}

## Recipe

`recipe.json` beside this card holds every setting; `ziprerank train retriever --config recipe.json` trains again.
{loss} loss, {negatives}; learning rate {recipe.learning_rate:g}, {recipe.schedule}, {recipe.warmup_steps} warm-up \
steps, batches of {recipe.batch_size}; vision tower {vision}; {weights}.
"""

_FIGURES = """\
Percent, {questions} held-out questions, each searched among {pages} pages of the held-out lists. Other documents may
give other figures.

{table}
"""


def retriever_card(
    recipe: Retriever,
    family: str,
    data: str,
    measured: Corpus | None,
    steps: int,
    history: Sequence[Mapping[str, Any]],
) -> str:
    """Write the card of a checkpoint.

    Args:
        recipe: what it was trained with.
        family: of colpali-engine.
        data: a sentence on what it was trained on.
        measured: what it was measured on.
        steps: optimiser steps so far.
        history: the Trainer's log, of which the measurements are quoted.
    """
    columns = quality(history)
    figures = "Not measured."
    if measured is not None and columns:
        figures = _FIGURES.format(
            questions=len(measured.questions), pages=len(measured.pages), table=metrics_table(columns)
        )
    mined = f"in-batch and {recipe.mined} mined negatives a question"
    weights = f"LoRA of rank {recipe.lora_rank}" if recipe.lora_rank else "all other weights"
    card = _CARD.format(
        recipe=recipe,
        family=family,
        steps=steps,
        data=data,
        quality=figures,
        loss=recipe.loss.capitalize(),
        negatives="in-batch negatives" if recipe.negatives == "in_batch" else mined,
        weights=weights,
        vision="trained" if recipe.train_vision else "frozen",
    )
    return card.strip() + "\n"
