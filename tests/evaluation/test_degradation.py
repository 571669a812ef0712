import numpy as np
import pytest
from PIL import Image, ImageDraw

from llama_index_ziprerank.evaluation.degradation import NOISE, degrade


@pytest.fixture
def page() -> Image.Image:
    image = Image.new("RGB", (400, 300), "white")
    ImageDraw.Draw(image).line((0, 150, 399, 150), "black", 3)
    return image


def test_none_leaves_a_page_alone(page: Image.Image) -> None:
    assert degrade(page, "none", "a") is page


def test_a_scan_is_turned_by_one_degree(page: Image.Image) -> None:
    dark = np.asarray(degrade(page, "scan", "a").convert("L")) < 128
    left, right = dark[:, 20:60].nonzero()[0].mean(), dark[:, 340:380].nonzero()[0].mean()

    assert abs(right - left) == pytest.approx(320 * np.tan(np.radians(1)), abs=1.0)


def test_a_scan_has_noise_of_the_same_size_and_mode(page: Image.Image) -> None:
    scanned = degrade(page, "scan", "a")
    paper = np.asarray(Image.new("RGB", (400, 300), (128, 128, 128)))
    noisy = np.asarray(degrade(Image.fromarray(paper), "scan", "a"))[50:250, 50:350].astype(float)

    assert (scanned.size, scanned.mode) == (page.size, "RGB")
    assert 0.4 * NOISE < noisy.std() < 1.2 * NOISE  # JPEG takes some of it


def test_a_seed_decides_the_scan(page: Image.Image) -> None:
    one, same, other = (np.asarray(degrade(page, "scan", seed)) for seed in ("a", "a", "b"))

    assert (one == same).all() and not (one == other).all()


def test_another_degradation_is_refused(page: Image.Image) -> None:
    with pytest.raises(ValueError, match="none, scan"):
        degrade(page, "fax", "a")
