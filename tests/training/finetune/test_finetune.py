"""From PDF files to a checkpoint by one command: what comes out, what is kept, and what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from llm_server import LLMServer, Reply
from PIL import Image
from pypdf import PdfWriter
from pypdf.generic import DictionaryObject
from tiny_manual import CHAPTERS, write_pdf
from training_lists import weights_of
from typer.testing import CliRunner

from llama_index_ziprerank import ZipRerankPostprocessor
from llama_index_ziprerank.cli.finetune import _gain
from llama_index_ziprerank.cli.finetune import finetune as command
from llama_index_ziprerank.reranking import ListwiseReranker
from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder
from llama_index_ziprerank.training.finetune import run
from llama_index_ziprerank.training.finetune.lists import write_lists
from llama_index_ziprerank.training.finetune.plan import Clock, StopInTime
from llama_index_ziprerank.training.hold import hold
from llama_index_ziprerank.training.run import train
from llama_index_ziprerank.training.teacher import LabelFile, TeacherQuery

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft 0.20 asks for it

Finetune = Callable[..., Result]


@pytest.fixture
def finetune(checkpoint: Path, retriever: Path, manual: Path, tmp_path: Path) -> Finetune:
    """Run the command on the tiny manual with tiny models."""
    app = typer.Typer()
    app.command()(command)
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"max_steps": 4, "save_steps": 2, "max_candidates": 4}))

    def invoke(*flags: str, pdfs: Sequence[Path] = (manual,)) -> Result:
        models = ["--model", str(checkpoint), "--retriever", str(retriever), "--recipe", str(recipe)]
        return CliRunner().invoke(app, [*map(str, pdfs), "--output", str(tmp_path / "out"), *models, *flags])

    return invoke


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_command_makes_a_reranker_and_a_table_before_and_after(
    finetune: Finetune, checkpoint: Path, tmp_path: Path
) -> None:
    done = finetune()
    assert done.exit_code == 0, done.exception
    assert "| | BM25 | first stage | before training | after training |" in done.stdout
    assert re.search(r"recall@1 changed by [+-]\d", done.stdout)
    assert "Teacher: the text layer, BM25 alone." in done.stderr
    assert re.search(r"About 1 min from here: \d+ of \d+ held-out questions .*; 4 steps \(", done.stderr)
    out = tmp_path / "out"
    card = (out / "README.md").read_text()
    assert "| | BM25 | first stage | before training | after training |" in card
    assert "about `manual`, ordered by the text layer, BM25 alone" in card
    assert ZipRerankPostprocessor(model=str(out), device="cpu").model == str(out)
    start, end = weights_of(checkpoint), weights_of(out)
    assert any((start[name] != end[name]).any() for name in start)
    page = Image.new("RGB", (64, 64))
    assert sorted(ListwiseReranker.from_pretrained(str(out), device="cpu").rerank("grid", [page, page]).order) == [0, 1]


def test_what_training_changed_is_told() -> None:
    before, after = ({"q": {"recall@1": value}} for value in (0.0, 1.0))
    result = run.Finetuned(Path(), {"before training": before, "after training": after}, lists=1, questions=1)
    assert _gain(result) == "recall@1 changed by +100.0 points, 95 % interval [+100.0, +100.0]"
    worse = replace(result, figures={"before training": after, "after training": before})
    assert _gain(worse).endswith("[-100.0, -100.0]: it ranks worse now. Keep the model that it began with.")


def test_what_training_changed_is_told_without_the_extra_for_evaluation() -> None:
    program = (
        "import sys\nsys.modules['ir_measures'] = None\n"
        "from pathlib import Path\n"
        "from llama_index_ziprerank.cli.finetune import _gain\n"
        "from llama_index_ziprerank.training.finetune.run import Finetuned\n"
        "figures = {'before training': {'q': {'recall@1': 0.0}}, 'after training': {'q': {'recall@1': 1.0}}}\n"
        "print(_gain(Finetuned(Path(), figures, lists=1, questions=1)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.startswith("recall@1 changed by +100.0 points")


def test_answers_with_line_separators_of_unicode_become_lists(tmp_path: Path) -> None:
    query = TeacherQuery("q1", "a\u2028b", "manual", "", ("p-1", "p-2"), ("p-1",), (2.0, 1.0))
    with LabelFile(tmp_path / "labels.jsonl") as labels:
        labels.add(query, [0, 1], "[A] > [B]\u2028Because it says so.\x85")
    assert write_lists(tmp_path / "labels.jsonl", tmp_path / "lists.jsonl", tmp_path / "pages") == 1


def test_no_page_of_a_held_out_heading_is_taught_as_an_answer(finetune: Finetune, tmp_path: Path) -> None:
    assert finetune("--held-out", "0.4").exit_code == 0
    work = tmp_path / "out" / "work"
    labelled, held = rows(work / "labels.jsonl"), json.loads((work / "before.json").read_text())["figures"]
    taught = {page for row in labelled for page in row["gt_page_ids"]}
    assert not {row["query_id"] for row in labelled} & set(held)
    assert len(held) >= 0.4 * (len(held) + len(labelled))
    assert 1 <= len(taught) <= len(CHAPTERS) - 3  # every chapter has a page of its own, and two questions at most


def test_every_list_holds_a_page_that_answers_it_and_the_teachers_order(finetune: Finetune, tmp_path: Path) -> None:
    assert finetune().exit_code == 0
    lists = rows(tmp_path / "out" / "work" / "lists.jsonl")
    for row in lists:
        assert len(row["pages"]) == 4 and len(row["positives"]) == 1
        assert sorted(row["order"]) == [0, 1, 2, 3]
        assert row["order"][0] == row["positives"][0]  # the page that says the words


def test_an_interrupted_run_goes_on_and_does_nothing_twice(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PowerCutError(Exception):
        pass

    def cut(*_: object, **__: object) -> None:
        raise PowerCutError

    for place in ("_first_stage", "_label", "train"):
        with monkeypatch.context() as context:
            context.setattr(run, place, cut)
            assert isinstance(finetune().exception, PowerCutError)
    out = tmp_path / "out"
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert {path.suffix for path in kept} >= {".png", ".npy", ".jsonl", ".json"}
    encoded: list[object] = []
    monkeypatch.setattr(MultiVectorEncoder, "_try_batch", lambda self, images: encoded.append(images))
    assert finetune().exit_code == 0
    assert not encoded
    changed = [path.name for path, time in kept.items() if path.exists() and path.stat().st_mtime_ns != time]
    assert not changed
    weights = weights_of(out)
    assert finetune().exit_code == 0
    assert all((weights_of(out)[name] == weight).all() for name, weight in weights.items())


def test_a_machine_that_becomes_slower_ends_in_time_and_the_same_command_goes_on(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.setattr(run, "train", lambda recipe, callbacks: train(recipe, [StopInTime(Clock(0.001), 60.0)]))
        done = finetune("--minutes", "15")
    assert done.exit_code == 0, done.exception
    assert "The time was up after 1 of 4 steps. The same command, run again, goes on." in done.stderr
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-1"]
    done = finetune("--minutes", "15")
    assert done.exit_code == 0, done.exception
    assert "The time was up" not in done.stderr
    assert (tmp_path / "out" / "checkpoint-4").is_dir()


def test_an_output_folder_is_not_shared(finetune: Finetune, manual: Path, tmp_path: Path) -> None:
    assert finetune().exit_code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.json*")}
    assert "holds a fine-tuning with other seed" in str(finetune("--seed", "1").exception)
    assert "holds a fine-tuning with --minutes" in str(finetune("--minutes", "3").exception)
    other = write_pdf(tmp_path / "other.pdf", [["one"], ["two"]])
    assert "with other files" in str(finetune(pdfs=[manual, other]).exception)
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.json*")}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    done = CliRunner().invoke(_app(), [str(manual), "--output", str(tmp_path / "full")])
    assert "is not empty. Name another" in str(done.exception)


def test_two_runs_do_not_work_in_one_output_folder_at_the_same_time(finetune: Finetune, tmp_path: Path) -> None:
    assert isinstance(finetune("--minutes", "0.001").exception, ValueError)  # leaves what it has read
    with (tmp_path / "out" / "work" / "settings.json").open("rb") as told:
        hold(told, tmp_path / "out")
        assert re.search("Another process is at work on .*out", str(finetune().exception))
    assert finetune().exit_code == 0


def test_a_wrong_file_does_not_claim_the_output_folder(manual: Path, tmp_path: Path) -> None:
    writer = PdfWriter(clone_from=manual)
    pages = writer.root_object["/Pages"].get_object()["/Kids"]
    pages[1] = DictionaryObject(pages[1].get_object())  # poppler shows it, pypdf cannot number it
    writer.write(tmp_path / "outline.pdf")
    page = tmp_path / "page.html"
    page.write_text("<!doctype html>")
    for name in ("page.html", "nowhere.pdf", "outline.pdf"):
        done = CliRunner().invoke(_app(), [str(tmp_path / name), "--output", str(tmp_path / "out")])
        assert f"{name}: " in str(done.exception)
        assert not (tmp_path / "out").exists()


def _app() -> typer.Typer:
    app = typer.Typer()
    app.command()(command)
    return app


def test_what_a_user_can_set_right_is_said(finetune: Finetune, manual: Path, tmp_path: Path) -> None:
    bare = write_pdf(tmp_path / "bare.pdf", [["one"], ["two"], ["three"]])
    single = write_pdf(tmp_path / "single.pdf", [["one"]])
    (tmp_path / "a").mkdir()
    twin = tmp_path / "a" / "manual.pdf"
    twin.write_bytes(manual.read_bytes())
    for flags, pdfs, message in (
        ((), [tmp_path / "nowhere.pdf"], "nowhere.pdf: cannot be read"),
        ((), [bare], "0 questions can be made .* of bare. Configure an LLM"),
        ((), [single], "has 1 pages that can answer a question, wanted at least 2"),
        ((), [manual, twin], "Each PDF needs a name of its own"),
        (("--held-out", "1.5"), [manual], "held_out is a share between 0 and 1, got 1.5"),
        (("--minutes", "-1"), [manual], "minutes is at least 0 .no limit., got -1"),
        (("--minutes", "0.001"), [manual], "min are left, but one step takes"),
        (("--held-out", "0.99"), [manual], "leave 0 to train on"),
        (("--model", "./nowhere"), [manual], "No checkpoint at './nowhere'"),
        (("--retriever", "./nowhere"), [manual], "No checkpoint at './nowhere'"),
        (("--recipe", "nowhere.yaml"), [manual], "No recipe at 'nowhere.yaml'"),
        (("--lora-rank", "-1"), [manual], "lora_rank is at least 0, got -1"),
        (("--llm", "x", "--embeddings", "y"), [manual], "pass --llm or --embeddings, not both"),
    ):
        output = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        output.mkdir()
        done = finetune(*flags, "--output", str(output), pdfs=pdfs)
        assert isinstance(done.exception, ValueError | OSError), done.exception
        assert re.search(message, str(done.exception)), done.exception


class WritingServer(LLMServer):
    """Also writes questions about the page that it is shown, and finds the darkest page most relevant."""

    def _take(self, request: dict[str, Any]) -> tuple[Reply, str]:
        words, *pictures = request["messages"][-1]["content"]
        if "Search Query:" in words["text"]:
            return super()._take(request)
        with self._lock:
            self.asked["questions"] += 1
            number = self.asked["questions"]
        if number == 2:
            return Reply(text="I cannot read this."), ""
        return Reply(text=f"1. What is said in place {number} of it?\n- Why is {number} there?\nThat is all."), ""


def test_an_llm_writes_the_questions_and_orders_the_candidates(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from threading import Thread

    server = WritingServer(lambda query, time: Reply())
    thread = Thread(target=server.serve, daemon=True)
    thread.start()
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    try:
        flags = ("--llm", "seer", "--api-base", server.url, "--questions-per-page", "2")
        done = finetune(*flags)
        assert done.exit_code == 0, done.exception
        asked = server.asked.copy()
        assert finetune(*flags).exit_code == 0
    finally:
        server.close()
        thread.join()
    assert asked["questions"] == len(CHAPTERS) + 1  # one answer held no question
    assert server.asked == asked
    written = rows(tmp_path / "out" / "work" / "questions-manual.jsonl")
    assert len(written) == len(CHAPTERS) and all(len(row["questions"]) == 2 for row in written)
    labelled = rows(tmp_path / "out" / "work" / "labels.jsonl")
    assert all(row["openai_response"].startswith("[") for row in labelled)
    assert "ordered by seer" in (tmp_path / "out" / "README.md").read_text()
    assert "Teacher: seer." in done.stderr


@pytest.mark.slow
def test_a_full_disk_is_a_clear_error_and_the_same_command_goes_on(
    checkpoint: Path, retriever: Path, manual: Path, tmp_path: Path
) -> None:
    """The output folder lies on a file system of its own, which is too small until a file is removed from it."""
    namespace = ["unshare", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("this system gives no mount namespace")
    disk = tmp_path / "disk"
    disk.mkdir()
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"max_steps": 2, "save_steps": 1, "max_candidates": 4}))
    command = [sys.executable, "-c", "import sys; from llama_index_ziprerank.cli import main; main(sys.argv[1:])"]
    flags = ["--model", str(checkpoint), "--retriever", str(retriever), "--recipe", str(recipe)]
    script = f"""
        mount -t tmpfs -o size=80m tmpfs "{disk}"
        head -c 83850000 /dev/zero > "{disk}/ballast"
        "$@"; echo "first $?"
        rm "{disk}/ballast"
        "$@"; echo "second $?"
    """
    run_again = [*command, "finetune", str(manual), "--output", str(disk / "out"), *flags]
    done = subprocess.run(
        [*namespace, "sh", "-c", script, "-", *run_again],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
    )
    assert "first 2" in done.stdout and "second 0" in done.stdout, done.stderr
    assert "is full" in done.stderr and "Make room, then run the same command again." in done.stderr
    assert "| | BM25 | first stage |" in done.stdout
