"""Page images become vision features: the only file that calls the vision tower.

A page's features depend on nothing but the page, so they are computed once for all windows it takes part in.
Letters: P visual tokens of a page, D width of the language model.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from transformers import Qwen3VLForConditionalGeneration

from llama_index_ziprerank.reranking.inputs import Grid, PagePatches

PATCHES_PER_CALL = 16_384
"""Patches that one call of the tower reads at most (five A4 pages), so that memory does not grow with the list."""


@dataclass(frozen=True, eq=False)
class PageFeatures:
    """What the language model sees of one page, on the model's device."""

    merged: torch.Tensor  # (P, D)
    deepstack: tuple[torch.Tensor, ...]  # one (P, D) for each of the first language-model layers
    grid: Grid


@torch.no_grad()
def page_features(
    model: Qwen3VLForConditionalGeneration,
    pages: Iterable[PagePatches],
    *,
    patches_per_call: int = PATCHES_PER_CALL,
) -> list[PageFeatures]:
    """Run the vision tower over pages of any sizes, a bounded number of patches at a time.

    ``pages`` may be a generator: only the pages of one call are held at once. Answers keep the given order.
    """
    return differentiable_page_features(model, pages, patches_per_call=patches_per_call)


def differentiable_page_features(
    model: Qwen3VLForConditionalGeneration,
    pages: Iterable[PagePatches],
    *,
    patches_per_call: int = PATCHES_PER_CALL,
) -> list[PageFeatures]:
    """Do the same as `page_features` for a vision tower that is being trained."""
    return [features for batch in _batches(pages, patches_per_call) for features in _features(model, batch)]


def _batches(pages: Iterable[PagePatches], patches_per_call: int) -> Iterator[list[PagePatches]]:
    """Group neighbours up to ``patches_per_call``; a larger page goes alone."""
    batch: list[PagePatches] = []
    patches = 0
    for page in pages:
        if batch and patches + len(page.pixel_values) > patches_per_call:
            yield batch
            batch, patches = [], 0
        batch.append(page)
        patches += len(page.pixel_values)
    if batch:
        yield batch


def _features(model: Qwen3VLForConditionalGeneration, batch: list[PagePatches]) -> Iterator[PageFeatures]:
    output = model.model.get_image_features(
        torch.cat([page.pixel_values for page in batch]).to(model.device),
        torch.tensor([page.grid for page in batch], device=model.device),
        return_dict=True,
    )
    for page, merged, *deepstack in zip(batch, output.pooler_output, *output.deepstack_features, strict=True):
        yield PageFeatures(merged, tuple(deepstack), page.grid)
