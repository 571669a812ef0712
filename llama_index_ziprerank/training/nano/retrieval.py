"""nano's first stage: ColQwen3 over the frozen tower, with colpali-engine's own in-batch ColBERT loss."""

import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from colpali_engine.loss import ColbertLoss
from colpali_engine.models import ColQwen3, ColQwen3Processor
from torch import Tensor, nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from llama_index_ziprerank.training.nano.export import keep_reserved
from llama_index_ziprerank.training.nano.lists import Block, ListMaker


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
    blocks: tuple[tuple[float, tuple[int, int], int], ...] = (
        (0.5, (8, 16), 32),
        (0.8, (14, 24), 16),
        (1.0, (99, 99), 8),
    )
    """Until this share of the time, blocks of these rows and columns, this many pages in a batch."""


def encode_blocks(model: ColQwen3, processor: ColQwen3Processor, blocks: list[Block]) -> Tensor:
    """Multi-vectors of blocks whose vision features are known: list of B -> (B, L, dim), zero where padded."""
    counts = [len(block.features.merged) for block in blocks]
    texts = [processor.visual_prompt_prefix.replace(processor.image_token, processor.image_token * n) for n in counts]
    batch = processor.tokenizer(texts, return_tensors="pt", padding="longest")
    kinds = (batch["input_ids"] == model.config.image_token_id).int()
    return model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        mm_token_type_ids=kinds,
        image_grid_thw=torch.tensor([block.features.grid for block in blocks]),
        mm_encoder_outputs={
            "image": BaseModelOutputWithDeepstackFeatures(
                pooler_output=tuple(block.features.merged for block in blocks), deepstack_features=[]
            )
        },
    )


def encode_queries(model: ColQwen3, processor: ColQwen3Processor, queries: list[str]) -> Tensor:
    """Multi-vectors of queries: list of B -> (B, T, dim), zero where padded."""
    batch = processor.process_queries(queries)
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


def train_retrieval(
    model: ColQwen3, processor: ColQwen3Processor, maker: ListMaker, config: RetrievalConfig, folder: Path
) -> None:
    """Train `model` in place; logs to `folder`/retrieval.log. Each batch holds pages of one or two manuals."""
    folder.mkdir(parents=True, exist_ok=True)
    model.train()
    model.visual.requires_grad_(False)
    for layer in model.language_model.layers:  # where they look: circuit.py says why
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.q_norm, layer.self_attn.k_norm):
            part.requires_grad_(False)
    embeddings = model.language_model.embed_tokens.weight
    others = [p for p in model.parameters() if p.requires_grad and p is not embeddings]
    groups = [{"params": others, "part": 1.0}, {"params": [embeddings], "part": config.embedding_rate}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    loss_function = ColbertLoss(temperature=config.temperature, normalize_scores=True)
    rng, step, started, right = random.Random(0), 0, time.monotonic(), 0.0
    while (share := (time.monotonic() - started) / (60 * config.minutes)) < 1:
        rate = config.learning_rate * min(1.0, (step + 1) / 50) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["part"]
        _, size, pages = next(entry for entry in config.blocks if share <= entry[0])
        pairs = maker.pairs(pages, size, manuals=rng.choice([1, 1, 2]))
        queries = encode_queries(model, processor, [query for query, _ in pairs])
        documents = encode_blocks(model, processor, [block for _, block in pairs])
        loss = loss_function(queries, documents)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        keep_reserved(model)
        step += 1
        with torch.no_grad():
            scores = torch.einsum("qtd,pld->qptl", queries, documents).amax(3).sum(2)
            right += 0.05 * ((scores.argmax(1) == torch.arange(len(pairs))).float().mean().item() - right)
        if step % 10 == 0:
            with (folder / "retrieval.log").open("a") as log:
                log.write(
                    f"{step} {share * config.minutes:.2f} min {pages}x{size} loss {loss.item():.3f} top1 {right:.3f}\n"
                )
    model.eval()


@torch.no_grad()
def principal_directions(
    model: ColQwen3, processor: ColQwen3Processor, maker: ListMaker, *, rounds: int = 12
) -> Tensor:
    """Directions of the retriever's vectors in which words of queries differ, most telling first: (dim, dim)."""
    vectors = []
    for _ in range(rounds):
        pairs = maker.pairs(24, (8, 16), manuals=2)
        vectors += [encode_queries(model, processor, [query for query, _ in pairs]).flatten(0, 1)]
        vectors += [encode_blocks(model, processor, [block for _, block in pairs]).flatten(0, 1)]
    seen = torch.cat(vectors)
    return torch.linalg.eigh(seen.T @ seen).eigenvectors.T.flip(0)
