"""Query-image early interaction: visual tokens least like the query are dropped before the language model.

Of every page the best-scoring part is kept, in spatial order and at its original M-RoPE positions; deepstack features
are cut by the same index (ZipRerank, arXiv:2605.11864, as released). No model is subclassed: the outcome is arguments
of the plain transformers forward. Letters: N pages, V visual tokens of all pages, T text tokens, L prompt tokens,
V' and L' what is left of V and L, D width of the language model.

How many tokens each page keeps follows from its size, so every shape is known before the device has computed a score:
the host writes the shorter sequence at once and never waits for the device. Only which tokens are kept is decided
there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch.nn import functional
from transformers import Qwen3VLForConditionalGeneration

from llama_index_ziprerank.reranking.features import PageFeatures, kept_deepstack
from llama_index_ziprerank.reranking.inputs import RankingPrompt
from llama_index_ziprerank.reranking.positions import rope_positions

PruningMode = Literal["prompt", "query"]
"""What patches are compared with: all prompt text before the first image (as released), or the query alone."""


@dataclass(frozen=True, eq=False)
class WindowInputs:
    """The language model's inputs for one window, on the model's device."""

    input_ids: torch.Tensor  # (L',) int64
    position_ids: torch.Tensor  # (3, L') int64: M-RoPE positions in time, height and width
    merged: torch.Tensor  # (V', D)
    deepstack: tuple[torch.Tensor, ...]  # (V', D) each
    visual_columns: torch.Tensor  # (V',) int64: where in the sequence the visual tokens stand
    identifier_ids: torch.Tensor  # (N,) int64
    read_position: int


def check_pruning(keep_ratio: float | None, pruning: str | None) -> None:
    """Raise ValueError unless ``0 < keep_ratio <= 1`` and ``pruning`` is a known mode; None: the checkpoint's own."""
    if keep_ratio is not None and not 0 < keep_ratio <= 1:
        raise ValueError(
            f"keep_ratio is the part of the visual tokens to keep, above 0 and at most 1, got {keep_ratio}. "
            "Pass 1.0 to keep them all."
        )
    if pruning is not None and pruning not in get_args(PruningMode):
        raise ValueError(f"pruning is one of {', '.join(map(repr, get_args(PruningMode)))}, got {pruning!r}.")


def kept_counts(counts: Sequence[int], keep_ratio: float) -> list[int]:
    """Return how many of each page's visual tokens are kept: ``max(1, round(keep_ratio * P))`` of P."""
    return [max(1, round(keep_ratio * count)) for count in counts]


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
    device = merged.device
    positions = rope_positions(prompt.is_visual, prompt.image_grid_thw, model.config.vision_config.spatial_merge_size)
    if keep_ratio == 1:
        deepstack = tuple(torch.cat(layer) for layer in zip(*(page.deepstack for page in features), strict=True))
        columns = prompt.is_visual.nonzero()[:, 0]
        ids, positions, columns, letters = to_device(
            device, prompt.input_ids, positions, columns, prompt.identifier_ids
        )
        return WindowInputs(ids, positions, merged, deepstack, columns, letters, prompt.read_position)
    with torch.no_grad():  # what is kept is no matter of degree; gradients pass through the features alone
        text = _embed(model, prompt.text_ids if pruning == "prompt" else prompt.query_ids, pruning, device)
        is_kept = keep_best(score_patches(merged, text), prompt.visual_counts, keep_ratio)  # (V,)
    quotas = kept_counts(prompt.visual_counts, keep_ratio)
    kept = (~is_kept).byte().argsort(stable=True)[: sum(quotas)]  # (V'), ascending, and of known length
    slots = _slots(prompt, quotas)  # (L',)
    columns = prompt.is_visual[slots].nonzero()[:, 0]
    of_pages = positions[:, prompt.is_visual]  # (3, V)
    ids, positions, of_pages, columns, letters = to_device(
        device, prompt.input_ids[slots], positions[:, slots], of_pages, columns, prompt.identifier_ids
    )
    return WindowInputs(
        input_ids=ids,
        position_ids=positions.index_copy(1, columns, of_pages[:, kept]),
        merged=merged[kept],
        deepstack=kept_deepstack(features, kept, quotas),
        visual_columns=columns,
        identifier_ids=letters,
        read_position=len(slots) - 1,
    )


def score_patches(patches: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Score each visual token by its best cosine with a text token: (V, D), (T, D) -> (V,) float32."""
    cosines = functional.normalize(patches.float(), dim=-1) @ functional.normalize(text.float(), dim=-1).T
    return cosines.amax(dim=-1)


def keep_best(scores: torch.Tensor, counts: Sequence[int], keep_ratio: float) -> torch.Tensor:
    """Mark the best ``max(1, round(keep_ratio * P))`` of each page's P visual tokens: (V,) -> (V,) bool.

    ``counts`` holds P of every page, in order. Of equal scores the earlier token is kept.
    """
    sizes, longest = torch.tensor(counts), max(counts)
    starts = sizes.cumsum(0) - sizes  # (N,)
    within = torch.arange(longest)
    tokens = torch.where(within < sizes[:, None], starts[:, None] + within, len(scores))  # (N, longest P)
    page = torch.arange(len(counts)).repeat_interleave(sizes)  # (V,)
    cells = torch.arange(len(page)) + (torch.arange(len(counts)) * longest - starts)[page]  # (V,): of that table
    quotas = torch.tensor(kept_counts(counts, keep_ratio))
    tokens, cells, quotas = to_device(scores.device, tokens, cells, quotas)
    padded = torch.cat([scores, scores.new_full((1,), -torch.inf)])
    best_first = padded[tokens].argsort(dim=1, descending=True, stable=True)
    places = best_first.argsort(dim=1)  # the inverse permutation: each token's place in its page
    return (places < quotas[:, None]).flatten()[cells]


def _slots(prompt: RankingPrompt, quotas: Sequence[int]) -> torch.Tensor:
    """Find the prompt tokens that make a sequence of the pruned length: all text, a page's first ``quota``. (L',)"""
    counts = torch.tensor(prompt.visual_counts)
    place = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(counts)  # (V,)
    stays = torch.ones_like(prompt.is_visual)
    stays[prompt.is_visual] = place < torch.tensor(quotas).repeat_interleave(counts)
    return stays.nonzero()[:, 0]


def to_device(device: torch.device, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """Send int64 tensors from the host in one copy, for which a GPU's host does not wait."""
    if device.type == "cpu":
        return list(tensors)
    packed = torch.cat([tensor.flatten() for tensor in tensors])
    if device.type == "cuda":
        packed = packed.pin_memory()
    parts = packed.to(device, non_blocking=True).split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _embed(
    model: Qwen3VLForConditionalGeneration, ids: torch.Tensor, pruning: PruningMode, device: torch.device
) -> torch.Tensor:
    """Embed each different token once: a maximum does not count repetitions. (T,) -> (at most T, D)."""
    if not len(ids):
        raise ValueError(
            f"The tokenizer finds no token in the {pruning} to compare pages with. "
            'Use pruning="prompt" or keep_ratio=1.0.'
        )
    [different] = to_device(device, ids.unique())
    return model.get_input_embeddings()(different)
