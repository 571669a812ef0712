"""What a model that plays the teacher takes and gives back, and how an order is read from its words."""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeAlias

from PIL import Image

from llama_index_ziprerank.reranking.permutation import parse_permutation

_LETTER = r"(?:\[[A-Z]\]|\b[A-Z]\b)"  # also those that name no candidate: they do not end a chain
_CHAIN = re.compile(rf"{_LETTER}(?:\s*[>=]\s*{_LETTER})+")


class Answer(Protocol):
    """What the model said, and the tokens it took; None where the model does not count them."""

    @property
    def text(self) -> str: ...
    @property
    def prompt_tokens(self) -> int | None: ...
    @property
    def completion_tokens(self) -> int | None: ...


Ask: TypeAlias = Callable[[str, Sequence[Image.Image]], Awaitable[str | Answer]]
"""Sends a prompt and the images that follow it, and brings the answer. It does not retry: the teacher does."""

RetryRule: TypeAlias = Callable[[BaseException], float | None]
"""Seconds that must pass before another try makes sense, as a server may demand; None when it never does."""


def read_order(text: str, n: int) -> list[int]:
    """Read the candidates that an answer names, best first, each once; it may miss some, or all.

    The chain that names most candidates counts, ``"[B] > [A]"``, ``"B > A"`` or ``"**[B]** > **[A]**"``, the last of
    equals: a model may mention pages before it ranks them. Ties, ``"[B] = [A] > [C]"``, are read as they stand. Without
    a chain, the letters in brackets count in the order in which they stand.
    """
    text = re.sub(r"[*`\\]", "", text)  # Markdown's bold and code, and what it takes for brackets: \[B\]
    chains = [re.sub(r"\[?([A-Z])\]?", r"[\1]", chain) for chain in _CHAIN.findall(text) if ">" in chain]
    return max((parse_permutation(chain, n) for chain in reversed(chains or [text])), key=len)
