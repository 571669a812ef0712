"""How far scores move: that each option is compared with the exact way, on the same lists."""

from pathlib import Path

import pytest
from tiny_manual import tiny_manual, write_pdf
from tiny_retriever import PARITY

from llama_index_ziprerank.evaluation.efficiency.drift import Lists, kendall, measure_drift, questions_of
from llama_index_ziprerank.evaluation.efficiency.subjects import page_images, questions
from llama_index_ziprerank.labels.headings import read_outline
from llama_index_ziprerank.pages.pdf import read_pages


def test_the_exact_way_does_not_move_smaller_types_move_little_and_pruning_more() -> None:
    images = page_images(4, (160, 200))
    images[0].paste("white", (0, 60, 160, 200))
    drawn = Lists.draw(questions(2), len(images), lists=3, length=3)
    report = measure_drift(str(PARITY), images, drawn, device="cpu", keep_ratios=(0.25,))
    rows = {row.option: row for row in report.rows}
    assert (rows["exact"].same_order, rows["exact"].kendall, rows["exact"].logits) == (1, 1, 0)
    for stored in ("features kept as bfloat16", "features kept as int8"):
        assert 0 < rows[stored].logits < min(0.01, rows["keep_ratio 0.25"].logits)
    assert all(row.spread == rows["exact"].spread and row.seconds > 0 for row in report.rows)
    assert "blank parts left out" in rows and 0 < report.blank < 1


def test_orders_compare_by_their_pairs() -> None:
    assert kendall([2, 0, 1], [2, 0, 1]) == 1
    assert kendall([0, 1, 2], [2, 1, 0]) == -1
    assert kendall([0, 1, 2], [1, 0, 2]) == pytest.approx(1 / 3)  # one of three pairs is turned round
    assert kendall([0], [0]) == 1


def test_lists_come_from_the_seed_and_hold_each_page_once() -> None:
    drawn = Lists.draw(["a", "b"], 9, lists=5, length=4, seed=1)
    assert drawn == Lists.draw(["a", "b"], 9, lists=5, length=4, seed=1)
    assert all(len(set(pages)) == 4 for pages in drawn.pages)
    with pytest.raises(ValueError, match="A list of 4 pages needs as many, got 3"):
        Lists.draw(["a"], 3, lists=1, length=4)


def test_questions_are_the_manuals_own_about_the_pages_that_are_ranked(tmp_path: Path) -> None:
    path = tiny_manual(tmp_path / "manual.pdf")
    pages = list(read_pages(path))
    assert questions_of(pages, read_outline(path))[:2] == ["Bar graphs", "Contour lines"]
    assert questions_of(pages[:2], read_outline(path)) == ["Bar graphs", "What are bar graphs?"]


def test_a_manual_without_outline_and_captions_is_asked_made_up_questions(tmp_path: Path) -> None:
    pages = list(read_pages(write_pdf(tmp_path / "bare.pdf", [["Some words."], ["Others."]])))
    assert questions_of(pages, []) == questions(10)
