"""A queue in front of the model: calls that wait at the same time run together.

A call is written as steps: a generator that asks for windows to be scored and is sent their logits, until it returns
its answer. Calls come from threads. The first one that finds nobody at the model leads: it takes what is waiting,
oldest first, runs windows of similar length in one forward pass up to a budget of tokens, by turns where calls do not
fit together, and hands the lead over as soon as its own answer is there. So there is no thread to start or to stop, and
a single call runs where it was made.

Every call is answered as if it were alone. Its errors are its own. When memory runs out the batch is halved, and
later ones are smaller; a call that fails so beside others begins again without them.
"""

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import torch

from llama_index_ziprerank.reranking.pruning import WindowInputs

Answer = TypeVar("Answer")

SHORTEST_OF_LONGEST = 0.8
"""Windows run together when the shortest has at least this part of the longest's tokens: padding is work too."""


class Window(Protocol):
    """A window to be scored; its tensors are made right before the forward pass."""

    @property
    def length(self) -> int:
        """Tokens that the language model will read."""

    def inputs(self) -> WindowInputs:
        """Make the tensors. Errors are those of the call that asks for the window."""


Steps = Generator[Sequence[Window], list[torch.Tensor], Answer]
"""A call: yields the windows of its next step, is sent their logits ((N,) float32 on the CPU), returns its answer."""

Forward = Callable[[Sequence[WindowInputs]], list[torch.Tensor]]


class OutOfMemoryError(RuntimeError):
    """One window alone is too much for the device; the text is the device's."""


class _Call:
    """One call on its way: what it waits for, and what became of it."""

    def __init__(self, start: Callable[[], Steps[Any]], cancelled: threading.Event | None) -> None:
        self.start = start
        self.cancelled = cancelled
        self.alone = False
        """Whether it may only run with no other call beside it."""
        self.steps: Steps[Any] | None = None
        self.windows: list[Window] = []
        self.logits: list[torch.Tensor | None] = []
        self.done = False
        self.answer: Any = None
        self.error: Exception | None = None

    @property
    def missing(self) -> list[int]:
        return [i for i, logits in enumerate(self.logits) if logits is None]

    @property
    def tokens(self) -> int:
        return sum(window.length for window in self.windows)

    def advance(self) -> None:
        """Take the next step: the first one, or the one behind windows that are all scored."""
        try:
            if self.steps is None:
                self.steps = self.start()
                self.windows = list(next(self.steps))
            else:
                self.windows = list(self.steps.send([logits for logits in self.logits if logits is not None]))
            self.logits = [None] * len(self.windows)
        except StopIteration as end:
            self.finish(end.value)

    def finish(self, answer: Any = None, error: Exception | None = None) -> None:
        self.reset()
        self.done, self.answer, self.error = True, answer, error

    def reset(self) -> None:
        """Forget all steps taken, and what they hold in memory."""
        if self.steps is not None:
            self.steps.close()
        self.steps, self.windows, self.logits = None, [], []


class Batcher:
    """Runs calls of many threads through one model."""

    def __init__(self, forward: Forward, turn: AbstractContextManager[Any], budget: int) -> None:
        """``turn`` is held while the model is at work; one forward pass reads at most ``budget`` tokens."""
        if budget < 1:
            raise ValueError(f"A batch holds at least one token, got a budget of {budget}.")
        self.budget = budget
        self._forward = forward
        self._turn = turn
        self._change = threading.Condition()
        self._led = False
        self._waiting: list[_Call] = []
        self._running: list[_Call] = []

    def run(self, start: Callable[[], Steps[Answer]], cancelled: threading.Event | None = None) -> Answer:
        """Run a call to its end and return its answer. ``start`` may be called again when memory runs out.

        Raises:
            OutOfMemoryError: when the call needs more memory than there is, also without others beside it.
            CancelledError: once ``cancelled`` is set; what other calls wait for goes on.
        """
        call = _Call(start, cancelled)
        with self._change:
            self._waiting.append(call)
        try:
            while not call.done:
                with self._change:
                    self._change.wait_for(lambda: call.done or not self._led)
                    if call.done:
                        break
                    self._led = True
                try:
                    self._lead(call)
                finally:
                    with self._change:
                        self._led = False
                        self._change.notify_all()
        finally:
            with self._change:  # only a call that was interrupted is still there
                self._waiting = [other for other in self._waiting if other is not call]
                self._running = [other for other in self._running if other is not call]
        error, call.error = call.error, None  # it holds the frames that it passed, and these the call
        if error is not None:
            try:
                raise error
            finally:
                del error  # or this frame would hold it, and with it tensors, until the garbage collector runs
        return call.answer

    def _lead(self, own: _Call) -> None:
        while not own.done:
            with self._turn:
                self._drop_cancelled()
                self._admit()
                if batch := self._batch():
                    self._score(batch)
                    self._let_others_go_first({call for call, _ in batch})
                for call in self._running:
                    if not call.missing and call.steps is not None:
                        self._guarded(call, call.advance)
            with self._change:
                self._running = [call for call in self._running if not call.done]
                self._change.notify_all()

    def _drop_cancelled(self) -> None:
        with self._change:
            for call in [*self._waiting, *self._running]:
                if call.cancelled is not None and call.cancelled.is_set():
                    call.finish(error=CancelledError())
            self._waiting = [call for call in self._waiting if not call.done]
            self._running = [call for call in self._running if not call.done]

    def _admit(self) -> None:
        """Let calls begin, oldest first, while those that run leave room in the budget."""
        while True:
            with self._change:
                if not self._waiting or not self._has_room(self._waiting[0]):
                    return
                call = self._waiting.pop(0)
                self._running.append(call)
            self._guarded(call, call.advance)

    def _let_others_go_first(self, served: set[_Call]) -> None:
        """Line up anew: a long list, which has many steps, holds a short one up by one of them."""
        with self._change:
            self._running = sorted(self._running, key=lambda call: call in served)

    def _has_room(self, call: _Call) -> bool:
        running = [other for other in self._running if not other.done]
        if not running:
            return True
        return not (call.alone or any(other.alone for other in running)) and (
            sum(other.tokens for other in running) < self.budget
        )

    def _batch(self) -> list[tuple[_Call, int]]:
        """Choose the next windows: one of the call that waited longest, and those nearest to it in length as far as the
        budget goes.
        """
        missing = [(call, i) for call in self._running for i in call.missing]
        lengths = [call.windows[i].length for call, i in missing]
        return [missing[place] for place in fitting(lengths, self.budget)]

    def _score(self, batch: list[tuple[_Call, int]]) -> None:
        """Run windows as one forward pass, or as several when that fails."""
        made = self._made(batch)
        if len(made) == 1:
            [(call, i, inputs)] = made
            if logits := self._guarded(call, lambda: self._forward([inputs])):
                call.logits[i] = logits[0]
            return
        if not made or self._score_together(made):
            return
        rest = [(call, i) for call, i, _ in made]
        made.clear()  # the tensors are made again, fewer at a time
        for part in (rest[: len(rest) // 2], rest[len(rest) // 2 :]):
            self._score(part)

    def _made(self, batch: list[tuple[_Call, int]]) -> list[tuple[_Call, int, WindowInputs]]:
        """Make the tensors of windows, of those calls that have not failed."""
        made: list[tuple[_Call, int, WindowInputs]] = []
        for call, i in batch:
            if call.windows and (inputs := self._guarded(call, call.windows[i].inputs)):
                made.append((call, i, inputs))
        return [(call, i, inputs) for call, i, inputs in made if call.windows]

    def _score_together(self, made: list[tuple[_Call, int, WindowInputs]]) -> bool:
        """Return whether it worked. Out of memory, it lowers the budget; any error shows again in a smaller batch."""
        try:
            logits = self._forward([inputs for _, _, inputs in made])
        except Exception as error:
            if is_out_of_memory(error):
                tokens = max(call.windows[i].length for call, i, _ in made) * len(made)
                self.budget = min(self.budget, max(1, tokens // 2))
            return False
        for (call, i, _), scores in zip(made, logits, strict=True):
            call.logits[i] = scores
        return True

    def _guarded(self, call: _Call, work: Callable[[], Any]) -> Any:
        """Do one call's work; None when it failed, which concerns that call alone."""
        try:
            return work()
        except Exception as error:
            if not is_out_of_memory(error):
                call.finish(error=error)
                return None
            reason = str(error)
        except BaseException:  # the leader is interrupted: another will begin this call again
            self._begin_again(call, alone=call.alone)
            raise
        if call.alone or all(other is call or other.done for other in self._running):
            call.finish(error=OutOfMemoryError(reason))
        else:
            self._begin_again(call, alone=True)
        return None

    def _begin_again(self, call: _Call, *, alone: bool) -> None:
        call.reset()
        call.alone = alone
        with self._change:
            self._running = [other for other in self._running if other is not call]
            self._waiting.insert(0, call)


def fitting(lengths: Sequence[int], budget: int) -> list[int]:
    """Choose windows for one forward pass: the first, and those of similar length, nearest first, as the budget goes.

    Returns indices into ``lengths``, ascending. Windows are padded to the longest, and that counts; the first window is
    chosen whatever its length.
    """
    if not lengths:
        return []
    chosen = [0]
    shortest = longest = lengths[0]
    for i in sorted(range(1, len(lengths)), key=lambda i: abs(lengths[i] - lengths[0])):
        low, high = min(shortest, lengths[i]), max(longest, lengths[i])
        if low >= SHORTEST_OF_LONGEST * high and high * (len(chosen) + 1) <= budget:
            chosen.append(i)
            shortest, longest = low, high
    return sorted(chosen)


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether a device, or the host, had too little memory; torch's CPU and MPS say so in words only."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("DefaultCPUAllocator", "MPS backend out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
