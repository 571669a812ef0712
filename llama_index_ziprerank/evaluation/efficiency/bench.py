"""One run of the benchmark: every method on the same pages and weights, in rounds, so that all meet the same machine.

Each method runs once to warm up, with its arithmetic counted; then rounds of one run each are timed, the first of them
right behind the warming up. Medians count. A method that takes long is timed in fewer rounds. What has been measured is
handed out after every run, so a benchmark that is stopped early has shown something.
"""

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import inf
from statistics import median
from time import perf_counter, sleep

import torch
import transformers
from PIL import Image
from transformers import Qwen3VLForConditionalGeneration

from llama_index_ziprerank.evaluation.efficiency.comparing import changes, differences
from llama_index_ziprerank.evaluation.efficiency.configurations import (
    as_transformers_has_it,
    load_reranker,
    quantized,
)
from llama_index_ziprerank.evaluation.efficiency.measuring import (
    STAGES,
    count_flops,
    listening,
    matmul_peak,
    memory_kind,
    others_at_work,
    peak_memory,
    weight_bytes,
)
from llama_index_ziprerank.evaluation.efficiency.methods import Method, reranker_of, run
from llama_index_ziprerank.evaluation.efficiency.report import Change, Environment, Report, Row
from llama_index_ziprerank.evaluation.efficiency.settings import Settings
from llama_index_ziprerank.evaluation.efficiency.subjects import Subject, page_images, questions
from llama_index_ziprerank.evaluation.tracking import Track, silently
from llama_index_ziprerank.reranking import ListwiseReranker, RerankMemoryError
from llama_index_ziprerank.reranking.batching import is_out_of_memory

QUIET = 0.05
"""Part of the CPU time that other programs may take during a run that counts."""

PATIENCE = 4.0  # seconds before a disturbed run is made again


@dataclass
class _Case:
    """A method that did not run out of memory, and what its runs have shown so far."""

    method: Method
    flops: int
    logits: torch.Tensor | None
    """Of the first question, (N,)."""
    times: list[dict[str, float]] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    tokens: int = 0
    rise: int = 0

    @property
    def seconds(self) -> float:
        """What the first timed run took."""
        return sum(self.times[0].values()) / 1000

    def run(self, subject: Subject, attempts: int) -> None:
        """Run once more; a run that other programs disturbed is thrown away and made again, a few times."""
        models = subject.models
        for left in reversed(range(attempts)):
            with peak_memory(models[0].device) as memory, others_at_work() as others, listening(models) as watch:
                run(self.method, subject)
            if others.share <= QUIET or not left:
                break
            sleep(PATIENCE)
        self.times.append(watch.milliseconds())
        self.others.append(others.share)
        self.tokens, self.rise = watch.tokens, max(self.rise, memory.rise)

    def row(self, subject: Subject) -> Row:
        batch = self.method.batch
        totals = [sum(times.values()) / batch for times in self.times]
        weights = weight_bytes(reranker_of(self.method, subject).model)
        return Row(
            method=self.method,
            pages=len(subject.images),
            size=subject.images[0].size,
            milliseconds={stage: median(times[stage] for times in self.times) / batch for stage in STAGES},
            total=median(totals),
            fastest=min(totals),
            slowest=max(totals),
            others=max(self.others),
            tokens=self.tokens // batch,
            peak_bytes=weights + self.rise + (subject.feature_bytes if self.method.warm else 0),
            flops=self.flops,
            rounds=len(self.times),
        )


@dataclass(frozen=True)
class Outcome:
    """What one list of pages has shown; the fields mean what they do in `Report`."""

    rows: list[Row]
    differences: tuple[float | None, float | None]
    """`Report.difference` and `Report.spread`."""
    changes: list[Change]
    out_of_memory: list[str]
    matmul_peak: float
    """The best that was seen between the rounds, so that a disturbance does not pass for the machine's speed."""


def bench(settings: Settings, track: Track = silently) -> Iterator[Report]:
    """Run the benchmark: yields what is known after every run that was timed; the last report is the whole one.

    Raises:
        ValueError: for a dtype that is none, for a device or precision that cannot do the quantization, and what
            loading a checkpoint raises.
        RerankMemoryError: when no method of the table has enough memory.
    """
    deadline = inf if settings.limit is None else perf_counter() + settings.limit
    reranker = load_reranker(settings.model, settings.device, settings.dtype, seed=settings.seed)
    settings = settings.on(reranker.model.device.type)
    twin = as_transformers_has_it(reranker.model)
    smaller = None if settings.quantization is None else quantized(reranker, settings.quantization)
    finished: list[Outcome] = []
    for methods, pages, size in settings.lists:
        if finished and perf_counter() > deadline:
            break
        subject = _subject(reranker, twin, smaller, methods, page_images(pages, size, settings.seed))
        for outcome in measure(methods, subject, settings, track, deadline):
            yield _report(settings, reranker.model, [*finished, outcome])
        finished.append(outcome)


def _report(settings: Settings, model: Qwen3VLForConditionalGeneration, outcomes: Sequence[Outcome]) -> Report:
    table, *curves = outcomes
    if not table.rows:
        raise RerankMemoryError(f"Out of memory with every method on {model.device}. Measure fewer pages.")
    return Report(
        settings,
        _environment(model, max(outcome.matmul_peak for outcome in outcomes)),
        rows=table.rows,
        points=[row for outcome in curves for row in outcome.rows],
        difference=table.differences[0],
        spread=table.differences[1],
        out_of_memory=[label for outcome in outcomes for label in outcome.out_of_memory],
        changes=table.changes,
    )


def _subject(
    reranker: ListwiseReranker,
    twin: Qwen3VLForConditionalGeneration,
    smaller: ListwiseReranker | None,
    methods: Sequence[Method],
    images: Sequence[Image.Image],
) -> Subject:
    features = reranker.encode_pages(images) if any(method.warm for method in methods) else []
    queries = questions(max(method.batch for method in methods))
    return Subject(reranker, twin, images, features, queries, smaller)


def measure(
    methods: Sequence[Method], subject: Subject, settings: Settings, track: Track, deadline: float = inf
) -> Iterator[Outcome]:
    """Measure methods on one list of pages: yields what is known after every run that was timed, at least once.

    Methods that are out of memory are noted, and the others go on. Once `perf_counter` is past ``deadline`` nothing
    begins, except that one method is measured in any case.
    """
    model = subject.reranker.model
    cases: list[_Case] = []
    out_of_memory: list[str] = []
    peak = matmul_peak(model.device, model.dtype)

    def so_far() -> Outcome:
        rows, pages = [case.row(subject) for case in cases], len(subject.images)
        answers = {case.method: case.logits for case in cases if case.logits is not None}
        return Outcome(rows, differences(answers, pages), changes(answers, pages), list(out_of_memory), peak)

    for method in track(methods, f"Warming up, {subject.name}", len(methods)):
        if cases and perf_counter() > deadline:
            break
        with _noting(out_of_memory, f"{method.label} ({subject.name})"):
            case = _warmed_up(method, subject, cases)
            case.run(subject, settings.attempts)
            cases.append(case)
        peak = max(peak, matmul_peak(model.device, model.dtype))
        if cases:
            yield so_far()
    rounds = [
        case for number in range(2, settings.repeats + 1) for case in cases if number * case.seconds <= settings.seconds
    ]
    for case in track(rounds, f"Measuring, {subject.name}", len(rounds)):
        if perf_counter() > deadline:
            break
        with _noting(out_of_memory, f"{case.method.label}, timed again ({subject.name})"):
            case.run(subject, settings.attempts)
        peak = max(peak, matmul_peak(model.device, model.dtype))
        yield so_far()
    if not cases:
        yield so_far()


@contextmanager
def _noting(out_of_memory: list[str], label: str) -> Iterator[None]:
    """Note what the device has too little memory for, instead of failing."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, RerankMemoryError) or is_out_of_memory(error)):
            raise
        out_of_memory.append(label)


def _warmed_up(method: Method, subject: Subject, cases: Sequence[_Case]) -> _Case:
    """Run a method once, unless one of ``cases`` did so for another batch.

    Of a batch one question is run: the counter listens to one thread, and all questions cost the same. It cannot see
    products of quantized weights; there are as many as with the full ones.
    """
    alone = replace(method, batch=1)
    for case in cases:
        if replace(case.method, batch=1) == alone:
            return _Case(method, case.flops, case.logits)
    if method.quantization is not None:
        full = _warmed_up(replace(alone, quantization=None), subject, cases)
        [logits] = run(alone, subject)
        return _Case(method, full.flops, logits)
    flops, answers = count_flops(lambda: run(alone, subject))
    return _Case(method, flops, answers[0] if answers else None)


def _environment(model: Qwen3VLForConditionalGeneration, peak: float) -> Environment:
    device = model.device
    return Environment(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})",
        threads=torch.get_num_threads(),
        dtype=str(model.dtype).removeprefix("torch."),
        torch=torch.__version__,
        transformers=transformers.__version__,
        parameters=sum(weight.numel() for weight in model.parameters()),
        weight_bytes=weight_bytes(model),
        matmul_peak=peak,
        memory=memory_kind(device),
    )
