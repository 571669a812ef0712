"""How far scores move by what makes a reranker faster: the options that are not exact, on the pages of a real manual.

The same random lists of pages are ranked with every visual token and full precision, then with one option at a time.
The questions are the manual's own (`labels`): all pages fit a question that none answers alike, and near ties swap by
any change.
"""

import importlib.util
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import mean
from time import perf_counter

import torch
from PIL import Image

from llama_index_ziprerank.evaluation.efficiency.subjects import questions
from llama_index_ziprerank.evaluation.tracking import Track, silently
from llama_index_ziprerank.labels import label_manual
from llama_index_ziprerank.labels.headings import Heading
from llama_index_ziprerank.pages.page import Page
from llama_index_ziprerank.reranking import ListwiseReranker, PageFeatures, Ranking
from llama_index_ziprerank.reranking.features import blank_tokens
from llama_index_ziprerank.reranking.inputs import prepare_page
from llama_index_ziprerank.reranking.stored_features import StoredFeatures, StoredType

_MADE_UP = 10


@dataclass(frozen=True)
class Lists:
    """What is ranked: questions, each with its pages."""

    questions: Sequence[str]
    pages: Sequence[Sequence[int]]

    @classmethod
    def draw(cls, questions: Sequence[str], pages: int, *, lists: int, length: int, seed: int = 0) -> "Lists":
        """Draw lists of different pages. ValueError when there are too few."""
        if length > pages:
            raise ValueError(f"A list of {length} pages needs as many, got {pages}. Take shorter lists: --length.")
        chosen = random.Random(seed)
        asked = [chosen.choice(list(questions)) for _ in range(lists)]
        return cls(asked, [chosen.sample(range(pages), length) for _ in range(lists)])


def questions_of(pages: Sequence[Page], outline: Sequence[Heading]) -> list[str]:
    """Return what a manual's first pages answer by its outline and captions; made-up questions where it has neither."""
    within = [heading for heading in outline if heading.page <= len(pages)]
    labelled = label_manual(within, [page.text for page in pages], [page.label for page in pages])
    return [query.text for query in labelled.queries] or questions(_MADE_UP)


@dataclass(frozen=True)
class Drift:
    """What one option has changed, over all lists."""

    option: str
    same_order: float
    """Part of the lists whose whole order is the same."""
    same_first: float
    """Part of the lists whose first page is the same."""
    kendall: float
    """Mean rank correlation: 1 the same order, 0 none in common."""
    logits: float
    """Largest change of a letter's logit, the mean change of its list taken off: that moves nothing."""
    spread: float
    """Mean distance between the best and the worst logit of a list, to compare it with."""
    seconds: float
    """Mean time of a list, the tower's share of it included where the option concerns the tower."""


@dataclass(frozen=True)
class DriftReport:
    """What was measured, options in the order of the table; the first is the exact way."""

    rows: list[Drift]
    blank: float
    """Part of all visual tokens that are blank."""


def measure_drift(
    name: str,
    images: Sequence[Image.Image],
    lists: Lists,
    *,
    device: str | None = None,
    keep_ratios: Sequence[float] = (0.5, 0.25),
    track: Track = silently,
) -> DriftReport:
    """Rank all lists the exact way and with each option. int8 weights are left out where torchao is missing."""
    reranker = ListwiseReranker.from_pretrained(name, device)
    exact, tower = _timed(lambda: reranker.encode_pages(images))
    tower *= len(lists.pages[0]) / len(images)
    rankings, seconds = _ranked(reranker, exact, lists, 1.0, track, "exact")
    rows = [_drift("exact", rankings, rankings, tower + seconds)]

    def add(
        option: str, with_option: ListwiseReranker, pages: Sequence[PageFeatures], keep: float, tower: float
    ) -> None:
        others, spent = _ranked(with_option, pages, lists, keep, track, option)
        rows.append(_drift(option, rankings, others, tower + spent))

    stored_types: list[StoredType] = ["bfloat16", "int8"]
    for stored in stored_types:
        add(f"features kept as {stored}", reranker, [_stored(page, stored) for page in exact], 1.0, tower)
    skipping = ListwiseReranker(reranker.model, reranker.processor, name, skip_blank=True)
    skipped, quick = _timed(lambda: skipping.encode_pages(images))
    add("blank parts left out", skipping, skipped, 1.0, quick * len(lists.pages[0]) / len(images))
    if importlib.util.find_spec("torchao") is not None:
        small = ListwiseReranker.from_pretrained(name, device, quantization="int8")
        add("weights as int8", small, exact, 1.0, tower)
    for keep_ratio in keep_ratios:
        add(f"keep_ratio {keep_ratio:g}", reranker, exact, keep_ratio, tower)
    return DriftReport(rows, _blank_share(reranker, images))


def _ranked(
    reranker: ListwiseReranker,
    pages: Sequence[PageFeatures],
    lists: Lists,
    keep_ratio: float,
    track: Track,
    option: str,
) -> tuple[list[Ranking], float]:
    """Return the rankings and the mean seconds of one."""
    pairs = list(zip(lists.questions, lists.pages, strict=True))
    start = perf_counter()
    rankings = [
        reranker.rerank(question, [pages[i] for i in chosen], keep_ratio)
        for question, chosen in track(pairs, option, len(pairs))
    ]
    return rankings, (perf_counter() - start) / len(pairs)


def _drift(option: str, exact: Sequence[Ranking], others: Sequence[Ranking], seconds: float) -> Drift:
    pairs = list(zip(exact, others, strict=True))
    return Drift(
        option,
        same_order=mean(a.order == b.order for a, b in pairs),
        same_first=mean(a.order[0] == b.order[0] for a, b in pairs),
        kendall=mean(kendall(a.order, b.order) for a, b in pairs),
        logits=max(_moved(a.logits, b.logits) for a, b in pairs),
        spread=mean(max(a.logits) - min(a.logits) for a in exact),
        seconds=seconds,
    )


def kendall(order: Sequence[int], other: Sequence[int]) -> float:
    """Return the rank correlation of two orders of the same candidates: -1 reversed, 1 the same."""
    places = {candidate: place for place, candidate in enumerate(other)}
    signs = [1 if places[better] < places[worse] else -1 for better, worse in combinations(order, 2)]
    return mean(signs) if signs else 1.0


def _moved(logits: Sequence[float], others: Sequence[float]) -> float:
    changes = torch.tensor(others) - torch.tensor(logits)
    return float((changes - changes.mean()).abs().max())


def _stored(page: PageFeatures, stored: StoredType) -> PageFeatures:
    return StoredFeatures.pack(page, stored).unpack(page.merged.dtype, page.merged.device)


def _blank_share(reranker: ListwiseReranker, images: Sequence[Image.Image]) -> float:
    merge = reranker.model.config.vision_config.spatial_merge_size
    return float(
        torch.cat([blank_tokens(prepare_page(reranker.processor, image), merge) for image in images]).float().mean()
    )


def _timed(work: Callable[[], list[PageFeatures]]) -> tuple[list[PageFeatures], float]:
    start = perf_counter()
    features = work()
    return features, perf_counter() - start
