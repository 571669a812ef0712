"""What comes from a PDF or a question reaches the page as text, never as markup; `test_html.py` tests the templates."""

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tiny_manual import tiny_manual
from tiny_retriever import PARITY, colqwen3

gr = pytest.importorskip("gradio", reason="gradio is not installed: pip install 'llama-index-ziprerank[app]'")

from llama_index_ziprerank.app.desk import Desk  # noqa: E402
from llama_index_ziprerank.app.page import _adding, _asking  # noqa: E402

MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    desk = Desk(str(PARITY), str(colqwen3(tmp_path_factory.mktemp("retriever"))))
    yield desk
    desk.close()


class _Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen += [tag, *(name for name, _ in attributes if name.startswith("on"))]


def test_the_name_of_a_pdf_and_a_question_are_text(desk: Desk, tmp_path: Path) -> None:
    none, shelf = _adding(desk)([str(tiny_manual(tmp_path / f"{MARKUP}.pdf"))], progress=lambda *_, **__: None)
    findings, history, runs = _asking(desk)(f"Bar graphs {MARKUP}", 0.5, 2, [])
    assert none is None and "&lt;img src=x" in shelf and "&lt;img src=x" in findings
    for page in (shelf, findings, history):
        assert not {"onerror", "script"} & set(_Tags(page).seen)
    assert "img" not in _Tags(shelf).seen and "img" not in _Tags(history).seen
    assert [run.query for run in runs] == [f"Bar graphs {MARKUP}"]


def test_an_error_that_names_a_file_is_shown_as_text(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(gr, "Warning", lambda text, **_: shown.append(text))
    broken = tmp_path / f"{MARKUP}.pdf"
    broken.write_bytes(b"<script>alert(2)</script>")
    _adding(desk)([str(broken)], progress=lambda *_, **__: None)
    [text] = shown
    assert "not a PDF" in text and "<" not in text and str(tmp_path) not in text


def test_a_refused_question_is_an_error_of_the_page_and_no_crash(desk: Desk) -> None:
    with pytest.raises(gr.Error, match="no question yet|no PDF to search"):
        _asking(desk)("  ", 0.5, 2, [])
