"""Training lists become what a retriever learns from: a corpus of pages, and questions with the pages that answer them.

Pages that several lists share are one page of the corpus; equal questions are one question.
Letters: Q questions, C pages of the corpus.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from colpali_engine.data import ColPaliEngineDataset
from PIL import Image
from torch.utils.data import Dataset, Sampler

from llama_index_ziprerank.pages.images import to_rgb
from llama_index_ziprerank.training.samples import RankingSample
from llama_index_ziprerank.training.sources import PageSource, page_image, page_key


@dataclass(frozen=True)
class Question:
    """A question, and the pages of the corpus known to answer it."""

    text: str
    relevant: frozenset[int]


@dataclass(frozen=True)
class Corpus:
    """All pages of some lists, each once, and the questions about them."""

    pages: list[PageSource]  # C
    questions: list[Question]  # Q
    canvas: int
    """Pixels a side of a text that is drawn as a page."""

    def image(self, page: int) -> Image.Image:
        """Open or draw a page; PageError when it cannot be read."""
        return to_rgb(page_image(self.pages[page], self.canvas))


def collect(lists: Iterable[RankingSample], canvas: int) -> Corpus:
    """Collect pages and questions. Where a list names no positives, the teacher's favourite answers the question."""
    numbers: dict[str, int] = {}
    pages: list[PageSource] = []
    relevant: dict[str, set[int]] = {}
    for sample in lists:
        shown = []
        for source in sample.pages:
            number = numbers.setdefault(page_key(source, canvas), len(pages))
            if number == len(pages):
                pages.append(source)
            shown.append(number)
        found = sample.positives or {sample.order[0]}
        relevant.setdefault(sample.query, set()).update(shown[place] for place in found)
    return Corpus(pages, [Question(text, frozenset(found)) for text, found in relevant.items()], canvas)


class Pairs(Dataset[dict[str, Any]]):
    """Every question with each page that answers it, in the form of colpali-engine's collator."""

    def __init__(self, corpus: Corpus, negatives: Sequence[Sequence[int]] | None = None) -> None:
        """Give each question its wrong pages, as many for each, or none."""
        self.corpus, self.negatives = corpus, negatives
        self.pairs = [(q, page) for q, question in enumerate(corpus.questions) for page in sorted(question.relevant)]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        question, page = self.pairs[index]
        row = {
            ColPaliEngineDataset.QUERY_KEY: self.corpus.questions[question].text,
            ColPaliEngineDataset.POS_TARGET_KEY: self.corpus.image(page),
        }
        if self.negatives is not None:
            wrong = [self.corpus.image(number) for number in self.negatives[question]]
            row[ColPaliEngineDataset.NEG_TARGET_KEY] = wrong
        return row


class ApartSampler(Sampler[int]):
    """Shuffles pairs so that no batch holds a page that answers another of its questions, as far as that can be.

    Such a page would be learned as wrong. What fits no batch any more comes last.
    """

    def __init__(self, pairs: Pairs, batch: int, seed: int) -> None:
        """`batch` is the number of pairs that compete."""
        self.pairs, self.batch, self.seed, self.epoch = pairs, batch, seed, 0

    def __len__(self) -> int:
        return len(self.pairs)

    def set_epoch(self, epoch: int) -> None:
        """Draw another order in every epoch; the Trainer calls this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        waiting = list(range(len(self.pairs)))
        random.Random(f"{self.seed}-{self.epoch}").shuffle(waiting)
        while waiting:
            batch, waiting = self._fill(waiting)
            if len(batch) < self.batch:
                yield from [*batch, *waiting]
                return
            yield from batch

    def _fill(self, waiting: list[int]) -> tuple[list[int], list[int]]:
        """Take the first pairs that go together; return them and the others."""
        batch: list[int] = []
        later: list[int] = []
        pages: set[int] = set()
        answers: set[int] = set()
        for place, index in enumerate(waiting):
            if len(batch) == self.batch:
                return batch, later + waiting[place:]
            question, page = self.pairs.pairs[index]
            relevant = self.pairs.corpus.questions[question].relevant
            if page in answers or relevant & pages:
                later.append(index)
                continue
            batch.append(index)
            pages.add(page)
            answers |= relevant
        return batch, later
