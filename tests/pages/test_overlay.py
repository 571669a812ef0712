import numpy as np
import pytest
from PIL import Image

from llama_index_ziprerank.pages.overlay import SIDE, Style, draw_patches, stack
from llama_index_ziprerank.pages.patch_map import PatchMap, Scale

SCALE = Scale(0, 1)


def _map(hot: tuple[int, int] | None = None, chosen: tuple[int, int] | None = None) -> PatchMap:
    """Four rows and two columns of patches, at most one of them hot and one chosen."""
    values, marks = np.zeros((4, 2), dtype=np.float32), np.zeros((4, 2), dtype=bool)
    if hot:
        values[hot] = 1
    if chosen:
        marks[chosen] = True
    return PatchMap(values, marks)


def _all_chosen(hot: tuple[int, int] | None = None) -> PatchMap:
    return PatchMap(_map(hot).values, np.ones((4, 2), dtype=bool))


def _middle(picture: Image.Image, row: int, column: int) -> tuple[int, ...]:
    pixel = picture.getpixel(((2 * column + 1) * picture.width // 4, (2 * row + 1) * picture.height // 8))
    assert isinstance(pixel, tuple)
    return pixel


def test_a_page_read_as_a_whole_and_nowhere_hot_stays_as_it_is() -> None:
    page = Image.effect_noise((80, 160), 60).convert("RGB")

    assert draw_patches(page, _all_chosen(), SCALE, "read").tobytes() == page.tobytes()


def test_only_the_hot_patch_changes_its_colour() -> None:
    drawn = draw_patches(Image.new("RGB", (80, 160), "white"), _all_chosen(hot=(2, 1)), SCALE, "read")
    colours = {(row, column): _middle(drawn, row, column) for row in range(4) for column in range(2)}

    assert colours.pop((2, 1)) != (255, 255, 255)
    assert set(colours.values()) == {(255, 255, 255)}


def test_print_stays_black_in_the_heat() -> None:
    drawn = draw_patches(Image.new("RGB", (80, 160), "black"), _all_chosen(hot=(0, 0)), SCALE, "read")

    assert drawn.getextrema() == ((0, 0), (0, 0), (0, 0))


def test_what_was_not_read_is_veiled_and_the_rest_is_not() -> None:
    drawn = draw_patches(Image.new("RGB", (80, 160), "white"), _map(chosen=(1, 0)), SCALE, "read")
    veiled = {_middle(drawn, row, column) for row in range(4) for column in range(2)} - {_middle(drawn, 1, 0)}

    assert _middle(drawn, 1, 0) == (255, 255, 255)
    assert len(veiled) == 1


def test_a_matched_patch_has_a_frame_and_keeps_its_inside() -> None:
    drawn = draw_patches(Image.new("RGB", (80, 160), "white"), _map(chosen=(3, 1)), SCALE, "matched")

    assert _middle(drawn, 3, 1) == (255, 255, 255)
    assert drawn.getpixel((40, 120)) == drawn.getpixel((79, 159)) != (255, 255, 255)


@pytest.mark.parametrize("style", ["read", "matched"])
@pytest.mark.parametrize("size", [(1, 1), (3, 5000), (5000, 3), (900, 901)])
def test_a_page_of_any_size_can_be_drawn(style: Style, size: tuple[int, int]) -> None:
    drawn = draw_patches(Image.new("L", size), _map(hot=(0, 0), chosen=(3, 1)), SCALE, style)

    assert max(drawn.size) == min(SIDE, max(size)) and drawn.mode == "RGB"


def test_the_page_that_was_given_stays_as_it_was() -> None:
    page = Image.new("RGB", (80, 160), "white")
    draw_patches(page, _map(hot=(0, 0), chosen=(3, 1)), SCALE, "matched")

    assert page.getextrema() == ((255, 255), (255, 255), (255, 255))


def test_stacked_pictures_stand_under_each_other() -> None:
    whole = stack([Image.new("RGB", (30, 10), "red"), Image.new("RGB", (20, 40), "blue")])

    assert whole.size == (30, 50)
    assert (whole.getpixel((5, 5)), whole.getpixel((5, 30))) == ((255, 0, 0), (0, 0, 255))
    with pytest.raises(ValueError, match="at least one"):
        stack([])
