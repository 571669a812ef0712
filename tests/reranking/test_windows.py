from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_index_ziprerank.reranking.windows import slide, window_spans

windows_and_strides = st.integers(2, 20).flatmap(lambda window: st.tuples(st.just(window), st.integers(1, window - 1)))


@given(st.integers(1, 120), windows_and_strides, st.randoms())
def test_any_scorer_gives_a_permutation(n: int, bounds: tuple[int, int], random: object) -> None:
    def shuffled(candidates: Sequence[int]) -> list[int]:
        return random.sample(list(candidates), len(candidates))  # type: ignore[attr-defined]

    assert sorted(slide(n, *bounds, shuffled)) == list(range(n))


@given(st.integers(1, 80).flatmap(lambda n: st.permutations(range(n))), windows_and_strides)
def test_a_perfect_scorer_puts_the_overlap_right(ranks: list[int], bounds: tuple[int, int]) -> None:
    window, stride = bounds
    order = slide(len(ranks), window, stride, lambda candidates: sorted(candidates, key=ranks.__getitem__))
    right = len(ranks) if len(ranks) <= window else window - stride
    assert [ranks[candidate] for candidate in order[:right]] == list(range(right))


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


@pytest.mark.parametrize("window", [-1, 0, 1, 21])
def test_a_window_beyond_the_letters_is_refused(window: int) -> None:
    with pytest.raises(ValueError, match=f"window is 2 to 20 pages.*got {window}"):
        window_spans(5, window, 1)


@pytest.mark.parametrize("stride", [-1, 0, 10, 11])
def test_windows_that_do_not_overlap_or_move_are_refused(stride: int) -> None:
    with pytest.raises(ValueError, match=rf"smaller than the window \(10\).*got {stride}"):
        window_spans(5, 10, stride)
