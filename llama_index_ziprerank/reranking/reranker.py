"""`ListwiseReranker`: a query and its candidate pages in, a `Ranking` out."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from llama_index_ziprerank.reranking.batching import Answer, Batcher, OutOfMemoryError, Steps
from llama_index_ziprerank.reranking.feature_cache import (
    DiskCost,
    FeatureCache,
    UnseenPage,
    cached_features,
    fill_cache,
)
from llama_index_ziprerank.reranking.features import PageFeatures, join_sides, prepared_ahead, stream_page_features
from llama_index_ziprerank.reranking.inputs import PagePatches, check_sides, own_side, prepare_page, unreadable_page
from llama_index_ziprerank.reranking.loading import load_model, load_processor, make_fast
from llama_index_ziprerank.reranking.options import RankingOptions
from llama_index_ziprerank.reranking.page_keys import CheckpointKey, PageFile, PageSource, checkpoint_key
from llama_index_ziprerank.reranking.pruning import PruningMode
from llama_index_ziprerank.reranking.quantization import Quantization
from llama_index_ziprerank.reranking.ranking import Ranking, ranking_steps
from llama_index_ziprerank.reranking.scoring import identifier_logits
from llama_index_ziprerank.reranking.windows import Strategy


class RerankMemoryError(RuntimeError):
    """The device has too little memory for the request; the message says what to lower."""


BATCH_TOKENS = {"cpu": 8_192, "cuda": 65_536, "mps": 16_384}
"""Tokens that one forward pass of several windows reads at most; a longer window runs alone.

A CPU is busy with one window of pages already: there, batches are for short ones.
"""


class ListwiseReranker:
    """Ranks up to 20 page images in one forward pass of a Qwen3-VL checkpoint, longer lists by several.

    Calls from several threads are safe, and run together (see `batching.py`).
    """

    def __init__(
        self,
        model: Qwen3VLForConditionalGeneration,
        processor: Qwen3VLProcessor,
        name: str = "",
        *,
        cache: FeatureCache | None = None,
        skip_blank: bool = False,
        sides: Sequence[int] | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        """Take a model that is loaded already; its modules change in place, to compute the same faster (`make_fast`).

        ``name`` is the model's own path by default; further arguments, and ValueError for sides, as `from_pretrained`.
        """
        make_fast(model, choose_attention=False)
        self.model = model.eval()
        self.processor = processor
        self.name = name or str(model.name_or_path)
        self.cache = cache
        self.skip_blank = skip_blank
        self.sides = check_sides((own_side(processor),) if sides is None else sides)
        self._turn = threading.Lock()
        self._filling = threading.Lock()
        self._batcher = Batcher(
            lambda windows: identifier_logits(self.model, windows),
            self._turn,
            batch_tokens or BATCH_TOKENS.get(model.device.type, BATCH_TOKENS["cpu"]),
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        attn_implementation: str | None = None,
        *,
        cache: FeatureCache | None = None,
        skip_blank: bool = False,
        sides: Sequence[int] | None = None,
        quantization: Quantization | None = None,
        batch_tokens: int | None = None,
    ) -> "ListwiseReranker":
        """Load a checkpoint: ``"nano"``, a folder, or a name on the Hugging Face Hub.

        Args:
            name_or_path: a Qwen3-VL checkpoint with safetensors weights; code from the Hub is never run.
            device: default: cuda, else mps, else cpu, whichever is there.
            dtype: such as ``"bfloat16"``. Default: the checkpoint's own; float32 on a CPU.
            attn_implementation: one of transformers' (``"sdpa"``, ``"flash_attention_2"``, ``"eager"``). Default:
                ``"sdpa"``; on a GPU, for the vision tower, FlashAttention 2 where it is installed.
            cache: where vision features are looked up before the tower runs, and kept after.
            skip_blank: leave blank parts of pages out of the vision tower (see `page_features`): faster, other scores.
            sides: longest side of a page in pixels, never scaled up. Default: the checkpoint's own (``page_side`` of
                its image processor; nano 1280), else 1024 as in the paper. A shorter one is faster. At several sides
                every page is read at each and the logits are averaged, at their cost together.
            quantization: smaller weights for the language model (`Quantization`); needs torchao.
            batch_tokens: tokens that one forward pass reads at most when windows or calls run together
                (`BATCH_TOKENS`).

        Raises:
            FileNotFoundError: when a folder is named that does not exist.
            ImportError: when ``quantization`` is asked for and torchao is missing.
            OSError: when the checkpoint has no weights in safetensors.
            ValueError: when the checkpoint is not a Qwen3-VL, is or holds a LoRA adapter, lacks weights, cannot be
                read, or has a tokenizer, chat template or image processor that does not fit (`load_processor`); when
                the device cannot do what ``quantization`` asks for.
        """
        name = str(name_or_path)
        model = load_model(name, device, dtype, attn_implementation, quantization)
        processor = load_processor(name)
        return cls(model, processor, name, cache=cache, skip_blank=skip_blank, sides=sides, batch_tokens=batch_tokens)

    def encode_pages(self, images: Sequence[PageSource]) -> list[PageFeatures]:
        """Run the vision tower once for pages that several queries will ask about; `rerank` takes the outcome.

        Raises:
            ValueError: for an image that the model cannot read.
            RerankMemoryError: when the device runs out of memory, with this call alone on it.
        """

        def start() -> Steps[list[PageFeatures]]:
            yield from ()  # no window
            return self._features(images)

        return self._run(start, f"{len(images)} pages", "Pass fewer at a time")

    @cached_property
    def cache_keys(self) -> tuple[CheckpointKey, ...]:
        """Name the checkpoint in a cache, at each side, by its weights at the first use of the cache."""
        return tuple(
            checkpoint_key(self.model, self.processor, skip_blank=self.skip_blank, side=side) for side in self.sides
        )

    def cache_cost(self, images: Iterable[PageSource]) -> DiskCost:
        """Return what `cache_pages` will write for these pages, from their sizes alone.

        Raises:
            ValueError: when there is no cache, and for an image that the model cannot read.
        """
        return self._cache().cost(self.cache_keys, self.processor, images)

    def cache_pages(self, images: Iterable[PageSource]) -> int:
        """Put the features of pages into the cache that it lacks; return how many these were.

        Pages are read as they are needed, so the list may be longer than memory. Calls that wait are let in between.
        Where features are kept in memory alone, since there is no folder or it cannot be written (a full disk), it ends
        with a warning when the memory's budget is full.

        Raises:
            ValueError: when there is no cache, and for an image that the model cannot read.
        """
        cache = self._cache()
        with self._filling:  # of two calls for the same pages, the second finds what the first has made
            return fill_cache(cache, self.cache_keys, images, self._look_by_turns)

    def rerank(
        self,
        query: str,
        images: Sequence[PageSource | PageFeatures],
        keep_ratio: float | None = None,
        pruning: PruningMode | None = None,
        window: int = 20,
        stride: int = 10,
        *,
        strategy: Strategy = "sliding",
        permutations: int = 1,
        first_stage_scores: Sequence[float | None] | None = None,
        first_stage_weight: float | None = None,
        cancelled: threading.Event | None = None,
    ) -> Ranking:
        """Rank page images, or what `encode_pages` made of them, by their relevance to ``query``.

        Args:
            query: the question, in the user's words.
            images: the candidate pages, best guess first. Pages that are asked about again and again may be given as
                features: the vision tower then stays out of the query. So it does for images that the cache knows; as
                `PageFile` these are not even decoded.
            keep_ratio: part of each page's visual tokens that the language model reads, above 0 and at most 1. Default,
                as for ``pruning`` and ``first_stage_weight``: what the checkpoint's config says under this name (nano
                0.16), else 1, all of them.
            pruning: what visual tokens are compared with when some are dropped (`PruningMode`; nano ``"query"``, else
                ``"prompt"`` as in the paper).
            window: pages in one forward pass, 2 to 20.
            stride: pages by which the window moves towards the front of a longer list, below ``window``; top-down,
                the rank in the first window that the other pages have to beat.
            strategy: how a list longer than ``window`` is ranked (`Strategy`). The default is what the paper measured;
                ``"parallel"`` orders as well in fewer sequential steps.
            permutations: orders in which each window is read; logits are averaged, at so many times the cost. For
                models that favour a place without reason; nano takes the given order for a hint, and gets worse.
            first_stage_scores: what the first stage says of each page, higher is better; None where it says nothing.
            first_stage_weight: how much that counts beside the logits (`fusion`): 0 the model alone (as in the
                paper), 1 both the same; nano 0.5.
            cancelled: set it, from another thread, to give the call up.

        Raises:
            ValueError: for an empty list, a blank query, scores that are not one a page, or an option (or a weight in
                the checkpoint's config) out of its bounds.
            RerankMemoryError: when the device runs out of memory, with this call alone on it.
            concurrent.futures.CancelledError: once ``cancelled`` is set.
        """
        options = self.options(
            keep_ratio=keep_ratio,
            pruning=pruning,
            window=window,
            stride=stride,
            strategy=strategy,
            permutations=permutations,
            first_stage_weight=first_stage_weight,
        )
        scores = [None] * len(images) if first_stage_scores is None else first_stage_scores
        first_stage = [None if score is None else float(score) for score in scores]
        if not len(images):
            raise ValueError("There is no page to rank: `images` is empty. Pass at least one.")
        if not query.strip():
            raise ValueError(f"Pages are ranked by a query, got a blank one: {query!r}. Pass the question as text.")
        if len(first_stage) != len(images):
            raise ValueError(f"first_stage_scores are one a page, got {len(first_stage)} for {len(images)} pages.")

        def start() -> Steps[Ranking]:
            return ranking_steps(self.model, self.processor, query, self._features(images), options, first_stage)

        request = f"{len(images)} pages, {window} in a window, keep_ratio {options.keep_ratio:g}"
        return self._run(start, request, "Lower keep_ratio or window", cancelled)

    def options(self, **asked: Any) -> RankingOptions:
        """Decide the options of `rerank`: as asked for by name, else the checkpoint's own, else the default."""
        return RankingOptions.decide(self.model.config, **asked)

    def _run(
        self, start: Callable[[], Steps[Answer]], request: str, advice: str, cancelled: threading.Event | None = None
    ) -> Answer:
        try:
            return self._batcher.run(start, cancelled)
        except OutOfMemoryError as error:
            reason = str(error)
        raise RerankMemoryError(  # outside the handler, so that no traceback keeps the tensors alive
            f"Out of memory on {self.model.device} ({self.model.dtype}) with {request}. {advice}, or load with "
            f"dtype='bfloat16'. The device said: {reason}"
        )

    def _features(self, pages: Sequence[PageSource | PageFeatures]) -> list[PageFeatures]:
        unseen = [(i, page) for i, page in enumerate(pages) if not isinstance(page, PageFeatures)]
        if self.cache is None:
            fresh: Iterator[PageFeatures] = map(join_sides, self._look((i, page, self.sides) for i, page in unseen))
        else:
            fresh = iter(cached_features(self.cache, self.cache_keys, unseen, self._look))
        return [page if isinstance(page, PageFeatures) else next(fresh) for page in pages]

    def _look(self, pages: Iterable[UnseenPage]) -> Iterator[list[PageFeatures]]:
        """Run the vision tower over pages, each at its sides."""
        counts: deque[int] = deque()

        def ready() -> Iterator[UnseenPage]:
            for i, page, sides in pages:
                counts.append(len(sides))
                if isinstance(page, Image.Image):
                    page.load()  # one picture given twice must not be read by two threads
                yield i, page, sides

        patches = chain.from_iterable(prepared_ahead(self._prepare, ready()))
        features = stream_page_features(self.model, patches, skip_blank=self.skip_blank)
        for first in features:
            yield [first, *islice(features, counts.popleft() - 1)]

    def _look_by_turns(self, pages: Iterable[UnseenPage]) -> Iterator[list[PageFeatures]]:
        """Do the same for a list of any length, leaving the model to calls that wait between two pages."""
        features = self._look(pages)
        while True:
            with self._turn:
                page = next(features, None)
            if page is None:
                return
            yield page

    def _prepare(self, unseen: UnseenPage) -> list[PagePatches]:
        i, source, sides = unseen
        image = source.image() if isinstance(source, PageFile) else source
        try:
            return [prepare_page(self.processor, image, side) for side in sides]
        except ValueError as error:
            raise unreadable_page(i, image.size, error) from error

    def _cache(self) -> FeatureCache:
        if self.cache is None:
            raise ValueError("This reranker has no cache. Load it with cache=FeatureCache(folder).")
        return self.cache
