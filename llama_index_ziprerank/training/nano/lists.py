"""Lists for the ranker: a question that a manual answers by itself, and the pages that the first stage puts first.

The first stage has learned from these manuals and orders their pages better than those of new ones. So its scores get
noise, or the ranker would learn to trust it more than it deserves. Some of the manuals look scanned.
"""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pypdfium2 as pdfium
import torch
from colpali_engine.models import ColQwen3, ColQwen3Processor
from rich.progress import track
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor
from transformers import Qwen3VLProcessor

from llama_index_ziprerank.labels import ManualQuery, label_manual
from llama_index_ziprerank.labels.headings import read_outline
from llama_index_ziprerank.reranking.features import PageFeatures
from llama_index_ziprerank.reranking.inputs import RankingPrompt, build_ranking_prompt
from llama_index_ziprerank.training.nano.pairs import Block, SeenPage, whole_page
from llama_index_ziprerank.training.nano.retrieval import encode_blocks, encode_queries

KINDS = {"heading": 0.28, "question": 0.33, "caption": 0.12, "term": 0.27}
"""How often a question is of this kind, where a manual has it."""

MOST_ANSWERS = 6
"""An index term with more pages asks for nothing in particular."""

LEAST_PAGES = 5
"""Of a manual, or a list of them would show too few."""

_NOISE = (0.0, 0.2, 0.4)
"""Of the first stage's scores, in spreads of its first twenty."""


@dataclass(frozen=True)
class RankedList:
    """One list. N pages, in the order of the first stage."""

    prompt: RankingPrompt
    manual: int  # which one
    pages: list[int]  # N: places in the manual
    answers: list[int]  # places in the list of the pages that answer


def pack(drawn: RankedList) -> bytes:
    """Write a list as safetensors: tensors that one process hands to another take an open file each, bytes do not."""
    prompt = {name: torch.as_tensor(value) for name, value in vars(drawn.prompt).items()}
    rest = {"manual": drawn.manual, "pages": drawn.pages, "answers": drawn.answers}
    return save({**prompt, **{name: torch.tensor(value) for name, value in rest.items()}})


def unpack(packed: bytes) -> RankedList:
    """Read what `pack` wrote."""
    tensors = load(packed)
    manual, pages, answers, counts = (tensors.pop(name) for name in ("manual", "pages", "answers", "visual_counts"))
    prompt = RankingPrompt(**tensors, visual_counts=tuple(counts.tolist()))
    return RankedList(prompt, int(manual), pages.tolist(), answers.tolist())


@dataclass(frozen=True)
class ListedManual:
    """A manual whose questions the first stage has answered. Q questions, N pages."""

    queries: list[ManualQuery]  # Q
    numbers: list[int]  # N, from 1
    pages: list[PageFeatures]  # N
    scores: Tensor  # (Q, N) MaxSim

    def by_kind(self) -> dict[str, list[int]]:
        """Kind → the places of its questions."""
        found: dict[str, list[int]] = defaultdict(list)
        for place, query in enumerate(self.queries):
            found[query.kind].append(place)
        return dict(found)


def read_queries(pdf: Path) -> tuple[tuple[ManualQuery, ...], tuple[int, ...]]:
    """The questions of a manual and the pages (from 1) that compete for them."""
    document = pdfium.PdfDocument(pdf)
    texts = [page.get_textpage().get_text_range() for page in document]
    printed = [document.get_page_label(index) or str(index + 1) for index in range(len(document))]
    labelled = label_manual(read_outline(pdf), texts, printed)
    return labelled.queries, labelled.candidates


def list_manual(
    pdf: Path, seen: Sequence[SeenPage], retriever: ColQwen3, processor: ColQwen3Processor, folder: Path
) -> ListedManual:
    """Let the first stage rank the seen pages of one manual for each of its questions; `folder` keeps the scores."""
    queries, candidates = read_queries(pdf)
    blocks = {page.number + 1: whole_page(page) for page in seen if page.number + 1 in candidates}
    asked = [
        ManualQuery(query.kind, query.text, answers)
        for query in queries
        if (answers := tuple(set(query.pages) & set(blocks))) and len(query.pages) <= MOST_ANSWERS
    ]
    kept = folder / f"{pdf.stem}.safetensors"
    scores = load_file(kept)["scores"] if kept.exists() else torch.zeros(0, 0)
    if scores.shape != (len(asked), len(blocks)):
        scores = _scores(asked, list(blocks.values()), retriever, processor)
        save_file({"scores": scores}, kept.with_suffix(".partial"))
        kept.with_suffix(".partial").rename(kept)
    return ListedManual(asked, list(blocks), [block.features for block in blocks.values()], scores)


@torch.no_grad()
def _scores(
    asked: Sequence[ManualQuery], blocks: Sequence[Block], retriever: ColQwen3, processor: ColQwen3Processor
) -> Tensor:
    """MaxSim of Q questions with N pages: (Q, N), on the CPU."""
    vectors = [encode_blocks(retriever, processor, [block])[0] for block in blocks]
    questions = [encode_queries(retriever, processor, [query.text])[0] for query in asked]
    scores = [torch.stack([(question @ page.T).amax(1).sum() for page in vectors]).cpu() for question in questions]
    return torch.stack(scores) if scores else torch.zeros(0, len(blocks))


def list_manuals(
    pdfs: Sequence[Path], seen: Sequence[SeenPage], retriever: ColQwen3, processor: ColQwen3Processor, folder: Path
) -> list[ListedManual]:
    """Do that for all manuals; those without a question or with fewer than `LEAST_PAGES` pages are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    of_manual: Mapping[str, list[SeenPage]] = defaultdict(list)
    for page in seen:
        of_manual[page.words.manual].append(page)
    listed = [
        list_manual(pdf, of_manual[pdf.stem], retriever, processor, folder) for pdf in track(pdfs, "Asking manuals")
    ]
    return [manual for manual in listed if manual.queries and len(manual.pages) >= LEAST_PAGES]


class ListMaker:
    """Draws lists; manuals with many questions more often, as the square root of their number, up to 150."""

    def __init__(self, manuals: Sequence[ListedManual], processor: Qwen3VLProcessor) -> None:
        if not manuals:
            raise ValueError("No manual has both questions and enough pages; take manuals with bookmarks or an index.")
        self.manuals = list(manuals)
        self._kinds = [manual.by_kind() for manual in manuals]
        self._weights = [min(150, len(manual.queries)) ** 0.5 for manual in manuals]
        self._processor = processor

    def draw(self, size: int, rng: random.Random) -> RankedList:
        """Draw a question and its first `size` pages, all of a shorter manual.

        Where no page answers, another question is drawn, or, half of the time, a page that does comes in late.
        """
        while True:
            [which] = rng.choices(range(len(self.manuals)), self._weights)
            manual, kinds = self.manuals[which], self._kinds[which]
            size = min(size, len(manual.pages))
            [kind] = rng.choices(list(kinds), [KINDS[kind] for kind in kinds])
            place = rng.choice(kinds[kind])
            chosen = self._first(manual.scores[place], size, rng)
            answers = [index for index, number in enumerate(manual.numbers) if number in manual.queries[place].pages]
            if not set(chosen) & set(answers):
                if rng.random() < 0.5:
                    continue
                chosen[rng.randrange(size // 2, size)] = rng.choice(answers)
            text = manual.queries[place].text
            asked = text.lower() if rng.random() < 0.3 else text
            prompt = build_ranking_prompt(self._processor, asked, [manual.pages[index].grid for index in chosen])
            return RankedList(prompt, which, chosen, [at for at, index in enumerate(chosen) if index in answers])

    def features(self, drawn: RankedList) -> list[PageFeatures]:
        """What the tower sees on the pages of a list."""
        return [self.manuals[drawn.manual].pages[index] for index in drawn.pages]

    @staticmethod
    def _first(scores: Tensor, size: int, rng: random.Random) -> list[int]:
        """The places of the best pages, noise added."""
        spread = scores.topk(min(20, len(scores))).values.std()
        noise = torch.tensor([rng.gauss(0, 1) for _ in range(len(scores))])
        return (scores + rng.choice(_NOISE) * spread * noise).topk(size).indices.tolist()
