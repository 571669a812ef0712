"""Orders, ranks and identifiers of the candidates of one window: the words of RankGPT (arXiv:2304.09542).

An *order* lists candidates, best first: ``order[j]`` is the candidate at rank j. *Ranks* list places:
``ranks[i]`` is the rank of candidate i. Both count from 0 and each is the other's inverse.
An *identifier* is the letter by which the prompt names a candidate: A, B, ... T.
"""

import re
import string
from collections.abc import Iterable, Sequence

import torch
from transformers import PreTrainedTokenizerBase

WINDOW_SIZE = 20
"""Pages in one forward pass: the checkpoint was trained with the identifiers A to T."""

IDENTIFIERS = string.ascii_uppercase[:WINDOW_SIZE]


def check_window_length(n: int) -> None:
    """Raise ValueError unless ``n`` pages fit one window."""
    if not 1 <= n <= WINDOW_SIZE:
        raise ValueError(
            f"A window holds 1 to {WINDOW_SIZE} pages (A-{IDENTIFIERS[-1]}), got {n}. "
            + ("Pass fewer, or call `ListwiseReranker.rerank`, which slides a window." if n else "Pass at least one.")
        )


def order_to_ranks(order: Sequence[int]) -> list[int]:
    """Invert an order: the rank of each candidate, from 0. Raises ValueError when ``order`` is no permutation."""
    if sorted(order) != list(range(len(order))):
        raise ValueError(f"An order names each candidate 0..{len(order) - 1} exactly once, got {list(order)}.")
    ranks = [0] * len(order)
    for rank, candidate in enumerate(order):
        ranks[candidate] = rank
    return ranks


def ranks_to_order(ranks: Sequence[int]) -> list[int]:
    """Invert ranks: the candidate at each place, best first. The inverse of a permutation is found the same way."""
    return order_to_ranks(ranks)


def format_permutation(order: Sequence[int]) -> str:
    """Write an order as the model is taught to say it: ``[1, 0]`` becomes ``"[B] > [A]"``."""
    check_window_length(len(order))
    return " > ".join(f"[{IDENTIFIERS[candidate]}]" for candidate in order)


def parse_permutation(text: str, n: int) -> list[int]:
    """Read the candidates that ``text`` names, in its order: ``"[B] > [A]"`` becomes ``[1, 0]``.

    The first mention counts; letters beyond the ``n`` candidates are passed over. The answer may therefore miss
    candidates: `complete_order` adds them.
    """
    check_window_length(n)
    named = [IDENTIFIERS.index(letter) for letter in re.findall(rf"\[([{IDENTIFIERS[:n]}])\]", text)]
    return list(dict.fromkeys(named))


def complete_order(partial: Iterable[int], n: int) -> list[int]:
    """Append the candidates that ``partial`` does not name, in their given order (as RankGPT repairs its lists)."""
    return list(dict.fromkeys([*partial, *range(n)]))


def identifier_token_ids(tokenizer: PreTrainedTokenizerBase, n: int) -> torch.Tensor:
    """Return the token ids of the first ``n`` identifiers: (n,) int64.

    Raises:
        ValueError: when ``n`` does not fit a window, or the tokenizer does not write each letter as one token of
            its own, so that no single logit could score a page.
    """
    check_window_length(n)
    ids = [single_token_id(tokenizer, letter) for letter in IDENTIFIERS[:n]]
    if len(set(ids)) < n:
        raise ValueError(f"The tokenizer gives two identifiers the same token: {ids}.")
    return torch.tensor(ids)


def single_token_id(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Return the id of the one token that writes ``text``; ValueError when it takes several or is unknown."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise ValueError(
            f"The reranking prompt needs {text!r} to be one token, this tokenizer gives {ids}. "
            "Use the tokenizer of a ZipRerank checkpoint, or add the identifiers A-T and the brackets to it."
        )
    return ids[0]
