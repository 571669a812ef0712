"""The stored notebooks are valid, up to date with their scripts, and executed without an error; slowly: they run."""

import runpy
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = ("pdf_manuals", "finetune")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")


def build() -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / "build.py"))


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_notebook_was_executed_whole_and_without_an_error(name: str) -> None:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]

    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert any(cell.outputs for cell in code)


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_notebook_has_the_words_of_its_script(name: str) -> None:
    stored = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    written = build()["read_script"](FOLDER / f"{name}.py")

    assert [cell.source for cell in stored.cells] == [cell.source for cell in written.cells]


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_notebook_is_small_enough_for_a_repository(name: str) -> None:
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 1_500_000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of jupyter's own
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name: str) -> None:
    build()["execute"](name)
