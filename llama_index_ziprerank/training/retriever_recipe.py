"""The retriever's recipe: everything that can be chosen, with ColPali's choice as default.

ColPali (arXiv:2407.01449, section 4.2): LoRA of rank 32 on the language model and the projection, batches of 32 pairs,
learning rate 5e-5 falling linearly, one epoch, the pairwise in-batch loss. Free of torch, so that ``--help`` is quick.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from llama_index_ziprerank.training.options import option
from llama_index_ziprerank.training.recipes import Bounds, Recipe


@dataclass(kw_only=True)
class Retriever(Recipe):
    """The first stage: questions find their pages among the others of a batch, or among mined ones."""

    bounds: ClassVar[Bounds] = {
        **Recipe.bounds,
        "batch_size": (2, 1024),
        "mined": (1, None),
        "mining_margin": (1e-9, None),
        "mining_skip": (0, None),
        "temperature": (1e-9, None),
        "in_batch_weight": (0, 1),
    }

    model: str = option(
        "vidore/colqwen2.5-v0.2",
        'Retriever to start from: "nano", a folder, or a name on the Hub of any ColPali family of colpali-engine.',
    )
    data: str = option(
        "dukesunmtri/ZipRerank_GPT-5-mini_MMDocIR_Train",
        "Training lists, as for stage 2: a question's positives (else the teacher's favourite) are what it must find; "
        "all pages of all lists are the corpus that is mined and searched.",
    )
    output_dir: str = option("ziprerank-retriever", "Folder of the trained checkpoint and of those on the way.")
    loss: Literal["pairwise", "contrastive"] = option(
        "pairwise",
        "pairwise: softplus against the hardest page of the batch, as in the paper; contrastive: cross-entropy over "
        "all of them (InfoNCE).",
    )
    temperature: float | None = option(
        None, "Divides scores; default 1 for the pairwise loss (on sums), 0.02 for the contrastive one (on means)."
    )
    negatives: Literal["in_batch", "mined"] = option(
        "in_batch", "Wrong pages of a question: those of the batch, or also the best wrong ones that --model finds."
    )
    mined: int = option(2, "Mined pages of a question.")
    mining_margin: float = option(
        0.95,
        "A mined page scores at most this part of what the positive scores: better ones may answer the question too "
        "(arXiv:2407.15831).",
    )
    mining_skip: int = option(0, "Best wrong pages that are left out of the mined ones.")
    in_batch_weight: float = option(
        0.5, "Weight of the in-batch loss when negatives are mined; the others weigh the rest."
    )

    lora_rank: int = option(
        32, "Rank of LoRA adapters on language model and projection; 0 trains all of their weights."
    )
    lora_alpha: int = option(
        0, "LoRA: adapters are scaled by lora_alpha / lora_rank; 0: by one, whatever the rank, as ColPali."
    )
    lora_dropout: float = option(0.1, "LoRA: dropout of the adapters' inputs.")
    batch_size: int = option(32, "Questions of a forward pass on each device: the pages that compete.")
    gradient_accumulation: int = option(
        1, "Forward passes of one optimiser step; pages of different passes do not compete."
    )
    learning_rate: float = option(5e-5, "Highest learning rate.")
    schedule: str = option("linear", "How the learning rate falls after the warm-up: a transformers scheduler's name.")
    warmup_steps: int = option(100, "Optimiser steps in which the learning rate rises to its highest.")
