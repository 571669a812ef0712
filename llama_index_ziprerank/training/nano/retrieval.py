"""nano's first stage: ColQwen3 over the frozen tower, with colpali-engine's own in-batch ColBERT loss."""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from colpali_engine.loss import ColbertLoss
from colpali_engine.models import ColQwen3, ColQwen3Processor
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from llama_index_ziprerank.training.nano.export import keep_reserved
from llama_index_ziprerank.training.nano.neighbours import freeze_looks
from llama_index_ziprerank.training.nano.pairs import Block, PairMaker
from llama_index_ziprerank.training.nano.timed import train_for


@dataclass(frozen=True)
class RetrievalConfig:
    """How the retriever is trained."""

    minutes: float = 15.0
    """Wall-clock time."""
    learning_rate: float = 5e-4
    """Peak; short warm-up, then cosine over the time to 3 %."""
    embedding_rate: float = 0.1
    """The token embeddings learn at this part of the rate: the tower was taught to point at them."""
    temperature: float = 0.02
    """Of the in-batch softmax (colpali-engine's default)."""
    warmup_steps: int = 50
    blocks: tuple[tuple[float, tuple[int, int] | None, int], ...] = (
        (0.35, (8, 16), 32),
        (0.65, (14, 24), 20),
        (1.0, None, 12),
    )
    """Until this share of the time, blocks of these rows and columns, this many pages in a batch; None: whole ones."""
    questions: int = 4
    """Questions about each page of a batch."""
    hard: float = 0.5
    """Share of the batches whose pages share words with one of the questions."""
    save_every: int = 50
    """Steps between checkpoints."""


def encode_blocks(model: ColQwen3, processor: ColQwen3Processor, blocks: list[Block]) -> Tensor:
    """Multi-vectors of blocks whose vision features are known: list of B -> (B, L, dim), zero where padded."""
    counts = [len(block.features.merged) for block in blocks]
    texts = [processor.visual_prompt_prefix.replace(processor.image_token, processor.image_token * n) for n in counts]
    batch = processor.tokenizer(texts, return_tensors="pt", padding="longest")
    batch = batch.to(model.device)
    kinds = (batch["input_ids"] == model.config.image_token_id).int()
    return model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        mm_token_type_ids=kinds,
        image_grid_thw=torch.tensor([block.features.grid for block in blocks], device=model.device),
        mm_encoder_outputs={
            "image": BaseModelOutputWithDeepstackFeatures(
                pooler_output=tuple(block.features.merged.to(model.device) for block in blocks), deepstack_features=[]
            )
        },
    )


def encode_queries(model: ColQwen3, processor: ColQwen3Processor, queries: list[str]) -> Tensor:
    """Multi-vectors of queries: list of B -> (B, T, dim), zero where padded."""
    batch = processor.process_queries(queries).to(model.device)
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


def train_retrieval(
    model: ColQwen3, processor: ColQwen3Processor, maker: PairMaker, config: RetrievalConfig, folder: Path
) -> None:
    """Train `model` in place; resumes from `folder` and logs to `folder`/retrieval.log.

    Each batch holds pages of one or two manuals.
    """
    model.visual.requires_grad_(False)
    freeze_looks(model.language_model.layers)

    def step(share: float, rng: random.Random) -> tuple[str, float, float]:
        _, size, pages = next(entry for entry in config.blocks if share <= entry[0])
        return f"{pages}x{size}", *_step(model, processor, maker, config, size, pages, rng)

    embeddings = model.get_input_embeddings().weight
    train_for(
        config.minutes,
        model,
        step,
        folder,
        "retrieval",
        learning_rate=config.learning_rate,
        part=lambda weight: config.embedding_rate if weight is embeddings else 1.0,
        warmup_steps=config.warmup_steps,
        save_every=config.save_every,
        weight_decay=0.01,
        after_step=lambda: keep_reserved(model),
    )


def _step(
    model: ColQwen3,
    processor: ColQwen3Processor,
    maker: PairMaker,
    config: RetrievalConfig,
    size: tuple[int, int] | None,
    pages: int,
    rng: random.Random,
) -> tuple[float, float]:
    """Add the gradients of one batch; return mean loss and share of right firsts."""
    loss_function = ColbertLoss(temperature=config.temperature, normalize_scores=True)
    hard = 0.7 if rng.random() < config.hard else 0.0
    pairs = maker.pairs(pages, size, manuals=rng.choice([1, 1, 2]), hard=hard)
    asked = [query for query, _ in pairs]
    asked += [maker.ask(block) or query for _ in range(config.questions - 1) for query, block in pairs]
    queries = encode_queries(model, processor, asked)
    documents = encode_blocks(model, processor, [block for _, block in pairs])
    loss = torch.stack([loss_function(some, documents) for some in queries.split(len(pairs))]).mean()
    loss.backward()
    with torch.no_grad():
        scores = torch.einsum("qtd,pld->qptl", queries, documents).amax(3).sum(2)
        right = (scores.argmax(1).cpu() == torch.arange(len(asked)) % len(pairs)).float().mean()
    return loss.item(), right.item()


@torch.no_grad()
def principal_directions(
    model: ColQwen3, processor: ColQwen3Processor, maker: PairMaker, *, rounds: int = 12
) -> Tensor:
    """Directions of the retriever's vectors in which words of queries differ, most telling first: (dim, dim)."""
    vectors = []
    for _ in range(rounds):
        pairs = maker.pairs(24, (8, 16), manuals=2)
        vectors += [encode_queries(model, processor, [query for query, _ in pairs]).flatten(0, 1)]
        vectors += [encode_blocks(model, processor, [block for _, block in pairs]).flatten(0, 1)]
    seen = torch.cat(vectors).cpu()
    return torch.linalg.eigh(seen.T @ seen).eigenvectors.T.flip(0)
