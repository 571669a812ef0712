"""nano's learning curves come out of the stages' logs."""

from pathlib import Path

import pytest
from PIL import Image

from llama_index_ziprerank.training.nano.curves import draw_curves, read_curve


def test_a_curve_is_read_line_by_line_and_averaged(tmp_path: Path) -> None:
    log = tmp_path / "retrieval.log"
    log.write_text("10 0.10 min 20xNone loss 1.2 top1 0.500\nnoise\n20 0.30 min 20xNone loss 1.0 top1 0.700\n")
    minutes, shares = read_curve(log, r"([\d.]+) min .*top1 ([\d.]+)", 2)
    assert minutes.tolist() == pytest.approx([0.2])
    assert shares.tolist() == pytest.approx([0.6])


def test_what_was_trained_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "retrieval").mkdir()
    (tmp_path / "retrieval" / "retrieval.log").write_text("10 0.10 min 20xNone loss 1.2 top1 0.500\n" * 3)
    draw_curves(tmp_path, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 300
    with pytest.raises(FileNotFoundError, match="train first"):
        draw_curves(tmp_path / "retrieval", tmp_path / "none.png")
