"""Page images become vision features: the only file that calls the vision tower.

A page's features depend on nothing but the page, so they are computed once for all windows it takes part in.
Letters: P visual tokens of a page, V of several pages, V' the kept ones of these, D width of the language model; the
tower reads ``merge**2`` patches for each visual token.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
from transformers import Qwen3VLForConditionalGeneration

from llama_index_ziprerank.reranking.inputs import Grid, PagePatches, pixel_values
from llama_index_ziprerank.vision import run_on_part

PATCHES_PER_CALL = {"cpu": 6_144}
"""Patches that one call of the tower reads at most, so that memory does not grow with the list; `PATCHES_ELSEWHERE` on
other devices. A CPU is busy with a page already: with two A4 pages its work was a tenth less than with five, since the
host hands out less fresh memory."""

PATCHES_ELSEWHERE = 16_384
"""Five A4 pages."""

PAGES_AHEAD = 6
"""Pages prepared while the tower is at work: a little more than one call of it takes on a GPU."""

BLANK_TOLERANCE = 0.06
"""Pixels this near to the page's background count as blank: 8 of 255 steps at the usual normalisation (std 0.5)."""

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")


@dataclass(frozen=True, eq=False)
class PageFeatures:
    """What the language model sees of one page, on the model's device."""

    merged: torch.Tensor  # (P, D)
    deepstack: tuple[torch.Tensor, ...]  # one (P, D) for each of the first language-model layers
    grid: Grid
    others: tuple["PageFeatures", ...] = ()
    """What it sees of the same page at the further sides of `ListwiseReranker.sides`."""

    @property
    def sides(self) -> tuple["PageFeatures", ...]:
        """The page at every side: these features, then `others`."""
        return (self, *self.others)

    def deepstack_rows(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the deepstack features of some visual tokens: (V',) indices -> (V', D) a layer.

        Features that a cache holds on disk are read there, these rows alone.
        """
        return tuple(layer[rows] for layer in self.deepstack)


def join_sides(sides: Sequence[PageFeatures]) -> PageFeatures:
    """Join what the language model sees of one page at several sides."""
    first, *others = sides
    if not others:
        return first
    joined = copy(first)  # `replace` would read the deepstack of features that a cache holds on disk
    object.__setattr__(joined, "others", tuple(others))  # the class is frozen
    return joined


def kept_deepstack(
    pages: Sequence[PageFeatures], kept: torch.Tensor, kept_of_page: Sequence[int]
) -> tuple[torch.Tensor, ...]:
    """Join the deepstack features of the kept visual tokens of several pages: one (V', D) a layer.

    ``kept`` (V',) numbers visual tokens through all pages, ascending; ``kept_of_page`` says how many are whose.
    """
    starts = [0]
    for page in pages:
        starts.append(starts[-1] + len(page.merged))
    parts = [
        page.deepstack_rows(rows - start)
        for page, start, rows in zip(pages, starts, kept.split(list(kept_of_page)), strict=False)
    ]
    return tuple(torch.cat(layer) for layer in zip(*parts, strict=True))


@torch.no_grad()
def page_features(
    model: Qwen3VLForConditionalGeneration,
    pages: Iterable[PagePatches],
    *,
    patches_per_call: int | None = None,
    skip_blank: bool = False,
) -> list[PageFeatures]:
    """Run the vision tower over pages of any sizes, a bounded number of patches at a time.

    ``pages`` may be a generator: only the pages of one call are held at once. Answers keep the given order.

    With ``skip_blank`` the tower does not read what is blank (DocPrune, arXiv:2604.22281): of a page's visual tokens
    that show background alone, one is read and stands for the others. Faster, and other features.
    """
    return list(stream_page_features(model, pages, patches_per_call=patches_per_call, skip_blank=skip_blank))


def stream_page_features(
    model: Qwen3VLForConditionalGeneration,
    pages: Iterable[PagePatches],
    *,
    patches_per_call: int | None = None,
    skip_blank: bool = False,
) -> Iterator[PageFeatures]:
    """Do the same as `page_features` page by page, for lists whose features memory would not hold."""
    for batch in _batches(pages, patches_per_call or _budget(model)):
        with torch.no_grad():
            features = _features_without_blank(model, batch) if skip_blank else _features(model, batch)
        yield from features


def differentiable_page_features(
    model: Qwen3VLForConditionalGeneration,
    pages: Iterable[PagePatches],
    *,
    patches_per_call: int | None = None,
) -> list[PageFeatures]:
    """Do the same as `page_features` for a vision tower that is being trained."""
    return [
        features
        for batch in _batches(pages, patches_per_call or _budget(model))
        for features in _features(model, batch)
    ]


def prepared_ahead(
    prepare: Callable[[Item], Prepared], items: Iterable[Item], *, ahead: int = PAGES_AHEAD
) -> Iterator[Prepared]:
    """Map in threads, in order, at most ``ahead`` items ahead of who reads: the tower need not wait for a page.

    Decoding, resizing and normalising leave Python's lock, so they run beside the tower and beside each other.
    """
    waiting: deque[Future[Prepared]] = deque()
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1), thread_name_prefix="page") as threads:
        try:
            for item in items:
                waiting.append(threads.submit(prepare, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for page in waiting:
                page.cancel()


def blank_tokens(page: PagePatches, merge: int) -> torch.Tensor:
    """Mark the visual tokens that show nothing but the page's background, its median colour: (P,) bool."""
    pixels = page.pixels * page.factor + page.offset  # (merge**2 * P, channels, patch * patch)
    background = pixels.mean(dim=2).median(dim=0).values[:, None]  # (channels, 1)
    farthest = (pixels - background).abs().amax(dim=(1, 2))  # (merge**2 * P,)
    return farthest.view(-1, merge**2).amax(dim=1) <= BLANK_TOLERANCE


def _budget(model: Qwen3VLForConditionalGeneration) -> int:
    return PATCHES_PER_CALL.get(model.device.type, PATCHES_ELSEWHERE)


def _batches(pages: Iterable[PagePatches], patches_per_call: int) -> Iterator[list[PagePatches]]:
    """Group neighbours up to ``patches_per_call``; a larger page goes alone."""
    batch: list[PagePatches] = []
    patches = 0
    for page in pages:
        if batch and patches + len(page.pixels) > patches_per_call:
            yield batch
            batch, patches = [], 0
        batch.append(page)
        patches += len(page.pixels)
    if batch:
        yield batch


def _features(model: Qwen3VLForConditionalGeneration, batch: list[PagePatches]) -> list[PageFeatures]:
    """Run the tower once, pages of one size side by side: those attend as a batch (see `vision.py`)."""
    order = sorted(range(len(batch)), key=lambda i: batch[i].grid)
    output = model.model.get_image_features(
        pixel_values([batch[i] for i in order], model.device),
        torch.tensor([batch[i].grid for i in order], device=model.device),
        return_dict=True,
    )
    features = {
        i: PageFeatures(merged, tuple(deepstack), batch[i].grid)
        for i, merged, *deepstack in zip(order, output.pooler_output, *output.deepstack_features, strict=True)
    }
    return [features[i] for i in range(len(batch))]


def _features_without_blank(model: Qwen3VLForConditionalGeneration, batch: list[PagePatches]) -> list[PageFeatures]:
    merge = model.config.vision_config.spatial_merge_size
    reads, stand_ins = zip(*(_read_and_stand_ins(blank_tokens(page, merge)) for page in batch), strict=True)
    merged, deepstack = run_on_part(
        model.model.visual,
        pixel_values(batch, model.device),
        torch.tensor([page.grid for page in batch]),
        torch.cat(reads).repeat_interleave(merge**2),
    )
    layers = [layer.split([int(read.sum()) for read in reads]) for layer in (merged, *deepstack)]
    features = []
    for page, stand_in, (part, *parts) in zip(batch, stand_ins, zip(*layers, strict=True), strict=True):
        where = stand_in.to(part.device)
        features.append(PageFeatures(part[where], tuple(layer[where] for layer in parts), page.grid))
    return features


def _read_and_stand_ins(blank: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose what the tower reads: all that is not blank, and the first that is.

    Returns which tokens are read, (P,) bool, and for every token its place, or its stand-in's, among these, (P,) int64.
    """
    first = blank & (blank.cumsum(0) == 1)
    read = ~blank | first
    places = read.cumsum(0) - 1
    return read, torch.where(blank, places[first.int().argmax()], places)
