import numpy as np
import pytest

from llama_index_ziprerank.pages.patch_map import PatchMap, Scale


def _map(values: list[list[float]]) -> PatchMap:
    array = np.array(values, dtype=np.float32)
    return PatchMap(array, np.zeros_like(array, dtype=bool))


def test_heat_runs_from_cold_to_hot_and_stops_there() -> None:
    heat = Scale(cold=0.25, hot=0.75).heat(np.array([[0.0, 0.25, 0.5], [0.75, 1.0, -1.0]], dtype=np.float32))

    assert heat.tolist() == [[0.0, 0.0, 0.5], [1.0, 1.0, 0.0]]


def test_where_all_patches_are_alike_none_is_hot() -> None:
    uniform = _map([[0.3, 0.3], [0.3, 0.3]])

    assert Scale.over([uniform]).heat(uniform.values).max() == 0


def test_pages_of_one_scale_share_their_hottest_patch() -> None:
    cool, warm = _map([[0.0, 0.1]] * 50), _map([[0.0, 0.9]] * 50)
    scale = Scale.over([cool, warm])

    assert scale.heat(warm.values).max() == 1 and scale.heat(cool.values).max() < 0.2


def test_values_and_marks_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 2\)"):
        PatchMap(np.zeros((2, 3), dtype=np.float32), np.zeros((3, 2), dtype=bool))


def test_a_scale_over_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one patch map"):
        Scale.over([])
