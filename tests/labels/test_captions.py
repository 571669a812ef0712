import pytest

from llama_index_ziprerank.labels.captions import find_captions

LONG = "Line graph with a key that is taken from the column labels in the first row"


@pytest.mark.parametrize(
    ("line", "caption"),
    [
        ("Figure 3.2: Different arrow tip styles", "Different arrow tip styles"),
        ("Figure 2-14: the 14 standard fonts", "the 14 standard fonts"),
        ("Table A.1: Solvers in the package.", "Solvers in the package"),
        ("Fig. 7: All markers. The white ones are filled.", "All markers"),
        ("Figure  4.1:  Polar   plots", "Polar plots"),
        ("Listing 2: Hello world in C", "Hello world in C"),
    ],
)
def test_a_caption_loses_its_number_and_what_follows_its_first_sentence(line: str, caption: str) -> None:
    assert find_captions(["nothing", f"before\n{line}\n\nafter"], set()) == [(caption, 2)]


def test_a_full_line_goes_on_in_the_next_and_a_short_one_does_not() -> None:
    assert find_captions([f"Figure 1: {LONG}\nof the data file. Left: a graph"], set()) == [
        (f"{LONG} of the data file", 1)
    ]
    assert find_captions(["Figure 1: Mirror images\nThe next command turns it"], set()) == [("Mirror images", 1)]


def test_without_any_colon_a_caption_begins_with_a_capital() -> None:
    text = "Table 5.1 The library path options\nTable 5.2 shows them.\nas in\nFigure 5.3. The example"

    assert find_captions([text], set()) == [("The library path options", 1)]


def test_in_a_manual_with_colons_a_line_without_one_is_a_reference() -> None:
    text = "Figure 1: Solving a problem\nFigure 2 The text goes on about it"

    assert find_captions([text], set()) == [("Solving a problem", 1)]


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["Figure 1: Bar graphs", "Figure 1: Error bars"], "two lines claim the number"),
        (["Figure 1: Bar graphs", "Figure 2: BAR graphs"], "two captions have the words"),
        (["Figure 1: Graphs"], "one word"),
    ],
)
def test_a_caption_that_asks_for_no_certain_page_is_no_query(texts: list[str], reason: str) -> None:
    assert find_captions(texts, set()) == [], reason


def test_a_list_of_figures_has_no_captions() -> None:
    assert find_captions(["Figure 1: Bar graphs", "Figure 1: Bar graphs"], {1}) == [("Bar graphs", 2)]
