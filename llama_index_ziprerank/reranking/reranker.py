"""`ListwiseReranker`: a query and its candidate pages in, a `Ranking` out."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from PIL import Image
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from llama_index_ziprerank.reranking.features import PageFeatures, page_features
from llama_index_ziprerank.reranking.inputs import PagePatches, build_ranking_prompt, prepare_page
from llama_index_ziprerank.reranking.loading import load_model, load_processor
from llama_index_ziprerank.reranking.pruning import PruningMode, WindowInputs, check_pruning, window_inputs
from llama_index_ziprerank.reranking.scoring import identifier_logits
from llama_index_ziprerank.reranking.windows import check_window, slide


class RerankMemoryError(RuntimeError):
    """The device has too little memory for the request; the message says what to lower."""


@dataclass(frozen=True)
class Ranking:
    """The candidates of one query, ranked. ``logits``, ``scores`` and ``window_of`` are indexed by candidate."""

    order: list[int]
    """Candidates, best first."""
    logits: list[float]
    """Raw logit of each candidate's letter, in the last window that it took part in."""
    scores: list[float]
    """Softmax of the logits over that window's letters; over several windows capped, never to rise along `order`."""
    window_of: list[int]
    """Number of that window, from 0 in the order of the forward passes (the last window holds the best candidates)."""
    sequence_length: int
    """Tokens that the language model read, summed over windows."""
    visual_tokens: int
    """How many of these were visual tokens."""


class _Tally:
    """What the forward passes of one request have given so far."""

    def __init__(self, n: int) -> None:
        self.logits = [0.0] * n
        self.scores = [0.0] * n
        self.window_of = [0] * n
        self.windows = self.sequence_length = self.visual_tokens = 0

    def enter(self, candidates: Sequence[int], logits: torch.Tensor, inputs: WindowInputs) -> None:
        """Note one window's outcome; a candidate's later windows replace its earlier ones."""
        for i, logit, score in zip(candidates, logits.tolist(), logits.softmax(dim=0).tolist(), strict=True):
            self.logits[i], self.scores[i], self.window_of[i] = logit, score, self.windows
        self.windows += 1
        self.sequence_length += len(inputs.input_ids)
        self.visual_tokens += len(inputs.merged)

    def ranking(self, order: list[int]) -> Ranking:
        """Close the request; scores are capped along ``order``."""
        scores = list(self.scores)
        for better, worse in pairwise(order):
            scores[worse] = min(scores[worse], scores[better])
        return Ranking(order, self.logits, scores, self.window_of, self.sequence_length, self.visual_tokens)


class ListwiseReranker:
    """Ranks up to 20 page images in one forward pass of a Qwen3-VL checkpoint, longer lists by a sliding window.

    Calls from several threads are safe: they take turns.
    """

    def __init__(self, model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor, name: str = "") -> None:
        self.model = model.eval()
        self.processor = processor
        self.name = name or str(model.name_or_path)
        self._turn = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        attn_implementation: str | None = None,
    ) -> "ListwiseReranker":
        """Load a checkpoint: ``"nano"``, a folder, or a name on the Hugging Face Hub.

        Args:
            name_or_path: a Qwen3-VL checkpoint with safetensors weights; code from the Hub is never run.
            device: default: cuda, else mps, else cpu, whichever is there.
            dtype: such as ``"bfloat16"``. Default: the checkpoint's own; float32 on a CPU.
            attn_implementation: one of transformers' (``"sdpa"``, ``"flash_attention_2"``, ``"eager"``).

        Raises:
            FileNotFoundError: when a folder is named that does not exist.
            ValueError: when the checkpoint is not a Qwen3-VL, lacks weights, or its tokenizer lacks the identifiers.
        """
        model = load_model(name_or_path, device, dtype, attn_implementation)
        return cls(model, load_processor(name_or_path), name_or_path)

    def encode_pages(self, images: Sequence[Image.Image]) -> list[PageFeatures]:
        """Run the vision tower once for pages that several queries will ask about; `rerank` takes the outcome."""
        with self._turn:
            return page_features(self.model, self._prepared(images))

    def rerank(
        self,
        query: str,
        images: Sequence[Image.Image | PageFeatures],
        keep_ratio: float = 1.0,
        pruning: PruningMode = "prompt",
        window: int = 20,
        stride: int = 10,
    ) -> Ranking:
        """Rank page images, or what `encode_pages` made of them, by their relevance to ``query``.

        Args:
            query: the question, in the user's words.
            images: the candidate pages, best guess first; scaled down to 1024 pixels where larger. Pages that are
                asked about again and again may be given as features: the vision tower then stays out of the query.
            keep_ratio: part of each page's visual tokens that the language model reads, above 0 and at most 1.
            pruning: what visual tokens are compared with when some are dropped (`PruningMode`).
            window: pages in one forward pass, 2 to 20.
            stride: pages by which the window moves towards the front of a longer list, below ``window``.

        Raises:
            ValueError: for an empty list, a blank query, or an option out of its bounds.
            RerankMemoryError: when the device runs out of memory.
        """
        check_pruning(keep_ratio, pruning)
        check_window(window, stride)
        if not len(images):
            raise ValueError("There is no page to rank: `images` is empty. Pass at least one.")
        if not query.strip():
            raise ValueError(f"Pages are ranked by a query, got a blank one: {query!r}. Pass the question as text.")
        with self._turn:
            try:
                return self._rerank(query, images, keep_ratio, pruning, window, stride)
            except torch.OutOfMemoryError as error:
                reason = str(error)
        raise RerankMemoryError(  # outside the handler, so that no traceback keeps the tensors alive
            f"Out of memory on {self.model.device} ({self.model.dtype}) with {len(images)} pages, {window} in a "
            f"window, keep_ratio {keep_ratio}. Lower keep_ratio or window, or load with dtype='bfloat16'. "
            f"The device said: {reason}"
        )

    def _rerank(
        self,
        query: str,
        images: Sequence[Image.Image | PageFeatures],
        keep_ratio: float,
        pruning: PruningMode,
        window: int,
        stride: int,
    ) -> Ranking:
        features = self._features(images)
        tally = _Tally(len(images))

        def rank(candidates: Sequence[int]) -> list[int]:
            pages = [features[i] for i in candidates]
            prompt = build_ranking_prompt(self.processor, query, [page.grid for page in pages])
            inputs = window_inputs(self.model, prompt, pages, keep_ratio=keep_ratio, pruning=pruning)
            [logits] = identifier_logits(self.model, [inputs])
            tally.enter(candidates, logits, inputs)
            return [candidates[i] for i in logits.argsort(descending=True, stable=True).tolist()]

        return tally.ranking(slide(len(images), window, stride, rank))

    def _features(self, pages: Sequence[Image.Image | PageFeatures]) -> list[PageFeatures]:
        images = [page for page in pages if not isinstance(page, PageFeatures)]
        fresh = iter(page_features(self.model, self._prepared(images)))
        return [page if isinstance(page, PageFeatures) else next(fresh) for page in pages]

    def _prepared(self, images: Sequence[Image.Image]) -> Iterator[PagePatches]:
        for i, image in enumerate(images):
            try:
                yield prepare_page(self.processor, image)
            except ValueError as error:
                raise ValueError(
                    f"Page {i} of the given list (from 0), {image.width}x{image.height} pixels, is none that the model "
                    f"can read: {error}. Leave it out."
                ) from error
