import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Run
from llama_index.core.schema import Document
from PIL import Image
from tiny_manual import CHAPTERS, tiny_manual
from tiny_retriever import PARITY, colqwen3

from llama_index_ziprerank import ColPaliIndex
from llama_index_ziprerank.cli import console, main


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colqwen3(tmp_path_factory.mktemp("retriever"))


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_manual(tmp_path_factory.mktemp("manual") / "manual.pdf")


@pytest.fixture(scope="module")
def built(manual: Path, retriever: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "index"
    with pytest.raises(SystemExit):
        main(["index", str(manual), "--to", str(folder), "--retriever", str(retriever)])
    return folder


def test_help_is_there_before_torch_and_llama_index_are_loaded() -> None:
    program = (
        "import sys\nfrom llama_index_ziprerank.cli import main\n"
        "try:\n    main(['--help'])\nfinally:\n    print(sorted({'torch', 'llama_index'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.startswith("Usage: ziprerank")
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_any_pipe_takes_any_question_and_file_name(
    encoding: str, manual: Path, retriever: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    named = shutil.copy(manual, tmp_path / "é → 😀.pdf")
    models = ["--model", str(PARITY), "--retriever", str(retriever)]
    command = [sys.executable, "-c", "from llama_index_ziprerank.cli import main; main()", "ask", "Bar → 😀"]
    as_json, as_table = (
        subprocess.run([*command, "--pdf", named, *models, *more], capture_output=True, check=True).stdout
        for more in (["--json"], [])
    )

    answer = json.loads(as_json.decode("ascii"))
    assert (answer["question"], answer["pages"][0]["file"]) == ("Bar → 😀", Path(named).name)
    assert b"rank before" in as_table


def test_pages_are_ranked_from_1_with_the_rank_they_had_before(run: Run, manual: Path, retriever: Path) -> None:
    code, out, _ = run(
        "ask", "Bar graphs", "--pdf", manual, "--model", PARITY, "--retriever", retriever, "--json", "--top-n", 9
    )
    pages = json.loads(out)["pages"]

    assert code == 0
    assert [page["rank"] for page in pages] == list(range(1, 10))
    assert sorted(page["rank_before"] for page in pages) == list(range(1, 10))
    assert [page["score"] for page in pages] == sorted((page["score"] for page in pages), reverse=True)
    before = sorted(pages, key=lambda page: page["rank_before"])
    scores_before = [page["first_stage_score"] for page in before]
    assert scores_before == sorted(scores_before, reverse=True)
    assert sorted(page["page_number"] for page in pages) == list(range(1, 10))


def test_an_index_answers_as_the_files_it_was_built_from(run: Run, manual: Path, retriever: Path, built: Path) -> None:
    question = ("ask", "Bar graphs", "--model", PARITY, "--json")
    _, from_index, _ = run(*question, "--index", built)
    _, from_file, _ = run(*question, "--pdf", manual, "--retriever", retriever)

    assert json.loads(from_index)["pages"] == json.loads(from_file)["pages"]


def test_the_table_holds_a_line_for_each_of_the_best_pages(run: Run, built: Path) -> None:
    code, out, err = run("ask", "Bar graphs", "--index", built, "--model", PARITY, "--top-n", 3)

    assert code == 0
    assert [word in out for word in ("rank", "page", "score", "rank before", "file")] == [True] * 5
    assert out.count("manual.pdf") == 3
    assert "Found in" in err


def test_a_first_stage_that_counts_for_all_keeps_its_order(run: Run, built: Path) -> None:
    question = ("ask", "Bar graphs", "--model", PARITY, "--json", "--top-n", 9, "--index", built)
    orders = {
        weight: [page["rank_before"] for page in json.loads(run(*question, "--first-stage-weight", weight)[1])["pages"]]
        for weight in (0, 1000)
    }

    assert orders[1000] == sorted(orders[0]) != orders[0]


def test_a_question_is_printed_as_it_was_typed(run: Run, built: Path) -> None:
    _, out, _ = run("ask", "[/b] a[i] :+1:", "--index", built, "--model", PARITY)

    assert out.startswith("[/b] a[i] :+1:")


def test_pages_without_a_file_or_a_number_are_shown_by_their_ids(run: Run, retriever: Path, tmp_path: Path) -> None:
    document = Document(id_="a-note", text="Bars and lines")
    ColPaliIndex.from_documents([document], model=str(retriever), persist_dir=tmp_path / "index").close()

    code, out, _ = run("ask", "Bar graphs", "--index", tmp_path / "index", "--model", PARITY)

    assert code == 0 and "a-note" in out


def test_the_picture_is_written(run: Run, built: Path, tmp_path: Path) -> None:
    code, _, err = run("ask", "Bar graphs", "--index", built, "--model", PARITY, "--picture", tmp_path / "sheet.png")

    assert code == 0 and "sheet.png" in err
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > sheet.height


def test_several_files_may_follow_one_option(run: Run, manual: Path, retriever: Path, tmp_path: Path) -> None:
    other = tiny_manual(tmp_path / "other.pdf")
    other.write_bytes(other.read_bytes() + b"\n")  # another file, so its pages have other ids
    models = ("--model", PARITY, "--retriever", retriever, "--json", "--top-n", 18)

    _, out, _ = run("ask", "Bar graphs", "--pdf", manual, other, *models)

    assert {page["file"] for page in json.loads(out)["pages"]} == {"manual.pdf", "other.pdf"}


def test_evaluating_prints_every_system_and_the_manual(run: Run, manual: Path, retriever: Path, tmp_path: Path) -> None:
    command = (
        "evaluate",
        "manuals",
        manual,
        "--kinds",
        "heading",
        "--model",
        PARITY,
        "--retriever",
        retriever,
        "--first-stage-weight",
        1,
        "--to",
        tmp_path / "results",
    )
    code, table, _ = run(*command)
    _, out, _ = run(*command, "--json")

    assert code == 0
    assert "model alone" in table
    assert [name in table for name in ("random", "bm25", "first stage", "reranked", "R@5", "manual")] == [True] * 6
    assert json.loads(out)["queries"] == len(CHAPTERS)
    assert json.loads(out)["queries_by_kind"] == {"heading": len(CHAPTERS)}
    assert json.loads(out)["queries_by_manual"] == {"manual": len(CHAPTERS)}
    assert json.loads(out)["scores"]["bm25"]["R@1"] == {"mean": 1.0, "low": 1.0, "high": 1.0}


def test_no_figure_of_drift_is_cut_on_a_narrow_terminal(
    run: Run, manual: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.out, "width", 40)
    code, out, _ = run("drift", manual, "--model", PARITY, "--pages", 2, "--lists", 1, "--length", 2)

    assert code == 0 and "…" not in out
    assert "\n features kept as bfloat16 " in out


def test_models_name_the_embedded_pair_and_the_papers_model(run: Run) -> None:
    _, table, _ = run("models")
    _, out, _ = run("models", "--json")

    assert "mtri-admin/ZipRerank" in table
    assert [model["option"] for model in json.loads(out) if model["name"] == "nano"] == ["--model", "--retriever"]


def test_a_narrow_window_cuts_no_name_of_a_model(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.out, "width", 40)
    _, table, _ = run("models")

    assert "…" not in table


def test_json_has_no_colours_even_where_they_are_forced() -> None:
    program = "from llama_index_ziprerank.cli import main; main(['models', '--json'])"
    forced = {**os.environ, "FORCE_COLOR": "1"}
    out = subprocess.run([sys.executable, "-c", program], env=forced, capture_output=True, text=True).stdout

    assert json.loads(out)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["ask", "why"], "Pass --index DIR or --pdf FILE"),
        (["ask", "why", "--index", "a", "--pdf", "b"], "not both"),
        (["ask", "why", "more.pdf"], "Pass --index DIR or --pdf FILE"),
        (["ask", "why", "--index", "a", "--retriever", "b"], "--retriever has no effect"),
        (
            ["ask", "why", "--index", "nowhere"],
            "nowhere holds no index. Build one: ziprerank index FILE.pdf --to nowhere",
        ),
        (["ask", "why", "--index", "a", "--password", "b"], "with --index none is"),
        (["ask", "why", "--index", "a", "--max-pages", "9"], "with --index none is"),
        (["ask", " \n", "--pdf", "missing.pdf"], "A question must contain text"),
        (["ask", "why", "--pdf", "missing.pdf"], "missing.pdf: cannot be read"),
        (["ask", "why", "--pdf", "text.pdf"], "text.pdf: not a PDF"),
        (["ask", "why", "--pdf", "text.pdf", "--keep-ratio", "0"], "ziprerank: keep_ratio is the part of the visual"),
        (["ask", "why", "--pdf", "text.pdf", "--first-stage-weight", "inf"], "ziprerank: first_stage_weight is 0"),
        (["ask", "why", "--pdf", "text.pdf", "--picture", "sheet.docx"], "Name it .png or .jpg"),
        (["ask", "why", "--pdf", "text.pdf", "--picture", "sheet.psd"], "Name it .png or .jpg"),
        (["ask", "why", "--pdf", "text.pdf", "--picture", "sheet.h5"], "Name it .png or .jpg"),
        (["ask", "why", "--pdf", "text.pdf", "--picture", "nowhere/sheet.png"], "does not exist"),
        (["ask", "why", "--pdf", "text.pdf", "--picture", "folder.png"], "folder.png is a folder"),
        (["index", "missing.pdf", "--to", "folder"], "missing.pdf: cannot be read"),
        (["index", "missing.pdf", "--to", "folder", "--warm", "/no/reranker"], "missing.pdf: cannot be read"),
        (["evaluate", "manuals"], "Name PDF files"),
        (["evaluate", "manuals", "text.pdf", "--pool", "1"], "pool must be at least 2"),
    ],
)
def test_what_a_user_can_set_right_is_one_line_and_exit_code_2(
    run: Run, arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.pdf").write_text("just text")
    Path("folder.png").mkdir()

    code, out, err = run(*arguments)

    assert (code, out) == (2, "")
    assert err.startswith("ziprerank: ") and err.count("\n") == 1 and sentence in err


def test_a_missing_reranker_is_told_before_pages_are_indexed(run: Run, manual: Path, tmp_path: Path) -> None:
    models = ("--retriever", "/no/retriever", "--{}", "/no/reranker")
    for command, option in ((("ask", "why", "--pdf", manual), "model"), (("index", manual, "--to", tmp_path), "warm")):
        code, _, err = run(*command, *(word.format(option) for word in models))
        assert code == 2 and "/no/reranker" in err


@pytest.mark.parametrize(
    "arguments", [["ask"], ["ask", "why", "--top-n", "0"], ["unknown"], ["index", "a.pdf"], ["bench", "--to", __file__]]
)
def test_a_command_line_that_cannot_be_read_says_how_it_is_written(run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)

    assert (code, out) == (2, "")
    assert err.startswith("Usage: ziprerank") and "Error: " in err


def test_a_wish_for_the_traceback_is_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZIPRERANK_DEBUG", "1")

    with pytest.raises(ValueError, match="Nothing to search"):
        main(["ask", "why"])
