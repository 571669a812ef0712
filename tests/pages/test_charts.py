import pytest
from PIL import Image, ImageColor

from llama_index_ziprerank.pages.charts import Bar, bar_chart
from llama_index_ziprerank.pages.contact_sheet import ROSE


def _coloured(chart: Image.Image) -> int:
    """Count the pixels of the bars."""
    colours = dict((colour, count) for count, colour in chart.getcolors(maxcolors=1 << 20) or [])
    return colours.get(ImageColor.getrgb(ROSE), 0)


def test_a_bar_is_as_long_as_its_share() -> None:
    whole, half, none = (_coloured(bar_chart("", [Bar("", share)])) for share in (1.0, 0.5, 0.0))

    assert whole > 0 and none == 0
    assert half == pytest.approx(whole / 2, rel=0.01)


def test_every_bar_has_a_row() -> None:
    one, many = (bar_chart("", [Bar("page", 0.1)] * n) for n in (1, 20))

    assert one.width == many.width
    assert _coloured(many) == 20 * _coloured(one)


def test_words_of_any_length_leave_the_width_as_it_is() -> None:
    assert bar_chart("why " * 99, [Bar("page " * 99, 0.1)]).size == bar_chart("", [Bar("", 0.1)]).size


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=str(share)):
        bar_chart("", [Bar("", share)])


def test_a_chart_without_bars_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one bar"):
        bar_chart("", [])
