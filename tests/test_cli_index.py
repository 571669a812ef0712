"""`ziprerank index` and `ask` over PDF files that change, are locked, broken or long."""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Run
from pypdf import PdfReader, PdfWriter
from pypdf.generic import RectangleObject
from tiny_manual import write_pdf
from tiny_retriever import PARITY, colqwen3

from llama_index_ziprerank import ColPaliIndex, PDFPageReader
from llama_index_ziprerank.cli.console import plain_warnings
from llama_index_ziprerank.pages.page import PageWarning


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colqwen3(tmp_path_factory.mktemp("retriever"))


@pytest.fixture
def index(run: Run, retriever: Path, tmp_path: Path) -> Callable[..., str]:
    """Index files in the folder `index`; return what is said."""

    def index(*arguments: object) -> str:
        code, out, err = run("index", *arguments, "--to", tmp_path / "index", "--retriever", retriever)
        assert (code, out) == (0, ""), err
        return err

    return index


def pages_of(folder: Path) -> dict[str, list[str]]:
    """The texts of the indexed pages, by the path of their file."""
    with ColPaliIndex.load(folder) as built:
        nodes = sorted(built.nodes(), key=lambda node: (node.metadata["file_path"], node.metadata["page_number"]))
    texts: dict[str, list[str]] = {}
    for node in nodes:
        texts.setdefault(node.metadata["file_path"], []).append(node.text)
    return texts


def test_a_changed_file_takes_the_place_of_its_old_version(index: Callable[..., str], tmp_path: Path) -> None:
    manual = write_pdf(tmp_path / "manual.pdf", [["alpha"], ["beta"], ["gamma"]])
    other = write_pdf(tmp_path / "other.pdf", [["omega"]])
    assert "holds 4 pages" in index(manual, other)

    write_pdf(manual, [["alpha"], ["delta"]])

    assert "holds 3 pages" in index(manual)
    assert pages_of(tmp_path / "index") == {str(manual): ["alpha", "delta"], str(other): ["omega"]}
    assert "holds 3 pages" in index(manual, other)


def test_a_file_is_the_same_however_its_path_is_written_and_another_of_its_name_is_not(
    index: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        write_pdf(Path("manual.pdf"), [[f"of {name}"]])
        index("manual.pdf")
    write_pdf(tmp_path / "a" / "manual.pdf", [["new of a"]])

    assert "holds 2 pages" in index("../a/manual.pdf")
    assert list(pages_of(tmp_path / "index").values()) == [["new of a"], ["of b"]]


def test_the_features_of_pages_that_left_are_forgotten_and_those_of_new_ones_kept(
    index: Callable[..., str], tmp_path: Path
) -> None:
    manual = write_pdf(tmp_path / "manual.pdf", [["alpha"], ["beta"], ["gamma"]])
    index(manual, "--warm", PARITY)
    write_pdf(manual, [["alpha"], ["delta"]])

    said = index(manual, "--warm", PARITY)

    assert "Vision features of" in said
    assert len(list((tmp_path / "index" / "features").rglob("*.safetensors"))) == 2


def test_pages_are_added_to_a_pooled_index_as_it_was_begun(
    index: Callable[..., str], retriever: Path, tmp_path: Path
) -> None:
    manual = write_pdf(tmp_path / "manual.pdf", [["alpha"]])
    ColPaliIndex.from_documents([], model=str(retriever), persist_dir=tmp_path / "index", pool_factor=3).close()
    index(manual)

    def score(built: ColPaliIndex) -> float:
        with built:
            return built.as_retriever().retrieve("alpha")[0].get_score()

    pooled, whole = (
        ColPaliIndex.from_documents(PDFPageReader().load_data(manual), model=str(retriever), pool_factor=factor)
        for factor in (3, 1)
    )
    expected = score(pooled)
    assert score(ColPaliIndex.load(tmp_path / "index")) == pytest.approx(expected, abs=1e-5)
    assert expected != pytest.approx(score(whole), abs=1e-3)


def test_an_index_of_another_model_is_refused_as_it_is(run: Run, index: Callable[..., str], tmp_path: Path) -> None:
    manual = write_pdf(tmp_path / "manual.pdf", [["alpha"]])
    index(manual)
    before = pages_of(tmp_path / "index")

    code, _, err = run("index", manual, "--to", tmp_path / "index", "--retriever", colqwen3(tmp_path / "other", seed=1))

    assert code == 2 and "was built with" in err and "their vectors do not mix" in err
    assert pages_of(tmp_path / "index") == before


def locked(path: Path) -> Path:
    writer = PdfWriter(clone_from=PdfReader(write_pdf(path, [["alpha"], ["beta"]])))
    writer.encrypt("geheim", algorithm="RC4-128")
    writer.write(path)
    return path


def test_a_password_opens_an_encrypted_file(
    run: Run, index: Callable[..., str], retriever: Path, tmp_path: Path
) -> None:
    file = locked(tmp_path / "locked.pdf")
    code, _, err = run("index", file, "--to", tmp_path / "index")
    assert code == 2 and "Pass the right `password`" in err

    assert "holds 2 pages" in index(file, "--password", "geheim")
    models = ("--model", PARITY, "--retriever", retriever)
    code, out, _ = run("ask", "alpha", "--pdf", file, "--password", "geheim", "--json", *models)
    assert code == 0 and len(json.loads(out)["pages"]) == 2


def broken(path: Path) -> Path:
    """Three pages, the second of them as large as a town."""
    writer = PdfWriter(clone_from=PdfReader(write_pdf(path, [["alpha"], ["beta"], ["gamma"]])))
    writer.pages[1].mediabox = RectangleObject((0, 0, 10_000_000, 10_000_000))
    writer.write(path)
    return path


def test_a_broken_page_is_left_out_when_asked_and_named_in_one_line(
    run: Run, index: Callable[..., str], retriever: Path, tmp_path: Path
) -> None:
    file = broken(tmp_path / "broken.pdf")
    code, _, err = run("index", file, "--to", tmp_path / "index", "--retriever", retriever)
    assert code == 2 and err.endswith("Pass --skip-broken to leave such pages out.\n")

    said = index(file, "--skip-broken")

    assert re.fullmatch(
        r"\S+broken\.pdf, page 2: its size is absurd, .* Skipped\.\nThe index .* holds 2 pages; .*\n", said
    )
    assert pages_of(tmp_path / "index") == {str(file): ["alpha", "gamma"]}


def test_warnings_of_another_kind_stay_pythons_own() -> None:
    with pytest.warns(UserWarning, match="of another kind"), plain_warnings(PageWarning):
        warnings.warn("of another kind", UserWarning, stacklevel=1)


def test_a_long_file_is_read_when_the_limit_is_raised(run: Run, index: Callable[..., str], tmp_path: Path) -> None:
    file = write_pdf(tmp_path / "long.pdf", [["alpha"], ["beta"], ["gamma"]])
    code, _, err = run("index", file, "--to", tmp_path / "index", "--max-pages", 2)
    assert code == 2 and "has 3 pages, the limit is 2" in err

    assert "holds 3 pages" in index(file, "--max-pages", 3)


def test_an_index_without_pages_says_so(run: Run, retriever: Path, tmp_path: Path) -> None:
    ColPaliIndex.from_documents([], model=str(retriever), persist_dir=tmp_path / "index").close()

    code, out, err = run("ask", "why", "--index", tmp_path / "index", "--model", PARITY)

    assert (code, out) == (2, "")
    assert f"holds no pages. Add some: ziprerank index FILE.pdf --to {tmp_path / 'index'}" in err


def test_as_many_pages_are_shown_as_asked_for(run: Run, index: Callable[..., str], tmp_path: Path) -> None:
    index(write_pdf(tmp_path / "long.pdf", [[f"page {number}"] for number in range(1, 24)]))

    _, out, _ = run("ask", "page", "--index", tmp_path / "index", "--model", PARITY, "--json", "--top-n", 22)

    assert [page["rank"] for page in json.loads(out)["pages"]] == list(range(1, 23))
