"""Search a corpus with the retriever as it is now: to measure it, and to mine wrong pages that it takes for right ones.

Pages are encoded a block at a time, scored by colpali-engine, and forgotten; several processes share the work.
Letters: Q questions, C pages, K best pages that are kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder
from llama_index_ziprerank.training.retriever.pairs import Corpus

_BLOCK = 64  # pages whose vectors are held at once


@dataclass(frozen=True)
class Found:
    """What a question found, best first, and the score of its best right page."""

    pages: list[int]  # K
    scores: list[float]  # K
    right: float


def search(encoder: MultiVectorEncoder, corpus: Corpus, depth: int) -> list[Found]:
    """Return the `depth` best pages of the corpus for each of its questions, by MaxSim.

    Equal scores keep the order of the corpus. Under ``accelerate launch`` all processes call this together.
    """
    state = PartialState()
    mine = range(state.process_index, len(corpus.pages), state.num_processes)
    questions = [torch.from_numpy(vectors) for vectors in encoder.encode_queries([q.text for q in corpus.questions])]
    best = _Best.nothing(len(questions))
    for pages, block in _encoded(encoder, corpus, mine):
        scores = encoder.processor.score_multi_vector(questions, block, device=encoder.model.device).cpu()
        best = best.joined(scores.numpy(), pages, corpus, depth)
    found = best.found()
    parts = gather_object([found]) if state.num_processes > 1 else [found]
    return [_merged(parts_of_one, depth) for parts_of_one in zip(*parts, strict=True)]


def _encoded(
    encoder: MultiVectorEncoder, corpus: Corpus, pages: Sequence[int]
) -> Iterator[tuple[Sequence[int], list[torch.Tensor]]]:
    """Yield a block of pages at a time: their numbers and their vectors."""
    stream = encoder.stream_images(corpus.image(page) for page in pages)
    first = 0
    while block := [torch.from_numpy(vectors) for vectors in islice(stream, _BLOCK)]:
        yield pages[first : first + len(block)], block
        first += len(block)


@dataclass(frozen=True)
class _Best:
    """The best pages so far of all questions."""

    scores: np.ndarray  # (Q, K) float32, falling
    pages: np.ndarray  # (Q, K) int64
    right: np.ndarray  # (Q,) float32

    @classmethod
    def nothing(cls, questions: int) -> "_Best":
        empty = np.empty((questions, 0), np.float32)
        return cls(empty, empty.astype(np.int64), np.full(questions, -np.inf, np.float32))

    def joined(self, scores: np.ndarray, pages: Sequence[int], corpus: Corpus, depth: int) -> "_Best":
        """Add a block of pages: (Q, block) scores."""
        every = np.concatenate([self.scores, scores], axis=1)
        numbers = np.concatenate([self.pages, np.broadcast_to(np.array(pages), scores.shape)], axis=1)
        order = np.argsort(-every, axis=1, kind="stable")[:, :depth]
        is_right = np.array([[page in question.relevant for page in pages] for question in corpus.questions])
        right = np.maximum(self.right, np.where(is_right, scores, -np.inf).max(axis=1))
        return _Best(np.take_along_axis(every, order, 1), np.take_along_axis(numbers, order, 1), right)

    def found(self) -> list[Found]:
        rows = zip(self.pages.tolist(), self.scores.tolist(), self.right.tolist(), strict=True)
        return [Found(pages, scores, right) for pages, scores, right in rows]


def _merged(parts: Sequence[Found], depth: int) -> Found:
    """Join what the processes found in their parts of the corpus."""
    pairs = [pair for part in parts for pair in zip(part.scores, part.pages, strict=True)]
    best = sorted(pairs, key=lambda pair: (-pair[0], pair[1]))[:depth]
    return Found([page for _, page in best], [score for score, _ in best], max(part.right for part in parts))
