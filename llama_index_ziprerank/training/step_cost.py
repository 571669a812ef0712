"""What one stage 2 step costs, with vision features from the cache and with the vision tower run anew.

Both are measured in one run on the same lists, in turns. Time is that of a whole step: pages read and cut into patches,
features, forward, backward, optimiser. Memory is the peak of what the step itself allocates beyond weights and
optimiser states: CUDA's own count on a GPU, the profiler's count of the CPU allocator elsewhere.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from llama_index_ziprerank.reranking.loading import load_processor
from llama_index_ziprerank.training.cache import FeatureCache
from llama_index_ziprerank.training.collator import RankingCollator
from llama_index_ziprerank.training.losses import Objective
from llama_index_ziprerank.training.recipes import Stage2
from llama_index_ziprerank.training.samples import RankingSample
from llama_index_ziprerank.training.setup import flush_denormals, training_arguments, training_model
from llama_index_ziprerank.training.trainer import RerankTrainer


@dataclass(frozen=True)
class Cost:
    """Of one step."""

    seconds: float
    """The median over the repeats."""
    peak_bytes: int
    """Most that the step held at a time, beyond what it found."""
    cache_bytes: int
    """Features kept in the host's memory."""


def step_cost(recipe: Stage2, pages: Sequence[Image.Image], repeats: int = 3) -> dict[str, Cost]:
    """Measure steps on `recipe.batch_size` lists of these pages; nothing is written.

    Raises:
        FileNotFoundError: when the model does not exist.
        ValueError: when the device or the recipe cannot be used, or there are fewer than two pages.
    """
    flush_denormals()
    order = list(range(len(pages)))
    lists = [RankingSample(f"which page is meant ({number})?", pages, order) for number in range(recipe.batch_size)]
    caches = {"cached": FeatureCache(int(recipe.feature_cache_gb * 1e9)), "uncached": FeatureCache(0)}
    trainer = _trainer(recipe, lists)
    optimizer = trainer.create_optimizer()

    def step(cache: FeatureCache) -> None:
        trainer.collator.cache = cache
        trainer.training_step(trainer.model, trainer.collator(lists))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds: dict[str, list[float]] = {name: [] for name in caches}
    for cache in caches.values():
        step(cache)  # fills the cache, and makes the optimiser's states
    for _ in range(repeats):
        for name, cache in caches.items():
            started = time.perf_counter()
            step(cache)
            _wait()
            seconds[name].append(time.perf_counter() - started)
    return {
        name: Cost(median(seconds[name]), _peak(lambda cache=cache: step(cache)), cache.size)  # type: ignore[misc]
        for name, cache in caches.items()
    }


def step_seconds(recipe: Stage2, batch: Sequence[RankingSample]) -> float:
    """Time a forward and backward pass over one batch whose features are cached; nothing is learned or written.

    Errors are those of `step_cost`.
    """
    trainer = _trainer(recipe, batch)
    trainer.collator.cache = FeatureCache(int(recipe.feature_cache_gb * 1e9))
    seconds = 0.0
    for _ in range(2):  # the first one fills the cache
        started = time.perf_counter()
        trainer.training_step(trainer.model, trainer.collator(batch))
        _wait()
        seconds = time.perf_counter() - started
    return seconds


def _trainer(recipe: Stage2, lists: Sequence[RankingSample]) -> RerankTrainer:
    arguments = training_arguments(recipe, evaluates=False, resumes=False)
    return RerankTrainer(
        training_model(recipe),
        arguments,
        RankingCollator(load_processor(recipe.model), canvas=recipe.canvas),
        Objective(recipe.ranking_loss, recipe.ranking_weight, recipe.decay, recipe.language_model_weight),
        train_dataset=lists,  # type: ignore[arg-type] # a list is a data set that can be indexed
        keep_ratio=recipe.keep_ratio,
        pruning=recipe.pruning,
        padding_side=recipe.padding_side,
    )


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak(step: Callable[[], object]) -> int:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events: Any = profiler.profiler.kineto_results.events()  # events() has sums only
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, size in changes:
        held += size
        peak = max(peak, held)
    return peak
