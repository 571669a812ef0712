"""The commands, as a user types them."""

import json
from pathlib import Path

import datasets
import pytest
from command_line import Run, runner
from tiny_image_set import write_image_set
from tiny_manual import tiny_manual
from tiny_mmdocir import LAYOUT_RUN, PAGE_RUN, write_mmdocir
from tiny_retriever import PARITY, colqwen3

from llama_index_ziprerank.evaluation.runs import write_run


@pytest.fixture(autouse=True)
def quiet_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `ziprerank evaluate`; return exit code, stdout and stderr."""
    command = runner(capsys)
    return lambda *arguments: command("evaluate", *arguments, "--to", tmp_path / "to", "--model", PARITY)


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colqwen3(tmp_path_factory.mktemp("retriever"))


@pytest.fixture(scope="module")
def mmdocir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mmdocir(tmp_path_factory.mktemp("mmdocir"))


def test_mmdocir_prints_both_levels_by_domain(run: Run, mmdocir: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "pages.trec", PAGE_RUN, tag="by-hand")
    write_run(tmp_path / "layouts.jsonl", LAYOUT_RUN, tag="by-hand")
    runs = ("--run", tmp_path / "pages.trec", "--run", tmp_path / "layouts.jsonl")
    code, out, err = run("mmdocir", mmdocir, "--level", "both", *runs)
    macro = [line.split() for line in out.splitlines() if line.split()[:1] == ["macro"]]

    assert (code, err.strip()) == (0, f"Per question: {tmp_path / 'to'}")
    assert [line[2] for line in macro] == ["45.8", "45.5"]  # 11/24 of the pages, 0.455 of the areas
    assert [line[5] for line in macro] == ["100.0", "116.3"]  # not clipped


def test_mmdocir_makes_its_own_first_stage(run: Run, mmdocir: Path, retriever: Path) -> None:
    code, out, _ = run("mmdocir", mmdocir, "--retriever", retriever, "--queries", 2, "--json")
    [*_, micro] = json.loads(out)["page"]

    assert code == 0 and micro["name"] == "micro" and micro["questions"] == 2
    assert micro["recalls"]["first_stage"]["R@5"] == 1.0  # no document has more pages


def test_vidore_prints_a_table_for_each_set_and_their_mean(run: Run, retriever: Path, tmp_path: Path) -> None:
    sets = [write_image_set(tmp_path / name, form) for name, form in (("one", "saved"), ("two", "tsv"))]
    code, out, _ = run("vidore", *sets, "--retriever", retriever)

    assert code == 0
    assert out.count("first stage") == out.count("reranked") == 2
    assert "mean of 2 sets: nDCG@5" in out


def test_manuals_print_kinds_and_a_paired_gain(run: Run, retriever: Path, tmp_path: Path) -> None:
    manual = tiny_manual(tmp_path / "manual.pdf")
    options = ("--retriever", retriever, "--kinds", "heading,question", "--queries", 1, "--degrade", "scan")
    code, out, _ = run("manuals", manual, *options, "--ablation")
    lines = [line.split() for line in out.splitlines()]

    assert code == 0
    assert "2 queries; percent, with 95 % intervals" in out and "nDCG@5, paired:" in out
    assert [line[:2] for line in lines if line[:1] in (["heading"], ["question"])] == [
        ["heading", "1"], ["question", "1"], ["heading", "1"], ["question", "1"],
    ]  # fmt: skip
    assert sum(line[:1] == ["keep"] for line in lines) == 5
    assert "…" not in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mmdocir", "/nowhere"], "There is no /nowhere/MMDocIR_annotations.jsonl. Get MMDocIR_annotations.jsonl from"),
        (["mmdocir", "/nowhere", "--level", "word"], "level is one of page, layout, got 'word'"),
        (["mmdocir", "/nowhere", "--level", "both", "--run", "x"], "takes 2 runs, in the order page, layout; got 1"),
        (["mmdocir", "/nowhere", "--run", "/nowhere/run.trec"], "/nowhere/run.trec"),
        (["manuals"], "Name PDF files, or pass --development"),
        (["manuals", "x.pdf", "--kinds", "headings"], "choose from heading, term, caption, question, got headings"),
        (["manuals", "/nowhere/x.pdf"], "/nowhere/x.pdf: cannot be read"),
    ],
)
def test_what_is_wrong_is_one_line_on_stderr(run: Run, arguments: list[str], said: str) -> None:
    code, out, err = run(*arguments)

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_a_set_without_a_table_is_told_before_a_model_is_loaded(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = run("vidore", tmp_path / "empty", "--retriever", "/nowhere")

    assert code == 2 and "has no corpus. Wanted corpus/" in err


def test_a_set_named_twice_is_refused(run: Run, tmp_path: Path) -> None:
    folder = write_image_set(tmp_path / "set", "tsv")
    code, _, err = run("vidore", folder, folder)

    assert code == 2 and "named twice" in err
