import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_index_ziprerank.reranking.windows import (
    Plan,
    follow,
    mean_logits,
    plan_windows,
    seeded_permutations,
    window_spans,
)
from llama_index_ziprerank.reranking.windows.blocks import overlapping_blocks

windows_and_strides = st.integers(2, 20).flatmap(lambda window: st.tuples(st.just(window), st.integers(1, window - 1)))
STRATEGIES = ["sliding", "parallel", "blocks"]


def steps(plan: Plan, score: Any) -> tuple[list[int], list[list[list[int]]]]:
    """Follow a plan; return the order and the windows of each step."""
    taken, windows = [], next(plan)
    while True:
        taken.append(windows)
        try:
            windows = plan.send([score(window) for window in windows])
        except StopIteration as end:
            return end.value, taken


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(st.integers(1, 120), windows_and_strides, st.integers())
def test_any_scorer_gives_a_permutation(strategy: Any, n: int, bounds: tuple[int, int], seed: int) -> None:
    numbers = random.Random(seed)
    order, taken = steps(plan_windows(n, *bounds, strategy), lambda window: [numbers.random() for _ in window])
    assert sorted(order) == list(range(n))
    assert all(len(window) == len(set(window)) <= bounds[0] for windows in taken for window in windows)
    assert {i for windows in taken for window in windows for i in window} == set(range(n))


@pytest.mark.parametrize("strategy", ["sliding", "parallel"])
@given(st.integers(1, 80).flatmap(lambda n: st.permutations(range(n))), windows_and_strides)
def test_a_perfect_scorer_puts_the_overlap_right(strategy: Any, ranks: list[int], bounds: tuple[int, int]) -> None:
    window, stride = bounds
    order = follow(plan_windows(len(ranks), *bounds, strategy), lambda shown: [-ranks[i] for i in shown])
    right = min(window - stride, stride) if strategy == "parallel" else window - stride
    right = len(ranks) if len(ranks) <= window else right
    assert [ranks[candidate] for candidate in order[:right]] == list(range(right))


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(st.integers(1, 20))
def test_a_list_that_fits_is_one_window_whatever_the_strategy(strategy: Any, n: int) -> None:
    order, taken = steps(plan_windows(n, 20, 10, strategy), lambda window: [1.0] * len(window))
    assert taken == [[list(range(n))]]
    assert order == list(range(n))


@given(st.permutations(range(23)), windows_and_strides)
def test_a_page_that_alone_beats_the_pivot_is_not_read_again(ranks: list[int], bounds: tuple[int, int]) -> None:
    _, taken = steps(plan_windows(23, *bounds, "parallel"), lambda shown: [-ranks[i] for i in shown])
    assert all(len(window) > 1 for windows in taken for window in windows)


def test_fewer_steps_find_the_best_of_a_hundred() -> None:
    numbers = random.Random(0)
    sliding, parallel, blocks = 0, 0, 0
    for _ in range(20):
        logits = [numbers.gauss(0, 1) for _ in range(100)]
        best = sorted(range(100), key=lambda i: -logits[i])[:10]
        taken = {}
        for strategy in STRATEGIES:
            order, taken[strategy] = steps(
                plan_windows(100, 20, 10, strategy),  # type: ignore[arg-type]
                lambda window, logits=logits: [logits[i] for i in window],  # type: ignore[misc]
            )
            assert order[:3] == best[:3]
            assert strategy == "blocks" or order[:10] == best
        sliding += len(taken["sliding"])
        parallel += len(taken["parallel"])
        blocks += len(taken["blocks"])
    assert (sliding, blocks) == (20 * 9, 20 * 2)
    assert parallel < 20 * 6


@given(st.integers(21, 200), st.integers(2, 20))
def test_each_candidate_meets_others_in_its_second_block(n: int, window: int) -> None:
    blocks = overlapping_blocks(n, window)
    assert sorted(i for block in blocks for i in block) == sorted([*range(n), *range(n)])
    assert max(map(len, blocks)) <= window


@given(st.integers(1, 120), windows_and_strides)
def test_windows_cover_the_list_and_each_overlaps_the_one_before(n: int, bounds: tuple[int, int]) -> None:
    window, stride = bounds
    spans = window_spans(n, window, stride)
    assert spans[0][1] == n
    assert spans[-1][0] == 0
    assert all(end - start <= window for start, end in spans)
    assert all(later[1] == earlier[1] - stride > earlier[0] for earlier, later in pairwise(spans))


def test_windows_go_from_back_to_front() -> None:
    assert window_spans(20, 20, 10) == [(0, 20)]
    assert window_spans(45, 20, 10) == [(25, 45), (15, 35), (5, 25), (0, 15)]


def test_of_equal_logits_the_page_shown_earlier_comes_first() -> None:
    assert follow(plan_windows(5, 5, 2), lambda window: [0.0, 1.0, 0.0, 1.0, 0.0]) == [1, 3, 0, 2, 4]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("window", [-1, 0, 1, 21])
def test_a_window_beyond_the_letters_is_refused(strategy: Any, window: int) -> None:
    with pytest.raises(ValueError, match=f"window is 2 to 20 pages.*got {window}"):
        next(plan_windows(5, window, 1, strategy))


@pytest.mark.parametrize("stride", [-1, 0, 10, 11])
def test_windows_that_do_not_overlap_or_move_are_refused(stride: int) -> None:
    with pytest.raises(ValueError, match=rf"smaller than the window \(10\).*got {stride}"):
        window_spans(5, 10, stride)


@given(st.integers(1, 20), st.integers(1, 8))
def test_permutations_begin_with_the_given_order_and_repeat_in_every_process(m: int, permutations: int) -> None:
    orders = seeded_permutations(m, permutations)
    assert len(orders) == permutations
    assert orders[0] == list(range(m))
    assert all(sorted(order) == orders[0] for order in orders)
    assert orders == seeded_permutations(m, permutations + 1)[:permutations]


def test_a_place_that_is_favoured_favours_nobody_on_average() -> None:
    assert mean_logits([[0, 1, 2], [2, 0, 1]], [[9.0, 1.0, 2.0], [11.0, 0.0, 2.0]]) == [4.5, 1.5, 6.5]
    assert mean_logits([[0, 1]], [[0.1, 0.7]]) == [0.1, 0.7]
