"""Patience with a model that ranks pages: time-outs, retries with growing pauses, repairs, and a count of it all.

The words are the student's own prompt; the paper's teacher is GPT-5-mini (ZipRerank, arXiv:2605.11864).

- An answer that misses candidates is completed: they follow in the order in which they were given, as in RankGPT.
- An answer that names none is no ranking, and is asked for again; so is any other answer that cannot be read.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from PIL import Image
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from llama_index_ziprerank.reranking.permutation import complete_order
from llama_index_ziprerank.reranking.prompt import prompt_words
from llama_index_ziprerank.training.teacher.answers import Answer, Ask, RetryRule, read_order

T = TypeVar("T")


class UnreadableAnswerError(ValueError):
    """The answer does not hold what was asked for."""


@dataclass(frozen=True)
class TeacherSettings:
    """How hard the model may be pressed."""

    concurrency: int = 8
    """Requests in flight at any time."""
    attempts: int = 8
    """Requests for one query before it is given up; with the waits below, two minutes' outage is survived."""
    timeout: float = 300.0
    """Seconds that one request may take. GPT-5-mini took 24 in the paper."""
    first_wait: float = 1.0
    """Seconds of the first pause at most. Pauses are random (full jitter), and their limit doubles each time."""
    longest_wait: float = 60.0
    """Seconds of any pause at most, also where a server demands more."""
    failures_in_a_row: int = 10
    """Queries in a row without a ranking that end the run: the key, the address or the purse is the likely cause."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}.")


@dataclass
class TeacherTotals:
    """What a run has done so far."""

    labelled: int = 0
    already_labelled: int = 0
    failed: int = 0
    requests: int = 0
    """Sent, also those that failed."""
    completed_by_rule: int = 0
    """Rankings that missed candidates."""
    unreadable: int = 0
    """Answers that did not hold what was asked for."""
    without_usage: int = 0
    """Answers that did not say how many tokens they took."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def cost(self, prompt_price: float, completion_price: float) -> float:
        """Return what the counted tokens cost, given prices for a million of them."""
        return (self.prompt_tokens * prompt_price + self.completion_tokens * completion_price) / 1e6


@dataclass(frozen=True)
class TeacherRanking:
    """All candidates, best first, and the words they were read from."""

    order: list[int]
    response: str


def retry_broken_connections(error: BaseException) -> float | None:
    """Try again, at once, after built-in connection errors and time-outs only: the rule unless another is given."""
    return 0.0 if isinstance(error, ConnectionError | TimeoutError) else None


class Teacher:
    """Asks for rankings and counts what that took."""

    def __init__(
        self, ask: Ask, settings: TeacherSettings | None = None, *, retry_rule: RetryRule = retry_broken_connections
    ) -> None:
        self.settings = settings or TeacherSettings()
        self.totals = TeacherTotals()
        self._ask = ask
        self._retry_rule = retry_rule
        self._backoff = wait_random_exponential(self.settings.first_wait, self.settings.longest_wait)

    async def rank(self, query: str, images: Sequence[Image.Image]) -> TeacherRanking:
        """Order the images, 1 to 20, by relevance.

        Raises:
            UnreadableAnswerError: no attempt brought an answer that names a candidate.
            TimeoutError: the last attempt took too long.
            Exception: whatever else the callable raised last, or first where no further try makes sense.
        """
        return await self.ask(prompt_words(query, len(images)).text, images, partial(self._ranking, n=len(images)))

    async def ask(self, prompt: str, images: Sequence[Image.Image], read: Callable[[str], T]) -> T:
        """Return what `read` makes of an answer; where it raises UnreadableAnswerError the model is asked again.

        Raises as `rank` does.
        """
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.settings.attempts),
            wait=self._pause,
            retry=retry_if_exception(lambda error: self._seconds_before_retry(error) is not None),
            reraise=True,
        )
        return await retrying(self._ask_once, prompt, images, read)

    async def _ask_once(self, prompt: str, images: Sequence[Image.Image], read: Callable[[str], T]) -> T:
        self.totals.requests += 1
        try:
            answer = await asyncio.wait_for(self._ask(prompt, images), self.settings.timeout)
        except asyncio.TimeoutError:  # noqa: UP041 - not the built-in one before Python 3.11
            raise TimeoutError(f"no answer within {self.settings.timeout:g} s") from None
        text = self._counted(answer)
        try:
            return read(text)
        except UnreadableAnswerError:
            self.totals.unreadable += 1
            raise

    def _ranking(self, text: str, n: int) -> TeacherRanking:
        named = read_order(text, n)
        if not named:
            raise UnreadableAnswerError(f"the answer names none of the {n} pages: {text!r:.200}")
        self.totals.completed_by_rule += len(named) < n
        return TeacherRanking(complete_order(named, n), text)

    def _counted(self, answer: str | Answer) -> str:
        if isinstance(answer, str):
            self.totals.without_usage += 1
            return answer
        if answer.prompt_tokens is None or answer.completion_tokens is None:
            self.totals.without_usage += 1
        self.totals.prompt_tokens += answer.prompt_tokens or 0
        self.totals.completion_tokens += answer.completion_tokens or 0
        return answer.text

    def _seconds_before_retry(self, error: BaseException) -> float | None:
        return 0.0 if isinstance(error, UnreadableAnswerError) else self._retry_rule(error)

    def _pause(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        demanded = (self._seconds_before_retry(error) or 0.0) if error else 0.0
        return max(self._backoff(state), min(demanded, self.settings.longest_wait))
