"""Time by stage, tokens, memory, arithmetic: what one run of a method costs.

A stopwatch listens at the vision tower, the language model and its head, so it measures the public calls themselves. On
CUDA it writes events into the stream and does not make the host wait.
"""

import ctypes
import gc
import platform
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter, process_time
from typing import Any

import psutil
import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3VLForConditionalGeneration

STAGES = ("prepare", "vision", "prune", "llm")
"""Until the tower starts (decoding, resizing, normalising, as far as the tower waits for it); the tower; until the
language model starts (prompt, pruning, joining text and pages); the language model, its head, reading the letters."""

_SAMPLING = 0.005  # seconds between two looks at the process's memory

_CAUSAL = {"flash_attention": 4, "flash_attention_for_cpu": 4, "efficient_attention": 6, "cudnn_attention": 6}
"""torch's attention kernels, and which of their arguments says that no token sees a later one."""


@dataclass
class Stopwatch:
    """Notes when stages end, while a run is on."""

    device: torch.device
    tokens: int = 0
    """Tokens that the language model has read."""
    marks: list[tuple[str, Any]] = field(default_factory=list)

    def end(self, stage: str) -> None:
        """Note that a stage ends here; what has passed since the last note was its time."""
        self.marks.append((stage, self._now()))

    def milliseconds(self) -> dict[str, float]:
        """Return the time of each stage."""
        times = dict.fromkeys(STAGES, 0.0)
        for (_, before), (stage, after) in zip(self.marks, self.marks[1:], strict=False):
            times[stage] += before.elapsed_time(after) if self.device.type == "cuda" else 1000 * (after - before)
        return times

    def _now(self) -> Any:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event
        synchronize(self.device)
        return perf_counter()


@contextmanager
def listening(models: Sequence[Qwen3VLForConditionalGeneration]) -> Iterator[Stopwatch]:
    """Take the time of what models do inside the block."""
    watch = Stopwatch(models[0].device)

    def starts_reading(module: Any, given: Any, named: dict[str, Any]) -> None:
        batch, length, _ = named["inputs_embeds"].shape
        watch.tokens += batch * length
        watch.end("prune" if length > 1 else "llm")  # a single token is one that is being written

    hooks = []
    for model in models:
        hooks += [
            model.model.visual.register_forward_pre_hook(lambda *_: watch.end("prepare")),
            model.model.visual.register_forward_hook(lambda *_: watch.end("vision")),
            model.model.language_model.register_forward_pre_hook(starts_reading, with_kwargs=True),
            model.model.language_model.register_forward_hook(lambda *_: watch.end("llm")),
            model.lm_head.register_forward_hook(lambda *_: watch.end("llm")),
        ]
    synchronize(watch.device)
    watch.end("prepare")
    try:
        yield watch
        synchronize(watch.device)
        watch.end("llm")
        synchronize(watch.device)
    finally:
        for hook in hooks:
            hook.remove()


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@dataclass
class PeakMemory:
    """How far memory rose at most, in bytes."""

    rise: int = 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Measure how far memory rises above its present level inside the block.

    On CUDA what torch has allocated, exactly; elsewhere the process's resident memory, sampled every 5 ms.
    """
    gc.collect()
    peak = PeakMemory()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.rise = torch.cuda.max_memory_allocated(device) - before
        return
    give_memory_back()
    process, finished = psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def sample() -> None:
        while not finished.wait(_SAMPLING):
            peak.rise = max(peak.rise, process.memory_info().rss - before)

    sampler = threading.Thread(target=sample, name="memory", daemon=True)
    sampler.start()
    try:
        yield peak
    finally:
        finished.set()
        sampler.join()


@dataclass
class Others:
    """What other programs did meanwhile."""

    share: float = 0.0
    """Part of the CPU time of all cores."""


@contextmanager
def others_at_work() -> Iterator[Others]:
    """Measure how much CPU time other programs take inside the block."""
    others = Others()
    started, own, busy = perf_counter(), process_time(), _busy()
    yield others
    spent = (perf_counter() - started) * (psutil.cpu_count() or 1)
    others.share = max(0.0, _busy() - busy - (process_time() - own)) / spent


def _busy() -> float:
    """Return the seconds that all cores together have worked so far."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def weight_bytes(model: nn.Module) -> int:
    """Return the memory that weights take. Quantized ones are made of several tensors and call themselves full ones."""
    return sum(map(_bytes, model.parameters()))


def _bytes(tensor: torch.Tensor) -> int:
    if not is_traceable_wrapper_subclass(tensor):
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()
    return sum(_bytes(getattr(tensor, name)) for name in names)


def memory_kind(device: torch.device) -> str:
    """Say what `peak_memory` measures."""
    return "torch's allocations" if device.type == "cuda" else "resident memory, sampled every 5 ms"


def give_memory_back() -> None:
    """Have glibc return what it keeps for later, or one run would use memory that another has been charged for."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def count_flops(work: Callable[[], Any]) -> tuple[int, Any]:
    """Run ``work`` under torch's FLOP counter; return the count and what it returned.

    Matrix products, convolutions and attention count. Causal attention counts half, as that is what must be computed.
    """
    packets = {getattr(torch.ops.aten, f"_scaled_dot_product_{name}"): place for name, place in _CAUSAL.items()}
    formulas = {packet: _attention_formula(place) for packet, place in packets.items()}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        answer = work()
    return counter.get_total_flops(), answer


def _attention_formula(causal_place: int) -> Callable[..., int]:
    formula = partial(_attention_flops, causal_place)
    vars(formula)["_get_raw"] = True  # hand over the arguments themselves rather than their shapes
    return formula


def _attention_flops(causal_place: int, *given: Any, out_val: Any = None, **named: Any) -> int:
    """Count two products for each of the query's heads; torch before 2.13 cannot where several share a key's."""
    query, key, value = given[:3]
    causal = named.get("is_causal", len(given) > causal_place and given[causal_place])
    products = 2 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
    return products // (2 if causal else 1)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measure how many FLOP a second a large square matrix product reaches: the best of four."""
    size = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(4):
        synchronize(device)
        start = perf_counter()
        torch.matmul(matrix, matrix)
        synchronize(device)
        best = min(best, perf_counter() - start)
    return 2 * size**3 / best
