import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny_manual import CHAPTERS, tiny_manual
from tiny_retriever import PARITY, colqwen3

from llama_index_ziprerank.app.desk import Desk


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return str(PARITY), str(colqwen3(tmp_path_factory.mktemp("retriever")))


@pytest.fixture
def desk(models: tuple[str, str]) -> Iterator[Desk]:
    desk = Desk(*models)
    yield desk
    desk.close()


def test_a_pdf_that_was_added_can_be_asked_about_until_it_is_removed(desk: Desk, tmp_path: Path) -> None:
    done: list[int] = []
    desk.add(tiny_manual(tmp_path / "manual.pdf"), done.append)
    pages = len(CHAPTERS) + 1

    assert done == list(range(1, pages + 1))
    assert [(item.name, item.pages) for item in desk.shelf] == [("manual.pdf", pages)]
    explanation = desk.ask("Bar graphs", 0.5, 3)
    assert len(explanation.pages) == pages and len(explanation.best) == 3
    assert all(page.first_stage is not None for page in explanation.best)

    desk.clear()
    assert desk.shelf == []
    with pytest.raises(ValueError, match="Drop one first"):
        desk.ask("Bar graphs", 0.5, 3)


def test_a_question_that_waits_for_the_removal_of_all_pdfs_finds_none(desk: Desk, tmp_path: Path) -> None:
    desk.add(tiny_manual(tmp_path / "manual.pdf"))
    with ThreadPoolExecutor(2) as threads:
        with desk._turn:
            removal = threads.submit(desk.clear)
            time.sleep(0.1)  # the removal is the first to wait
            answer = threads.submit(desk.ask, "Bar graphs", 0.5, 3)
            time.sleep(0.1)
        removal.result()
        with pytest.raises(ValueError, match="Drop one first"):
            answer.result()


def test_the_vision_tower_looks_at_a_page_once(desk: Desk, tmp_path: Path) -> None:
    desk.add(tiny_manual(tmp_path / "manual.pdf"))
    first, again = (desk.ask("Bar graphs", keep_ratio, 3) for keep_ratio in (1.0, 0.25))

    assert again.vision_seconds < first.vision_seconds / 2
    assert again.visual_tokens < first.visual_tokens / 2


def test_the_same_pdf_is_not_added_twice(desk: Desk, tmp_path: Path) -> None:
    manual = tiny_manual(tmp_path / "manual.pdf")
    desk.add(manual)
    done: list[int] = []
    desk.add(manual, done.append)

    assert done == [] and len(desk.shelf) == 1


def test_a_file_that_is_no_pdf_leaves_the_others(desk: Desk, tmp_path: Path) -> None:
    desk.add(tiny_manual(tmp_path / "manual.pdf"))
    (tmp_path / "text.pdf").write_text("just text")
    with pytest.raises(ValueError, match="not a PDF"):
        desk.add(tmp_path / "text.pdf")

    assert [item.name for item in desk.shelf] == ["manual.pdf"]
    assert desk.ask("Bar graphs", 1.0, 1).best
    with pytest.raises(ValueError, match="no question yet"):
        desk.ask(" \n", 1.0, 1)
