"""The benchmark's arithmetic (arXiv:2501.08828, section 5; its `metric_eval.py`).

Page recall@k is the part of the pages that answer which is among the first k. Layout recall@k is the area that the
first k boxes share with the boxes that answer, over the area of these; shares add up box by box and are not clipped,
so boxes inside each other can bring more than 1. Means are taken over the questions of a domain; *macro* is the mean
over domains, *micro* that over questions. The published macro has all ten domains; with fewer questions than the whole
set it is the mean over the domains that have any.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from llama_index_ziprerank.evaluation.mmdocir.annotations import DOMAINS, Box, Question

CUTOFFS = {"page": (1, 3, 5), "layout": (1, 5, 10)}
"""Level → the k of its recalls."""

Recalls = Mapping[str, Mapping[str, float]]
"""System → metric ("R@1") → value."""


@dataclass(frozen=True)
class Part:
    """A line of the table: a domain, or "macro" or "micro"."""

    name: str
    questions: int
    recalls: Recalls


def page_recalls(ranking: Sequence[int], question: Question) -> dict[str, float]:
    """Return the recall@k of a ranking of pages (numbers within the document) for one question."""
    return {f"R@{k}": _share(ranking[:k], question.pages) for k in CUTOFFS["page"]}


def layout_recalls(ranking: Sequence[Box], question: Question) -> dict[str, float]:
    """Return the recall@k by area of a ranking of boxes for one question."""
    wanted = sum((box.bbox[2] - box.bbox[0]) * (box.bbox[3] - box.bbox[1]) for box in question.layouts)
    shared = [sum(_shared_area(box, answer) for answer in question.layouts) for box in ranking]
    return {f"R@{k}": sum(shared[:k]) / wanted if wanted else 0.0 for k in CUTOFFS["layout"]}


def table(questions: Sequence[tuple[str, Recalls]]) -> list[Part]:
    """Average (domain, recalls) pairs: one part a domain, in the published order, then macro and micro."""
    of_domain: dict[str, list[Recalls]] = defaultdict(list)
    for domain, recalls in questions:
        of_domain[domain].append(recalls)
    domains = [*(name for name in DOMAINS if name in of_domain), *(name for name in of_domain if name not in DOMAINS)]
    parts = [Part(name, len(of_domain[name]), _mean(of_domain[name])) for name in domains]
    macro = Part("macro", len(questions), _mean([part.recalls for part in parts]))
    return [*parts, macro, Part("micro", len(questions), _mean([recalls for _, recalls in questions]))]


def _mean(recalls: Sequence[Recalls]) -> Recalls:
    return {
        system: {metric: fmean(one[system][metric] for one in recalls) for metric in metrics}
        for system, metrics in recalls[0].items()
    }


def _share(found: Sequence[int], wanted: Sequence[int]) -> float:
    return len(set(found) & set(wanted)) / len(wanted) if wanted else 0.0


def _shared_area(one: Box, other: Box) -> float:
    if one.page != other.page:
        return 0.0
    width = min(one.bbox[2], other.bbox[2]) - max(one.bbox[0], other.bbox[0])
    height = min(one.bbox[3], other.bbox[3]) - max(one.bbox[1], other.bbox[1])
    return max(0.0, width) * max(0.0, height)
