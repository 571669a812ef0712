from pathlib import Path

import pytest
from command_line import Run
from llama_index.core.schema import Document
from tiny_manual import tiny_manual
from tiny_retriever import PARITY, colqwen3

from llama_index_ziprerank import ColPaliIndex, PDFPageReader


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    documents: list[Document] = PDFPageReader().load_data(tiny_manual(folder / "<b>manual.pdf"))
    ColPaliIndex.from_documents(documents, model=str(colqwen3(folder / "model")), persist_dir=folder / "index").close()
    return folder / "index"


def test_the_report_is_written_beside_the_same_answer(run: Run, built: Path, tmp_path: Path) -> None:
    ask = ("ask", "<i>Bar graphs", "--index", built, "--model", PARITY, "--top-n", 3, "--keep-ratio", 0.5)
    _, plain, _ = run(*ask)
    code, out, err = run(*ask, "--report", tmp_path / "out.html")
    report = (tmp_path / "out.html").read_text(encoding="utf-8")

    assert code == 0 and out == plain and "Report: " in err
    assert report.count("<article>") == 3 and "keep ratio 0.5" in report
    assert "&lt;i&gt;Bar graphs" in report and "<i>Bar" not in report
    assert "&lt;b&gt;manual.pdf" in report and "<b>manual" not in report


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("out.pdf", "Name it .html"), ("nowhere/out.html", "does not exist"), ("folder.html", "is a folder")],
)
def test_a_report_that_could_not_be_saved_is_refused_before_the_work(
    run: Run, name: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.html").mkdir()
    code, out, err = run("ask", "why", "--index", "missing", "--report", name)

    assert (code, out) == (2, "") and sentence in err and err.count("\n") == 1
