"""A fuzz target for the permutation parser: whatever a model answers, an order of the window's pages comes out.

`make test` tries a few hundred answers. As a program it goes on until stopped, or for so many answers:

    python tests/reranking/test_permutation_fuzz.py 1000000
"""

import sys
import time
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llama_index_ziprerank.reranking.permutation import (
    IDENTIFIERS,
    WINDOW_SIZE,
    complete_order,
    format_permutation,
    parse_permutation,
)

SCRAPS = [
    *(f"[{letter}]" for letter in IDENTIFIERS), *IDENTIFIERS, "[", "]", " > ", ">", "[[A]]", "[a]", "[AB]", "[U]",
    "[1]", "[Ａ]", "[А]", "[\u0391]", "[A\u0301]", "\u200b", "\x00", "\ud800", "\n", "<think>", "</think>",
    "<|im_end|>", "Sure! ", "```", "[A]>[B]", "[ A ]", "[]",
]  # fmt: skip
answers = st.lists(st.one_of(st.sampled_from(SCRAPS), st.text(max_size=5)), max_size=60).map("".join)
windows = st.integers(1, WINDOW_SIZE)


def check(answer: str, n: int) -> None:
    """The laws of the parser for one answer."""
    named = parse_permutation(answer, n)
    assert len(set(named)) == len(named)
    assert all(0 <= candidate < n for candidate in named)
    assert sorted(complete_order(named, n)) == list(range(n))
    assert complete_order(named, n)[: len(named)] == named
    assert all(f"[{IDENTIFIERS[candidate]}]" in answer for candidate in named)
    if named:
        assert parse_permutation(format_permutation(named), n) == named


@settings(max_examples=400, deadline=None)
@example("", 1)
@example("[" * 10_000, 20)
@given(answers, windows)
def test_any_answer_gives_an_order_of_the_window(answer: str, n: int) -> None:
    check(answer, n)


@settings(max_examples=100, deadline=None)
@given(st.permutations(range(WINDOW_SIZE)), st.lists(st.text(alphabet=" >.,\n-=abc", max_size=6), min_size=20))
def test_noise_between_the_identifiers_changes_nothing(order: list[int], noise: list[str]) -> None:
    answer = "".join(f"{scrap}[{IDENTIFIERS[candidate]}]" for candidate, scrap in zip(order, noise, strict=False))
    assert parse_permutation(answer, WINDOW_SIZE) == order


@given(answers, answers, windows)
def test_what_follows_never_changes_the_places_already_given(first: str, second: str, n: int) -> None:
    named = parse_permutation(first, n)
    assert parse_permutation(f"{first} {second}", n)[: len(named)] == named


@pytest.mark.parametrize("answer", ["[" * 1_000_000, "[A" * 500_000, "[A]" * 300_000, "A] > [" * 200_000])
def test_a_megabyte_of_answer_is_read_in_a_moment(answer: str) -> None:
    start = time.process_time()
    check(answer, WINDOW_SIZE)
    assert time.process_time() - start < 5


def fuzz(count: int, seed: int) -> None:
    """Try `count` random answers."""
    random = Random(seed)
    for _ in range(count):
        pieces = (
            random.choice(SCRAPS) if random.random() < 0.8 else chr(random.randrange(0x110000))
            for _ in range(random.randrange(60))
        )
        answer, n = "".join(pieces), random.randint(1, WINDOW_SIZE)
        try:
            check(answer, n)
        except AssertionError:
            print(f"BROKEN by {answer!r} with {n} candidates")
            raise


if __name__ == "__main__":
    tries, seed = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, int(time.time())
    fuzz(tries, seed)
    print(f"{tries:,} answers (seed {seed}), and every one gave an order of its window")
