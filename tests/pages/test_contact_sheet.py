from time import monotonic

import pytest
from PIL import Image

from llama_index_ziprerank.pages.contact_sheet import COLUMNS, Tile, contact_sheet, font, shorten


def _tile(colour: str, size: tuple[int, int] = (300, 400), rank: int = 1, rank_before: int = 1) -> Tile:
    return Tile(Image.new("RGB", size, colour), rank, rank_before, "page 7 · manual.pdf")


def _has(sheet: Image.Image, colour: tuple[int, int, int]) -> bool:
    return colour in {pixel for _, pixel in sheet.getcolors(maxcolors=1 << 20) or []}


def test_every_page_is_on_the_sheet() -> None:
    sheet = contact_sheet("question", [_tile("#ff0000"), _tile("#00ff00"), _tile("#0000ff")])

    assert all(_has(sheet, colour) for colour in [(255, 0, 0), (0, 255, 0), (0, 0, 255)])


def test_a_row_holds_a_fixed_number_of_pages() -> None:
    one_row = contact_sheet("question", [_tile("red")] * COLUMNS)
    two_rows = contact_sheet("question", [_tile("red")] * (COLUMNS + 1))

    assert one_row.width == two_rows.width
    assert one_row.height < two_rows.height


def test_a_page_of_any_shape_stays_in_its_cell() -> None:
    normal = contact_sheet("question", [_tile("red")])

    for size in [(4000, 10), (10, 4000), (1, 1)]:
        assert contact_sheet("question", [_tile("red", size)]).size == normal.size


def test_a_rank_that_changed_is_shown_otherwise_than_one_that_did_not() -> None:
    stayed, rose, fell = (
        contact_sheet("question", [_tile("white", rank=rank, rank_before=before)]).tobytes()
        for rank, before in [(2, 2), (2, 9), (2, 1)]
    )

    assert len({stayed, rose, fell}) == 3


def test_a_title_longer_than_the_sheet_is_cut_and_does_not_widen_it() -> None:
    assert contact_sheet("why " * 500, [_tile("red")]).size == contact_sheet("why", [_tile("red")]).size


@pytest.mark.parametrize("width", [1, 10, 100, 150, 10_000])
def test_a_text_is_cut_by_as_little_as_fits(width: int) -> None:
    text, face = "why is the toner low?", font(17)
    shown = shorten(text, 17, width)
    longer = f"{text[: len(shown)]}…"
    assert shown in (text, "…") or face.getlength(shown) <= width < face.getlength(longer)


def test_a_long_title_is_cut_in_no_time() -> None:
    start = monotonic()
    contact_sheet("why is the toner low? " * 1000, [_tile("red")])
    assert monotonic() - start < 5  # a letter at a time it took a minute


def test_a_sheet_without_pages_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one page"):
        contact_sheet("question", [])
