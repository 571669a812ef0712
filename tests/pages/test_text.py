"""The laws of text as an image: everything stays on the canvas, as large as it can, drawn alike everywhere."""

import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llama_index_ziprerank.pages.text import render_text

PASSAGE = "Late interaction keeps one vector for every patch of a page, and compares each with the words of the query. "


def ink(image: Image.Image) -> np.ndarray:
    """Where something is drawn, (height, width)."""
    drawn: np.ndarray = np.asarray(image).min(axis=2) < 255
    return drawn


def test_the_canvas_is_square_rgb_of_the_size_asked_for() -> None:
    assert (render_text(PASSAGE).mode, render_text(PASSAGE).size) == ("RGB", (280, 280))
    assert render_text(PASSAGE, size=500).size == (500, 500)


@pytest.mark.parametrize("text", ["", " \n\t ", "\x00\x07\u200b"])
def test_without_anything_to_read_the_canvas_is_blank(text: str) -> None:
    assert not ink(render_text(text)).any()


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet=string.printable + "äéЖλ漢\u200d\ud800", max_size=3000))
def test_any_text_stays_inside_the_margin(text: str) -> None:
    drawn = ink(render_text(text))
    assert not (drawn[:4].any() or drawn[-4:].any() or drawn[:, :4].any() or drawn[:, -4:].any())


def test_more_text_means_smaller_letters_and_a_fuller_canvas() -> None:
    few, many = ink(render_text(PASSAGE * 2)), ink(render_text(PASSAGE * 30))
    assert np.flatnonzero(few.any(axis=1))[-1] > 200  # passages of ordinary length reach down the canvas
    assert _rows_of_letters(many) > 2 * _rows_of_letters(few)


def _rows_of_letters(drawn: np.ndarray) -> int:
    rows = drawn.any(axis=1).astype(int)
    return int((np.diff(rows) == 1).sum())


def test_the_last_word_shows_until_the_letters_are_smallest() -> None:
    text = PASSAGE * 33
    assert _differ(text + "alpha", text + "omega")


def test_what_does_not_fit_in_the_smallest_letters_is_cut() -> None:
    text = PASSAGE * 1000
    assert not _differ(text + "alpha", text + "omega")
    assert not _differ(text, PASSAGE * 900)


def test_one_word_of_a_hundred_thousand_letters_is_broken_into_lines() -> None:
    drawn = ink(render_text("m" * 100_000))
    assert _rows_of_letters(drawn) > 30


def test_white_space_is_all_the_same() -> None:
    assert not _differ("one two three", " one\n\n\ttwo\x0bthree ")


def test_composed_and_decomposed_letters_are_the_same() -> None:
    assert not _differ("caf\u00e9", "cafe\u0301")


def test_scripts_of_the_shipped_font_are_drawn_and_others_are_boxes() -> None:
    assert _differ("λόγος", "слово")
    assert not _differ("漢", "字")  # both are the box of a missing glyph


def test_a_canvas_too_small_for_letters_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 32 pixels a side, got 31"):
        render_text("text", size=31)


def _differ(one: str, other: str) -> bool:
    return bool((ink(render_text(one)) != ink(render_text(other))).any())
