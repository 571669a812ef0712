"""The report in a real, headless Chromium: what the escaping and the policy promise, a browser keeps."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from headless import chromium
from PIL import Image

from llama_index_ziprerank.pages.patch_map import PatchMap
from llama_index_ziprerank.report import write_report
from llama_index_ziprerank.reranking.explanation import Explanation, PageExplanation
from llama_index_ziprerank.reranking.ranking import RankingOptions

HOSTILE = "</title></style><img src='http://198.51.100.7/x' onerror=\"document.title='broken in'\">"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def report(tmp_path: Path) -> Path:
    values = np.linspace(0, 1, 6, dtype=np.float32).reshape(3, 2)
    reading = PatchMap(values, values > 0.4)
    pages = tuple(
        PageExplanation(HOSTILE, Image.new("RGB", (300, 400)), i, i, "A", 0.5, 0.0, 1.0, reading, reading)
        for i in (1, 2)
    )
    explanation = Explanation(HOSTILE, HOSTILE, RankingOptions(0.5), pages, 2, 99, 8, 1.0, 1.0)
    write_report(explanation, tmp_path / "report.html")
    return tmp_path / "report.html"


@pytest.mark.parametrize(("scheme", "is_bright"), [("light", True), ("dark", False)])
def test_a_browser_shows_style_and_pictures_and_asks_for_nothing(
    browser: Any, report: Path, scheme: str, is_bright: bool
) -> None:
    page = browser.new_page(color_scheme=scheme)
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(report.as_uri())
    colour = page.locator("main").evaluate(
        "main => getComputedStyle(main).backgroundColor.match(/[0-9]+/g).slice(0, 3).map(Number)"
    )
    loaded = page.locator("img").evaluate_all("all => all.every(one => one.complete && one.naturalWidth > 0)")
    title, text = page.title(), page.locator("h1").inner_text()
    page.close()

    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert complaints == [] and loaded
    assert (sum(colour) > 600) == is_bright
    assert title == f"{HOSTILE} · ZipRerank" and text == HOSTILE


def test_a_click_enlarges_a_picture_and_another_one_puts_it_back(browser: Any, report: Path) -> None:
    page = browser.new_page(viewport={"width": 1000, "height": 700})
    page.goto(report.as_uri())
    picture = page.locator("article img").first
    widths = [picture.bounding_box()["width"]]
    for _ in range(2):
        picture.click()
        widths.append(picture.bounding_box()["width"])
    page.close()

    assert widths[1] == 1000 and widths[0] == widths[2] < 400


def test_a_narrow_screen_needs_no_sideways_scrolling(browser: Any, report: Path) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 700})
    page.goto(report.as_uri())
    width = page.evaluate("document.documentElement.scrollWidth")
    page.close()

    assert width <= 360


def test_on_a_narrow_screen_the_table_of_candidates_keeps_names_legible(browser: Any, report: Path) -> None:
    page = browser.new_page(viewport={"width": 400, "height": 700})
    page.goto(report.as_uri())
    width = page.locator("td.zr-page").first.bounding_box()["width"]
    page.close()

    assert width >= 180
