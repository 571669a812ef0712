"""Samples become training rows: the prompt that inference would read, followed by the answer to be learned.

Everything up to the read position comes from the reranking room, as in `build_ranking_inputs`, so it cannot differ.
Runs in the workers of a data loader; features and pruning need the model and come later (see `forward`).
Letters: N candidates, T target tokens.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, Qwen3VLProcessor

from llama_index_ziprerank.reranking.features import PageFeatures
from llama_index_ziprerank.reranking.inputs import (
    ANSWER_OPENING,
    PagePatches,
    RankingPrompt,
    build_ranking_prompt,
    prepare_page,
)
from llama_index_ziprerank.reranking.permutation import format_permutation
from llama_index_ziprerank.training.cache import FeatureCache
from llama_index_ziprerank.training.samples import RankingSample, shuffle_candidates, target_order
from llama_index_ziprerank.training.sources import PageSource, page_image, page_key

CANVAS = 280
"""Pixels a side of a text that is drawn as a page, as in stage 1."""


@dataclass(frozen=True, eq=False)
class TrainingPage:
    """A candidate page, not yet seen by the vision tower unless the cache knew it."""

    key: str
    content: PagePatches | PageFeatures


@dataclass(frozen=True, eq=False)
class TrainingRow:
    """One list, ready for the model."""

    prompt: RankingPrompt
    pages: list[TrainingPage]  # N
    target_ids: torch.Tensor  # (T,) int64, what follows the read position; ends with the end of the turn
    order: list[int]  # the teacher's
    positives: frozenset[int]


class TrainingRows(list[TrainingRow]):
    """A batch. It goes from one process to another as bytes: of tensors each would take an open file, of which many
    systems allow a process but 1,024, and a loader that wants more waits for ever.
    """

    def __reduce__(self) -> tuple[Callable[[bytes], "TrainingRows"], tuple[bytes]]:
        content = io.BytesIO()
        torch.save(list(self), content)
        return _loaded, (content.getvalue(),)


_KINDS: tuple[Callable[..., Any], ...] = (
    TrainingRow,
    TrainingPage,
    RankingPrompt,
    PagePatches,
    PageFeatures,
    frozenset,
)


def _loaded(content: bytes) -> TrainingRows:
    with torch.serialization.safe_globals([*_KINDS]):
        return TrainingRows(torch.load(io.BytesIO(content), weights_only=True))


class RankingCollator:
    """Makes rows of samples, one at a time or as a batch.

    Args:
        processor: the checkpoint's.
        canvas: pixels a side of a text that is drawn as a page.
        shuffle_seed: shows candidates in an order drawn from this seed, the epoch and the query; None keeps theirs.
        cache: features that need not be computed again; their pages are not even opened.
    """

    def __init__(
        self,
        processor: Qwen3VLProcessor,
        *,
        canvas: int = CANVAS,
        shuffle_seed: int | None = None,
        cache: FeatureCache | None = None,
    ) -> None:
        self.processor, self.canvas, self.shuffle_seed = processor, canvas, shuffle_seed
        self.cache = FeatureCache(0) if cache is None else cache
        self.epoch = 0

    def __call__(self, samples: Sequence[RankingSample]) -> dict[str, TrainingRows]:
        """Make a batch, in the form that transformers' Trainer passes on."""
        shuffled = self.shuffle_seed is not None
        rows = (
            self.row(shuffle_candidates(sample, f"{self.shuffle_seed}-{self.epoch}") if shuffled else sample)
            for sample in samples
        )
        return {"rows": TrainingRows(rows)}

    def row(self, sample: RankingSample) -> TrainingRow:
        """Make one row, its candidates as they stand.

        Raises:
            ValueError: for more than 20 candidates, or a tokenizer that cannot spell the answer.
            PageError: when a page cannot be read.
        """
        pages = [self._page(source) for source in sample.pages]
        prompt = build_ranking_prompt(self.processor, sample.query, [page.content.grid for page in pages])
        target = target_order(sample.order, sample.positives)
        return TrainingRow(
            prompt=prompt,
            pages=pages,
            target_ids=target_ids(self.processor.tokenizer, target, prompt),
            order=list(sample.order),
            positives=sample.positives,
        )

    def _page(self, source: PageSource) -> TrainingPage:
        key = page_key(source, self.canvas)
        known = self.cache.get(key)
        return TrainingPage(key, known or prepare_page(self.processor, page_image(source, self.canvas)))


def target_ids(tokenizer: PreTrainedTokenizerBase, order: Sequence[int], prompt: RankingPrompt) -> torch.Tensor:
    """Return the tokens that answer the prompt: ``A] > [B]`` and the end of the turn, (T,) int64.

    Raises:
        ValueError: when the answer would not begin with the letter whose logit is read, or the tokenizer has no end
            of a turn.
    """
    text = format_permutation(order).removeprefix(ANSWER_OPENING)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if ids[0] != prompt.identifier_ids[order[0]]:
        raise ValueError(
            f"The tokenizer spells the answer {text!r} with {tokenizer.convert_ids_to_tokens(ids[0])!r} first, which "
            "is not the letter that scores a page. Use the tokenizer of a ZipRerank checkpoint."
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer names no end of a turn (eos_token). Use the tokenizer of a Qwen3-VL checkpoint."
        )
    return torch.tensor([*ids, tokenizer.eos_token_id])
