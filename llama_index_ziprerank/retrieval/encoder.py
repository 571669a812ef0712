"""Pages and questions → multi-vectors, by any multi-vector model of colpali-engine (ColPali, arXiv:2407.01449).

Kept vectors are those that colpali-engine's own scoring uses: one for every token with attention, so a page's vectors
include the few of its prompt ("Describe the image."), and a question's include its augmentation tokens. Padding, and
whatever else the model masks to zero, is removed.

Letters: N vectors, D width.
"""

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from math import isqrt
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from colpali_engine.compression.token_pooling import HierarchicalTokenPooler
from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llama_index_ziprerank.elementwise import use_fewer_passes
from llama_index_ziprerank.pages.questions import readable_question
from llama_index_ziprerank.retrieval.families import Family, load
from llama_index_ziprerank.retrieval.store import Vectors
from llama_index_ziprerank.vision import use_batched_attention, use_linear_patch_embedding

_PIXELS_A_BATCH = {"cuda": 16_000_000, "mps": 4_000_000, "cpu": 2_000_000}
"""A page of A4 at 150 dpi has 2.2 million pixels. A CPU gains nothing from batches; a GPU that cannot hold one
halves it."""

_SQUARE = ("ColPali", "ColGemma3")  # families that squeeze every page into one square of patches

_SAMPLE = 32  # weights of every parameter that enter the fingerprint


@dataclass(frozen=True, eq=False)
class PatchVectors:
    """A page's vectors, and which of them belong to its patches: R rows and C columns, row by row."""

    vectors: Vectors
    """(N, D) float32, never pooled."""
    is_patch: npt.NDArray[np.bool_]
    """(N,), true R * C times."""
    shape: tuple[int, int]
    """(R, C)."""


class MultiVectorEncoder:
    """A loaded retriever. Safe to share between threads: one forward pass runs at a time."""

    def __init__(
        self, name: str, family: Family, model: PreTrainedModel, processor: Any, *, pool_factor: int = 1
    ) -> None:
        """Wrap a loaded model; ``from_pretrained`` is the usual way in."""
        if pool_factor < 1:
            raise ValueError(f"pool_factor must be at least 1 (no pooling), got {pool_factor}.")
        self.name = name
        self.family = family.name
        self.model = model
        self.processor = processor
        self.pool_factor = pool_factor
        self.dim: int = model.get_submodule(family.projection).out_features
        """The width D of every vector."""
        self._lock = Lock()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        device: str | None = None,
        dtype: torch.dtype | str | None = None,
        *,
        pool_factor: int = 1,
    ) -> "MultiVectorEncoder":
        """Load a retriever from the Hugging Face Hub or a folder; see ``families.load``.

        ``device`` defaults to cuda, else mps, else cpu. ``dtype`` (a torch dtype or its name) defaults to float32 on
        cpu and to the checkpoint's own elsewhere. ``pool_factor`` > 1 merges similar vectors of a page, leaving about
        one in ``pool_factor`` (hierarchical token pooling, arXiv:2409.14683); questions are never pooled.
        """
        name = str(name_or_path)
        device = device or _best_device()
        dtype = dtype or (torch.float32 if device == "cpu" else "auto")
        family, model, processor = load(name, device, dtype)
        use_linear_patch_embedding(model)
        use_batched_attention(model)
        use_fewer_passes(model)
        return cls(name, family, model, processor, pool_factor=pool_factor)

    @cached_property
    def fingerprint(self) -> str:
        """Identify the model by samples of all its weights, so whatever its folder, and on any device.

        Two models with one fingerprint may share an index. Equal for float32 and bfloat16, which may differ from
        what a float16 cast of the same checkpoint gives.
        """
        digest = hashlib.sha256(f"{self.family} {self.dim}".encode())
        for name, weight in sorted(self.model.named_parameters()):
            sample = weight.detach().flatten()[:_SAMPLE].to(torch.bfloat16).float().cpu()
            digest.update(f"{name} {tuple(weight.shape)}".encode() + sample.numpy().tobytes())
        return digest.hexdigest()[:16]

    def encode_images(
        self,
        images: Sequence[Image.Image],
        *,
        batch_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Vectors]:
        """Return one (N, D) float32 array a page; ``progress(done, total)`` is called after every page."""
        pages: list[Vectors] = []
        for vectors in self.stream_images(images, batch_size=batch_size):
            pages.append(vectors)
            if progress is not None:
                progress(len(pages), len(images))
        return pages

    def stream_images(self, images: Iterable[Image.Image], *, batch_size: int | None = None) -> Iterator[Vectors]:
        """Yield one (N, D) float32 array a page, in order, holding a batch of images and the next one at most.

        A batch is ``batch_size`` pages, or as many as fit a budget of pixels that depends on the device.

        Raises:
            ValueError: for a ``batch_size`` below 1.
            torch.OutOfMemoryError: when a single page does not fit the device's memory.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        budget = _PIXELS_A_BATCH.get(self.model.device.type, _PIXELS_A_BATCH["cpu"])
        for batch in _batches(images, batch_size, budget):
            yield from self._encode_shrinking(batch)

    def encode_patches(self, image: Image.Image) -> PatchVectors | None:
        """Encode one page and tell its patches' vectors from those of its prompt.

        Returns:
            None for a model that cuts a page into tiles (Idefics3, ModernVBERT): its patches form no single grid.
        """
        with self._lock:
            batch = self.processor.process_images([image])
            is_patch = (batch["input_ids"][0] == self.model.config.image_token_id).numpy()
            shape = self._patch_grid(batch, int(is_patch.sum()))
            return None if shape is None else PatchVectors(_to_numpy(self._forward(batch)[0]), is_patch, shape)

    def _patch_grid(self, batch: Any, patches: int) -> tuple[int, int] | None:
        """Rows and columns: of the Qwen family from the processor, of a SigLIP tower over the whole page a square."""
        if "image_grid_thw" in batch:
            merge = self.processor.image_processor.merge_size
            _, height, width = batch["image_grid_thw"][0].tolist()
            return height // merge, width // merge
        return (isqrt(patches), isqrt(patches)) if self.family in _SQUARE else None

    def encode_queries(self, queries: Sequence[str]) -> list[Vectors]:
        """Return one (N, D) float32 array a question.

        A question is text whatever it says: special tokens in it are broken up. One of more than
        ``questions.MOST_LETTERS`` characters is cut, with a warning.

        Raises:
            ValueError: for a question without a word in it.
        """
        for query in queries:
            if not query.strip():
                raise ValueError(f"A question must contain text, got {query!r}.")
        queries = [plain_question(query, self.processor.tokenizer) for query in queries]
        with self._lock:
            # One at a time: transformers 5.23 lets PaliGemma's text attend both ways (as trained) only without padding.
            return [_to_numpy(self._forward(self.processor.process_queries([query]))[0]) for query in queries]

    def _encode_shrinking(self, images: list[Image.Image]) -> Iterator[Vectors]:
        """Encode a batch; when it exceeds the memory, its halves."""
        waiting = deque([images])
        while waiting:
            batch = waiting.popleft()
            vectors = self._try_batch(batch)
            if vectors is not None:
                yield from vectors
            elif len(batch) == 1:
                width, height = batch[0].size
                raise torch.OutOfMemoryError(
                    f"One page of {width}x{height} pixels does not fit the memory of {self.model.device} beside "
                    f"{self.name!r}. Use smaller images, a smaller model, dtype='bfloat16', or device='cpu'."
                )
            else:
                middle = len(batch) // 2
                waiting.extendleft([batch[middle:], batch[:middle]])

    def _try_batch(self, images: list[Image.Image]) -> list[Vectors] | None:
        """Encode a batch, or return None when the device's memory is too small for it."""
        try:
            with self._lock:  # the tokenizer inside the processor is no more safe to share than the model
                pages = self._forward(self.processor.process_images(images))
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            pages = None  # the batch's tensors are freed once this block, and the error with it, is left
        if pages is None:
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()
            return None
        if self.pool_factor > 1:
            pages = HierarchicalTokenPooler().pool_embeddings(pages, pool_factor=self.pool_factor)
        return [_to_numpy(page) for page in pages]

    @torch.inference_mode()
    def _forward(self, batch: Any) -> list[torch.Tensor]:
        """Run the model; return each row's vectors with the masked ones removed, (N, D) float32 on the CPU."""
        batch.pop("labels", None)  # PaliGemma's processor offers them, and its model would compute a loss
        rows = self.model(**batch.to(self.model.device)).float().cpu()  # (rows, tokens, D), zero where masked
        return [row[row.any(dim=-1)] for row in rows]


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA raises its own class; MPS and the CPU's allocator say it in words."""
    message = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in message or "allocate memory" in message


def _to_numpy(vectors: torch.Tensor) -> Vectors:
    array: Vectors = vectors.numpy()
    return array


def _batches(images: Iterable[Image.Image], batch_size: int | None, budget: int) -> Iterator[list[Image.Image]]:
    """Cut a stream into lists of ``batch_size``, or of at most ``budget`` pixels in all and at least one image."""
    stream = iter(images)
    if batch_size is not None:
        while batch := list(islice(stream, batch_size)):
            yield batch
        return
    batch, pixels = [], 0
    for image in stream:
        area = image.width * image.height
        if batch and pixels + area > budget:
            yield batch
            batch, pixels = [], 0
        batch.append(image)
        pixels += area
    if batch:
        yield batch


def plain_question(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a question as the model reads it, in training too: readable, and each special token broken up.

    ``<|image_pad|>`` becomes ``< |image_pad|>``.
    """
    special = sorted(tokenizer.all_special_tokens, key=len, reverse=True)
    pattern = "|".join(re.escape(token) for token in special if len(token) > 1)
    text = readable_question(text)
    return re.sub(pattern, lambda found: f"{found[0][0]} {found[0][1:]}", text) if pattern else text
