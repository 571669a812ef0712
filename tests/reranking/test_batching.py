"""The queue is tried with windows whose logit is their number, and a forward pass that can be told to fail."""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama_index_ziprerank.reranking.batching import Batcher, OutOfMemoryError, fitting, is_out_of_memory


@dataclass(frozen=True)
class NumberedWindow:
    number: int
    length: int = 10

    def inputs(self) -> Any:
        if self.number < 0:
            raise ValueError(f"no window {self.number}")
        return self


@dataclass
class Model:
    """Scores windows by their number, and writes down which ones ran together."""

    most: int = 1000
    """Windows that fit the memory."""
    passes: list[list[int]] = field(default_factory=list)
    turn: Any = field(default_factory=threading.Lock)

    def __call__(self, windows: Sequence[Any]) -> list[torch.Tensor]:
        self.passes.append([window.number for window in windows])
        if any(window.number == 99 for window in windows):
            raise KeyboardInterrupt
        if any(window.number == 66 for window in windows):
            raise FloatingPointError("66 is not finite")
        if len(windows) > self.most:
            raise torch.OutOfMemoryError(f"{len(windows)} windows")
        return [torch.tensor([float(window.number)]) for window in windows]


def asking_for(*rounds: list[int], length: int = 10) -> Callable[[], Generator[Any, Any, list[float]]]:
    """A call that has some windows scored, then others, and answers with all logits."""

    def start() -> Generator[Any, Any, list[float]]:
        found: list[float] = []
        for numbers in rounds:
            logits = yield [NumberedWindow(number, length) for number in numbers]
            found += [float(scores) for scores in logits]
        return found

    return start


def at_once(batcher: Batcher, model: Model, calls: Sequence[Any]) -> list[Future[Any]]:
    """Make calls in threads of their own, the model held up until all of them wait."""
    with ThreadPoolExecutor(len(calls)) as threads:
        with model.turn:
            futures = []
            for call in calls:
                futures.append(threads.submit(batcher.run, call))
                time.sleep(0.01)
            while len(batcher._waiting) < len(calls):
                time.sleep(0.01)
    return futures


def test_calls_that_wait_together_run_together_and_get_their_own_answers() -> None:
    model = Model()
    batcher = Batcher(model, model.turn, budget=80)
    futures = at_once(batcher, model, [asking_for([i], [i + 20, i + 40]) for i in range(8)])
    assert [future.result() for future in futures] == [[i, i + 20, i + 40] for i in range(8)]
    assert len(model.passes) == 3
    assert {len(numbers) for numbers in model.passes} == {8}


def test_a_single_call_runs_in_its_own_thread() -> None:
    names: list[str] = []

    def forward(windows: Sequence[Any]) -> list[torch.Tensor]:
        names.append(threading.current_thread().name)
        return [torch.zeros(1) for _ in windows]

    Batcher(forward, threading.Lock(), budget=10).run(asking_for([1], [2]))
    assert names == [threading.current_thread().name] * 2


def test_no_forward_pass_reads_more_than_the_budget_but_for_one_long_window() -> None:
    model = Model()
    batcher = Batcher(model, model.turn, budget=35)
    assert batcher.run(asking_for([1, 2, 3, 4, 5, 6, 7])) == [1, 2, 3, 4, 5, 6, 7]
    assert model.passes == [[1, 2, 3], [4, 5, 6], [7]]
    assert batcher.run(asking_for([8, 9], length=500)) == [8, 9]
    assert model.passes[3:] == [[8], [9]]


@pytest.mark.parametrize("bad", [asking_for([1], [-1]), asking_for([1], [66]), asking_for([-1])])
def test_an_error_is_that_of_its_call_alone(bad: Any) -> None:
    model = Model()
    batcher = Batcher(model, model.turn, budget=80)
    futures = at_once(batcher, model, [asking_for([1], [2]), bad, asking_for([3], [4])])
    assert futures[0].result() == [1, 2]
    assert futures[2].result() == [3, 4]
    with pytest.raises((ValueError, FloatingPointError), match="no window -1|66 is not finite"):
        futures[1].result()
    assert batcher.run(asking_for([5])) == [5]


def test_a_step_that_fails_is_the_error_of_its_call() -> None:
    def fails() -> Generator[Any, Any, None]:
        raise RuntimeError("while looking at pages")
        yield

    model = Model()
    with pytest.raises(RuntimeError, match="while looking at pages"):
        Batcher(model, model.turn, budget=80).run(fails)


def test_a_failed_call_holds_nothing_once_its_error_is_dealt_with() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def forward(windows: Sequence[Any]) -> list[torch.Tensor]:
        states = torch.zeros(1)
        held.append(weakref.ref(states))
        raise FloatingPointError("not finite")

    gc.disable()
    try:
        with pytest.raises(FloatingPointError) as caught:
            Batcher(forward, threading.Lock(), budget=80).run(asking_for([1]))
        del caught
        assert [tensor() for tensor in held] == [None]
    finally:
        gc.enable()


def test_out_of_memory_makes_batches_smaller_and_later_ones_too() -> None:
    model = Model(most=2)
    batcher = Batcher(model, model.turn, budget=80)
    futures = at_once(batcher, model, [asking_for([i], [i + 20]) for i in range(8)])
    assert [future.result() for future in futures] == [[i, i + 20] for i in range(8)]
    assert batcher.budget == 20
    model.passes.clear()
    assert batcher.run(asking_for([1, 2, 3, 4])) == [1, 2, 3, 4]
    assert model.passes == [[1, 2], [3, 4]]


def test_a_window_too_large_alone_is_one_error_and_the_model_stays_usable() -> None:
    model = Model(most=0)
    batcher = Batcher(model, model.turn, budget=80)
    with pytest.raises(OutOfMemoryError, match="1 windows") as caught:
        batcher.run(asking_for([1]))
    assert caught.value.__context__ is None
    model.most = 5
    assert batcher.run(asking_for([1])) == [1]


def test_a_call_that_needs_all_memory_begins_again_without_the_others() -> None:
    model = Model()
    batcher = Batcher(model, model.turn, budget=80)
    starts: list[int] = []

    def greedy() -> Generator[Any, Any, str]:
        starts.append(len(batcher._running))
        if len(batcher._running) > 1:
            raise torch.OutOfMemoryError("features of other calls are in the way")
        yield [NumberedWindow(50)]
        return "alone"

    futures = at_once(batcher, model, [asking_for([1], [2]), greedy, asking_for([3], [4])])
    assert [future.result() for future in futures] == [[1, 2], "alone", [3, 4]]
    assert starts == [2, 1]


def test_a_call_given_up_is_not_run() -> None:
    model, given_up = Model(), threading.Event()
    batcher = Batcher(model, model.turn, budget=80)
    with ThreadPoolExecutor(2) as threads:
        with model.turn:
            kept = threads.submit(batcher.run, asking_for([1], [2]))
            dropped = threads.submit(batcher.run, asking_for([3]), given_up)
            while len(batcher._waiting) < 2:
                time.sleep(0.01)
            given_up.set()
    assert kept.result() == [1, 2]
    assert model.passes == [[1], [2]]
    with pytest.raises(CancelledError):
        dropped.result()


def test_an_interrupted_call_leaves_the_others_their_answers() -> None:
    model = Model()
    batcher = Batcher(model, model.turn, budget=80)
    with pytest.raises(KeyboardInterrupt):
        batcher.run(asking_for([99]))
    assert batcher.run(asking_for([1])) == [1]
    futures = at_once(batcher, model, [asking_for([1], [99]), asking_for([2], [3])])
    assert isinstance(futures[0].exception(), KeyboardInterrupt)
    assert futures[1].result() == [2, 3]


@given(st.lists(st.integers(1, 60), max_size=12), st.integers(1, 200))
def test_windows_of_one_pass_fit_the_budget_and_are_of_similar_length(lengths: list[int], budget: int) -> None:
    chosen = fitting(lengths, budget)
    assert chosen[:1] == ([0] if lengths else [])
    assert chosen == sorted(set(chosen))
    together = [lengths[i] for i in chosen]
    assert len(together) <= 1 or max(together) * len(together) <= budget
    assert not together or min(together) >= 0.8 * max(together)


def test_lack_of_memory_is_known_on_every_device() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA"))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (allocated: 9 GiB)"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="got a budget of 0"):
        Batcher(Model(), threading.Lock(), budget=0)


def test_a_long_list_does_not_hold_a_short_one_up_until_its_own_end() -> None:
    model = Model()
    batcher = Batcher(model, model.turn, budget=80)
    long, short = asking_for(*([i] for i in range(9)), length=50), asking_for([20], [21])
    futures = at_once(batcher, model, [long, short])
    assert [future.result() for future in futures] == [list(range(9)), [20, 21]]
    assert model.passes[:4] == [[0], [20], [1], [21]]
