"""One call of the reranker, as steps: which windows are read, and what their logits make of the list.

Pure but for the model that a window's tensors are made with; `batching.py` runs the windows.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from llama_index_ziprerank.reranking.batching import Steps
from llama_index_ziprerank.reranking.features import PageFeatures
from llama_index_ziprerank.reranking.fusion import fuse, standardised
from llama_index_ziprerank.reranking.inputs import RankingPrompt, build_ranking_prompt
from llama_index_ziprerank.reranking.options import RankingOptions
from llama_index_ziprerank.reranking.pruning import PruningMode, WindowInputs, kept_counts, window_inputs
from llama_index_ziprerank.reranking.windows import mean_logits, plan_windows, seeded_permutations


@dataclass(frozen=True)
class Ranking:
    """The candidates of one query, ranked. ``logits``, ``scores`` and ``window_of`` are indexed by candidate."""

    order: list[int]
    """Candidates, best first."""
    logits: list[float]
    """Raw logit of each candidate's letter, in the last window that it took part in; the mean over orders and sides."""
    scores: list[float]
    """Softmax of the logits over that window's letters, with the first stage's part in them (`fusion`) where it has a
    weight; over several windows capped, never to rise along `order`."""
    window_of: list[int]
    """Number of that window, from 0 in the order of the forward passes (sliding: the last window holds the best)."""
    sequence_length: int
    """Tokens that the language model read, summed over windows, their orders and sides."""
    visual_tokens: int
    """How many of these were visual tokens."""
    steps: int = 1
    """Forward passes one after another; the windows of one step, in all orders and at all sides, run as one batch."""


@dataclass(frozen=True, eq=False)
class PlannedWindow:
    """A window whose tensors are not made yet; its length is known, since quotas follow from the pages' sizes."""

    model: Qwen3VLForConditionalGeneration
    prompt: RankingPrompt
    pages: list[PageFeatures]
    keep_ratio: float
    pruning: PruningMode

    @cached_property
    def visual_tokens(self) -> int:
        """Visual tokens that the language model will read."""
        return sum(kept_counts(self.prompt.visual_counts, self.keep_ratio))

    @cached_property
    def length(self) -> int:
        """Tokens that the language model will read."""
        return len(self.prompt.input_ids) - sum(self.prompt.visual_counts) + self.visual_tokens

    def inputs(self) -> WindowInputs:
        """Prune, and make the tensors."""
        return window_inputs(self.model, self.prompt, self.pages, keep_ratio=self.keep_ratio, pruning=self.pruning)


def ranking_steps(
    model: Qwen3VLForConditionalGeneration,
    processor: Qwen3VLProcessor,
    query: str,
    features: Sequence[PageFeatures],
    options: RankingOptions,
    first_stage: Sequence[float | None],
) -> Steps[Ranking]:
    """Rank pages: yields the windows of each step, is sent their logits, returns the ranking."""
    opinion = standardised(first_stage)
    sides = _sides(model, features)

    def planned(candidates: Sequence[int], side: int) -> PlannedWindow:
        pages = [features[i].sides[side] for i in candidates]
        prompt = build_ranking_prompt(processor, query, [page.grid for page in pages])
        return PlannedWindow(model, prompt, pages, options.keep_ratio, options.pruning)

    def read(spans: Sequence[Sequence[int]]) -> Generator[list[PlannedWindow], list[torch.Tensor], list[list[float]]]:
        """Have each window read at its sides and in its orders; return mean logits, the first stage's part in them."""
        orders = [seeded_permutations(len(span), options.permutations) * sides for span in spans]
        windows = [
            [planned([span[j] for j in order], k // options.permutations) for k, order in enumerate(several)]
            for span, several in zip(spans, orders, strict=True)
        ]
        answers = iter((yield [window for several in windows for window in several]))
        means = [mean_logits(several, [next(answers).tolist() for _ in several]) for several in orders]
        fused = [
            fuse(mean, [opinion[i] for i in span], options.first_stage_weight)
            for span, mean in zip(spans, means, strict=True)
        ]
        for span, mean, moved, several in zip(spans, means, fused, windows, strict=True):
            tally.enter(span, mean, moved, several)
        tally.steps += 1
        return fused

    tally = _Tally(len(features))
    plan = plan_windows(len(features), options.window, options.stride, options.strategy)
    logits: list[list[float]] | None = None  # what starts a generator
    while True:
        try:
            spans = plan.send(logits)  # type: ignore[arg-type]
        except StopIteration as end:
            return tally.ranking(end.value)
        logits = yield from read(spans)


def _sides(model: Qwen3VLForConditionalGeneration, features: Sequence[PageFeatures]) -> int:
    """Return at how many sides every page was encoded; ValueError for features that ``model`` cannot read."""
    width = model.get_input_embeddings().weight.shape[1]
    for place, page in enumerate(features):
        if (found := page.merged.shape[1]) != width:
            raise ValueError(
                f"The features of page {place} of the given list (from 0) are {found} numbers wide, this model reads "
                f"{width}: another reranker made them. Have this one encode the page."
            )
    counts = {len(page.sides) for page in features}
    if len(counts) > 1:
        raise ValueError(
            f"Pages were encoded at {sorted(counts)} sides, which one list cannot have. Have one reranker encode them."
        )
    return counts.pop()


class _Tally:
    """What the forward passes of one request have given so far."""

    def __init__(self, n: int) -> None:
        self.logits = [0.0] * n
        self.scores = [0.0] * n
        self.window_of = [0] * n
        self.windows = self.sequence_length = self.visual_tokens = self.steps = 0

    def enter(
        self,
        candidates: Sequence[int],
        logits: Sequence[float],
        fused: Sequence[float],
        read: Sequence[PlannedWindow],
    ) -> None:
        """Note one window's outcome; a candidate's later windows replace its earlier ones."""
        scores = torch.tensor(fused, dtype=torch.float64).softmax(dim=0).tolist()
        for i, logit, score in zip(candidates, logits, scores, strict=True):
            self.logits[i], self.scores[i], self.window_of[i] = logit, score, self.windows
        self.windows += 1
        self.sequence_length += sum(window.length for window in read)
        self.visual_tokens += sum(window.visual_tokens for window in read)

    def ranking(self, order: list[int]) -> Ranking:
        """Close the request; scores are capped along ``order``."""
        scores = list(self.scores)
        for better, worse in pairwise(order):
            scores[worse] = min(scores[worse], scores[better])
        return Ranking(order, self.logits, scores, self.window_of, self.sequence_length, self.visual_tokens, self.steps)
