"""Query-image early interaction: visual tokens least like the query are dropped before the language model.

Of every page the best-scoring part is kept, in spatial order and at its original M-RoPE positions; deepstack features
are cut by the same index (ZipRerank, arXiv:2605.11864, as released). No model is subclassed: the outcome is arguments
of the plain transformers forward. Letters: N pages, V visual tokens of all pages, T text tokens, L prompt tokens,
V' and L' what is left of V and L, D width of the language model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch.nn import functional
from transformers import Qwen3VLForConditionalGeneration

from llama_index_ziprerank.reranking.features import PageFeatures
from llama_index_ziprerank.reranking.inputs import RankingPrompt

PruningMode = Literal["prompt", "query"]
"""What patches are compared with: all prompt text before the first image (as released), or the query alone."""


@dataclass(frozen=True, eq=False)
class WindowInputs:
    """The language model's inputs for one window, on the model's device."""

    input_ids: torch.Tensor  # (L',) int64
    position_ids: torch.Tensor  # (3, L') int64: M-RoPE positions in time, height and width
    merged: torch.Tensor  # (V', D)
    deepstack: tuple[torch.Tensor, ...]  # (V', D) each
    identifier_ids: torch.Tensor  # (N,) int64
    read_position: int


def check_pruning(keep_ratio: float, pruning: str) -> None:
    """Raise ValueError unless ``0 < keep_ratio <= 1`` and ``pruning`` is a known mode."""
    if not 0 < keep_ratio <= 1:
        raise ValueError(
            f"keep_ratio is the part of the visual tokens to keep, above 0 and at most 1, got {keep_ratio}. "
            "Pass 1.0 to keep them all."
        )
    if pruning not in get_args(PruningMode):
        raise ValueError(f"pruning is one of {', '.join(map(repr, get_args(PruningMode)))}, got {pruning!r}.")


def window_inputs(
    model: Qwen3VLForConditionalGeneration,
    prompt: RankingPrompt,
    features: Sequence[PageFeatures],
    *,
    keep_ratio: float = 1.0,
    pruning: PruningMode = "prompt",
) -> WindowInputs:
    """Join a prompt with the features of its pages, and drop the visual tokens that score lowest.

    Raises:
        ValueError: for a bad ``keep_ratio`` or ``pruning``, and when there is no text to compare the patches with.
    """
    check_pruning(keep_ratio, pruning)
    merged = torch.cat([page.merged for page in features])  # (V, D)
    deepstack = tuple(torch.cat(layer) for layer in zip(*(page.deepstack for page in features), strict=True))
    position_ids, _ = model.model.get_rope_index(
        prompt.input_ids[None], prompt.mm_token_type_ids[None], image_grid_thw=prompt.image_grid_thw
    )  # (3, 1, L), of the full sequence
    input_ids, position_ids = prompt.input_ids.to(merged.device), position_ids[:, 0].to(merged.device)
    if keep_ratio < 1:
        text_ids = prompt.text_ids if pruning == "prompt" else prompt.query_ids
        with torch.no_grad():  # what is kept is no matter of degree; gradients pass through the features alone
            scores = score_patches(merged, _embed(model, text_ids, pruning))
            kept = keep_best(scores, prompt.visual_counts, keep_ratio)  # (V,)
        is_kept = torch.ones_like(input_ids, dtype=torch.bool)
        is_kept[prompt.is_visual.to(is_kept.device)] = kept
        input_ids, position_ids = input_ids[is_kept], position_ids[:, is_kept]
        merged, deepstack = merged[kept], tuple(layer[kept] for layer in deepstack)
    return WindowInputs(input_ids, position_ids, merged, deepstack, prompt.identifier_ids, len(input_ids) - 1)


def score_patches(patches: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Score each visual token by its best cosine with a text token: (V, D), (T, D) -> (V,) float32."""
    cosines = functional.normalize(patches.float(), dim=-1) @ functional.normalize(text.float(), dim=-1).T
    return cosines.amax(dim=-1)


def keep_best(scores: torch.Tensor, counts: Sequence[int], keep_ratio: float) -> torch.Tensor:
    """Mark the best ``max(1, round(keep_ratio * P))`` of each page's P visual tokens: (V,) -> (V,) bool.

    ``counts`` holds P of every page, in order. Of equal scores the earlier token is kept.
    """
    sizes = torch.tensor(counts, device=scores.device)  # (N,)
    quotas = torch.tensor([max(1, round(keep_ratio * count)) for count in counts], device=scores.device)
    in_page = torch.arange(max(counts), device=scores.device) < sizes[:, None]  # (N, max P)
    table = scores.new_full(in_page.shape, -torch.inf).masked_scatter(in_page, scores)
    best_first = table.argsort(dim=1, descending=True, stable=True)
    places = best_first.argsort(dim=1)  # the inverse permutation: each token's place in its page
    return (places < quotas[:, None])[in_page]


def _embed(model: Qwen3VLForConditionalGeneration, ids: torch.Tensor, pruning: PruningMode) -> torch.Tensor:
    """Embed each different token once: a maximum does not count repetitions. (T,) -> (at most T, D)."""
    if not len(ids):
        raise ValueError(
            f"The tokenizer finds no token in the {pruning} to compare pages with. "
            'Use pruning="prompt" or keep_ratio=1.0.'
        )
    return model.get_input_embeddings()(ids.unique().to(model.device))
