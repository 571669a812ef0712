"""How well a reranker orders the first stage's candidates of the held-out questions."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from llama_index_ziprerank.pages.images import open_image
from llama_index_ziprerank.reranking import ListwiseReranker
from llama_index_ziprerank.reranking.features import PageFeatures
from llama_index_ziprerank.training.cache import FeatureCache, moved
from llama_index_ziprerank.training.finetune.documents import Track
from llama_index_ziprerank.training.finetune.first_stage import Ranked
from llama_index_ziprerank.training.finetune.questions import Asked
from llama_index_ziprerank.training.metrics import METRICS, measure_order
from llama_index_ziprerank.training.recipes import Stage2

TOP_K = 20  # pages of the first stage that are reranked, one window; the others keep their places behind them
FEATURES = 4_000_000_000  # bytes of the host's memory for features of pages that other questions ask about too

Figures = dict[str, dict[str, float]]
"""Metrics of each question, by its id."""


def measure(questions: Sequence[Asked], orders: Mapping[str, Sequence[int]]) -> Figures:
    """Return recall and nDCG of the pages found for each question, of all pages of its document."""
    return {question.id: measure_order(orders[question.id], question.pages) for question in questions}


def means(figures: Figures) -> dict[str, float]:
    """Average each metric over the questions."""
    return {metric: sum(values[metric] for values in figures.values()) / len(figures) for metric in METRICS}


def rerank(
    model: str,
    questions: Sequence[Asked],
    rankings: Mapping[str, Ranked],
    image: Callable[[str], Image.Image],
    recipe: Stage2,
    cache: FeatureCache,
    track: Track,
) -> dict[str, list[int]]:
    """Return the order of all pages after `model` has reranked the first `TOP_K`, for each question.

    Visual tokens are pruned as in training, and the first stage's scores count as the checkpoint says. `cache` holds
    the features of the model's own vision tower.
    """
    reranker = ListwiseReranker.from_pretrained(model)
    orders = {}
    for question in track(questions, f"measuring {Path(model).name}", len(questions)):
        first = [page for page, _ in rankings[question.id]]
        features = _features(reranker, _names(question, first), cache, image)
        scores = [score for _, score in rankings[question.id][:TOP_K]]
        ranking = reranker.rerank(question.text, features, recipe.keep_ratio, recipe.pruning, first_stage_scores=scores)
        orders[question.id] = [first[place] for place in ranking.order] + first[TOP_K:]
    return orders


def question_seconds(
    question: Asked,
    rankings: Mapping[str, Ranked],
    image: Callable[[str], Image.Image],
    recipe: Stage2,
    cache: FeatureCache,
) -> tuple[float, float]:
    """Time, with the model that training begins with, the vision tower on one page, and the question's reranking."""
    reranker = ListwiseReranker.from_pretrained(recipe.model)
    names = _names(question, [page for page, _ in rankings[question.id]])
    started = time.perf_counter()
    features = _features(reranker, names, cache, image)
    looked = time.perf_counter()
    reranker.rerank(question.text, features, recipe.keep_ratio, recipe.pruning)
    return (looked - started) / len(names), time.perf_counter() - looked


def _names(question: Asked, ranked: Sequence[int]) -> list[str]:
    return [question.document.page_id(page) for page in ranked[:TOP_K]]


def _features(
    reranker: ListwiseReranker, names: Sequence[str], cache: FeatureCache, image: Callable[[str], Image.Image]
) -> list[PageFeatures]:
    found: list[PageFeatures] = []
    for name in names:
        features = cache.get(name)
        if features is None:
            [features] = reranker.encode_pages([image(name)])
            cache.put(name, features)
        found.append(moved(features, reranker.model.device))
    return found


def page_opener(folder: Path) -> Callable[[str], Image.Image]:
    """Return what opens a page's image by the page's id."""
    return lambda name: open_image(folder / f"{name}.png")
