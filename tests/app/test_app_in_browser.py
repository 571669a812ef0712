"""The page in a real, headless Chromium, over tiny models, with no way to any network."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from headless import chromium
from tiny_manual import tiny_manual
from tiny_retriever import PARITY, colqwen3

PATIENCE = 120_000  # milliseconds; a busy machine is not a failure
HOSTILE = "<img src=x onerror=\"document.title='broken in'\">${document.title='broken in'} {{ 7 * 7 }}"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start `ziprerank app` as a user does; whatever it asked of a network would fail."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'llama-index-ziprerank[app]'")
    folder = tmp_path_factory.mktemp("app")
    program = "from llama_index_ziprerank.cli import main; main()"
    command = [sys.executable, "-c", program, "app", str(tiny_manual(folder / "first manual.pdf"))]
    command += ["--model", str(PARITY), "--retriever", str(colqwen3(folder / "model"))]
    nowhere = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}
    environment = {**os.environ, **nowhere, "no_proxy": "127.0.0.1,localhost", "GRADIO_TEMP_DIR": str(folder / "drops")}
    with open(folder / "errors", "w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("The page is at http://127.0.0.1:"):
            pytest.fail(f"The page did not start: {line}{(folder / 'errors').read_text()}")
        yield line.split()[4]
        process.terminate()
        process.wait()
        process.stdout.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A tab that has the page open, and fails when anything was fetched from elsewhere or a script broke."""
    tab = browser.new_page()
    tab.set_default_timeout(PATIENCE)
    elsewhere: list[str] = []
    broken: list[str] = []
    tab.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else elsewhere.append(r.url))
    tab.on("pageerror", lambda error: broken.append(str(error)))
    tab.goto(address)
    tab.get_by_role("button", name="Ask", exact=True).wait_for()
    yield tab
    tab.close()
    assert (elsewhere, broken) == ([], [])


def _ask(page: Any, question: str) -> None:
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.locator("main.zr h1").get_by_text(question, exact=True).wait_for()


def _keep(page: Any, keep_ratio: float) -> None:
    field = page.get_by_label("number input for Keep ratio")
    field.fill(str(keep_ratio))
    field.press("Tab")
    page.locator(".zr-latest td").first.get_by_text(f"{keep_ratio:.3g}", exact=True).wait_for()


def test_a_question_shows_the_best_pages_with_heat_maps(page: Any) -> None:
    _ask(page, "Bar graphs")

    assert page.locator("article").count() == 5
    assert page.locator("article figure img").count() == 15
    loaded = "pictures => pictures.every(picture => picture.complete && picture.naturalWidth > 0)"
    assert page.locator("main.zr img").evaluate_all(loaded)


def test_moving_the_keep_ratio_adds_a_run_that_reads_less(page: Any) -> None:
    _ask(page, "Bar graphs")
    _keep(page, 0.5)
    _keep(page, 0.25)
    tokens = page.locator(".zr-runs tbody tr td:nth-child(2)").all_inner_texts()
    latest, middle, first = (int(text.replace(",", "")) for text in tokens)

    assert latest < middle < first


def test_a_dropped_pdf_can_be_asked_about(page: Any, tmp_path: Path) -> None:
    dropped = tiny_manual(tmp_path / "dropped.pdf")
    dropped.write_bytes(dropped.read_bytes() + b"\n")  # another file, so its pages have other ids
    page.locator("input[type=file]").set_input_files(dropped)
    page.locator(".zr-shelf").get_by_text("dropped.pdf").wait_for()
    _ask(page, "Contour lines")

    assert page.locator(".zr-page").get_by_text("dropped.pdf").count() > 0
    page.reload()  # a new tab sees what lies on the desk
    page.locator(".zr-shelf").get_by_text("dropped.pdf").wait_for()


def test_a_file_that_is_no_pdf_is_told_and_changes_nothing(page: Any, tmp_path: Path) -> None:
    (tmp_path / "text.pdf").write_text("just text")
    page.locator(".zr-shelf").get_by_text("first manual.pdf").wait_for()
    before = page.locator(".zr-shelf li").count()
    page.locator("input[type=file]").set_input_files(tmp_path / "text.pdf")
    page.get_by_text("not a PDF").first.wait_for()

    assert page.locator(".zr-shelf li").count() == before


def test_a_hostile_question_stays_text(page: Any) -> None:
    _ask(page, HOSTILE)

    assert page.title() == "ZipRerank"
    assert page.locator("main.zr img[src=x]").count() == 0


def test_an_empty_question_is_answered_with_what_to_do(page: Any) -> None:
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_text("There is no question yet").first.wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_readers_system(browser: Any, address: str, scheme: str) -> None:
    tab = browser.new_page(color_scheme=scheme)
    tab.set_default_timeout(PATIENCE)
    tab.goto(address)
    _ask(tab, "Bar graphs")
    red, green, blue = tab.locator("article").first.evaluate(
        "card => getComputedStyle(card).backgroundColor.match(/[0-9]+/g).slice(0, 3).map(Number)"
    )
    tab.close()

    assert (red + green + blue > 600) == (scheme == "light")
