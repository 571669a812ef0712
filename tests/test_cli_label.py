import inspect
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command_line import Run, runner
from llm_server import COMPLETION_TOKENS, GREYS, PROMPT_TOKENS, Reply, llm_server, write_pages, write_queries
from tiny_manual import tiny_manual

from llama_index_ziprerank.cli.label import label
from llama_index_ziprerank.training.teacher import TeacherSettings


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_BASE", raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `ziprerank label`; return exit code, stdout and stderr."""
    return partial(runner(capsys), "label")


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    return write_pages(tmp_path / "pages")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_query_is_ranked_by_a_server_that_misbehaves_in_every_way(run: Run, pages: Path, tmp_path: Path) -> None:
    queries, to = write_queries(tmp_path / "queries.jsonl", 8), tmp_path / "out" / "labels.jsonl"
    moods = {
        "shade 0": Reply(status=429, headers={"Retry-After": "0"}),
        "shade 1": Reply(status=500),
        "shade 2": Reply(silent=True),
        "shade 3": Reply(text="no idea"),
        "shade 4": Reply(body=b"<html>", headers={"content-type": "text/html"}),
        "shade 5": Reply(text="[C] > [A]"),
    }
    with llm_server(lambda query, time: moods.get(query, Reply()) if time == 1 else Reply()) as server:
        arguments = ("--pages", pages, "--to", to, "--api-base", server.url, "--timeout", 6, "--concurrency", 3)
        code, out, err = run(queries, *arguments, "--prompt-price", 1, "--completion-price", 10, "--json")
        totals = json.loads(out)
        answers = 9  # eight queries; "no idea" was paid for as well

        assert (code, err) == (0, "")
        assert {row["query_id"]: row["openai_ranking"] for row in rows(to)} == {
            f"q{number}": [2, 0, 1, 3, 4, 5, 6] if number == 5 else [6, 5, 4, 3, 2, 1, 0] for number in range(8)
        }
        assert (totals["labelled"], totals["failed"], totals["requests"]) == (8, 0, 13)
        assert (totals["completed_by_rule"], totals["unreadable"]) == (1, 1)
        assert totals["prompt_tokens"] == answers * PROMPT_TOKENS
        assert totals["cost"] == pytest.approx(answers * (PROMPT_TOKENS * 1 + COMPLETION_TOKENS * 10) / 1e6)
        assert server.models == {"gpt-5-mini"} and server.most_at_a_time <= 4  # 3, and the silent one it gave up


def test_a_killed_run_goes_on_and_has_every_row_once(run: Run, pages: Path, tmp_path: Path) -> None:
    queries, to = write_queries(tmp_path / "queries.jsonl", 30), tmp_path / "labels.jsonl"
    program = "import sys\nfrom llama_index_ziprerank.cli import main\nmain(sys.argv[1:])"
    with llm_server(lambda query, time: Reply(delay=0.1)) as server:
        arguments = [str(queries), "--pages", str(pages), "--to", str(to), "--api-base", server.url]
        process = subprocess.Popen([sys.executable, "-c", program, "label", *arguments], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (to.exists() and to.read_bytes().count(b"\n") >= 10) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = to.read_bytes().count(b"\n")
        code, out, _ = run(*arguments, "--json")
        totals = json.loads(out)

    assert 10 <= kept < 30
    assert code == 0 and (totals["already_labelled"], totals["labelled"]) == (kept, 30 - kept)
    assert sorted(row["query"] for row in rows(to)) == sorted(f"shade {number}" for number in range(30))


@pytest.mark.parametrize("is_deaf", [False, True])
def test_a_terminated_run_tells_its_totals_and_leaves_no_temporary_folder(
    pages: Path, tmp_path: Path, is_deaf: bool
) -> None:
    """Deaf to Ctrl-C: a job that a script puts in the background, or under nohup."""
    queries, to = write_queries(tmp_path / "queries.jsonl", 30), tmp_path / "labels.jsonl"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    deaf = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" if is_deaf else ""
    program = deaf + "import sys\nfrom llama_index_ziprerank.cli import main\nmain(sys.argv[1:])"
    with llm_server(lambda query, time: Reply(delay=0.1)) as server:
        arguments = [str(queries), "--pages", str(pages), "--to", str(to), "--api-base", server.url, "--json"]
        process = subprocess.Popen(
            [sys.executable, "-c", program, "label", *arguments],
            stdout=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
        deadline = time.monotonic() + 60
        while not (to.exists() and to.read_bytes().count(b"\n") >= 3) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.terminate()
        out, _ = process.communicate()

    assert process.returncode == 128 + signal.SIGTERM
    assert json.loads(out)["labelled"] == to.read_bytes().count(b"\n")
    assert not [*temporary.glob("ziprerank-*")]


def test_pages_of_a_pdf_are_named_by_file_and_number(run: Run, tmp_path: Path) -> None:
    tiny_manual(tmp_path / "manual.pdf")
    candidates = [f"manual.pdf#{number}" for number in (2, 9, 4)]
    queries = write_queries(tmp_path / "queries.jsonl", 1, candidate_page_ids=candidates, gt_page_ids=["manual.pdf#9"])
    with llm_server(lambda query, time: Reply(text="[B] > [C] > [A]")) as server:
        arguments = ("--pages", tmp_path, "--to", tmp_path / "labels.jsonl", "--api-base", server.url)
        code, _, _ = run(queries, *arguments, "--image-side", 100)
        [row] = rows(tmp_path / "labels.jsonl")

        assert code == 0 and row["ranked_page_ids"] == ["manual.pdf#9", "manual.pdf#4", "manual.pdf#2"]
        assert server.sizes == [(75, 100)] * 3


def test_queries_left_without_a_ranking_are_named_counted_and_exit_code_1(
    run: Run, pages: Path, tmp_path: Path
) -> None:
    queries, to = write_queries(tmp_path / "queries.jsonl", 3), tmp_path / "labels.jsonl"
    with llm_server(lambda query, time: Reply(status=400) if query == "shade 1" else Reply()) as server:
        code, table, _ = run(queries, "--pages", pages, "--to", to, "--api-base", server.url)
    counted = {" ".join(line.split()[:-1]): line.split()[-1] for line in table.splitlines()[1:]}

    assert code == 1
    assert (counted["labelled"], counted["failed"], counted["prompt tokens"]) == ("2", "1", "2,000")
    assert sorted(row["query_id"] for row in rows(to)) == ["q0", "q2"]


def test_a_run_that_only_fails_says_why_and_what_it_cost(run: Run, pages: Path, tmp_path: Path) -> None:
    queries = write_queries(tmp_path / "queries.jsonl", 20)
    with llm_server(lambda query, time: Reply(status=401)) as server:
        code, out, err = run(
            queries, "--pages", pages, "--to", tmp_path / "labels.jsonl", "--api-base", server.url, "--json"
        )

    assert code == 2 and 10 <= json.loads(out)["failed"] < 18  # those in flight may still fail
    assert "10 queries failed in a row" in err and "401" in err


def test_the_commands_defaults_are_the_teachers() -> None:
    settings = TeacherSettings()
    for name in ("concurrency", "attempts", "timeout"):
        assert inspect.signature(label).parameters[name].default == getattr(settings, name)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["queries.jsonl", "--pages", "pages"], "Set OPENAI_API_KEY"),
        (["nowhere.jsonl", "--pages", "pages"], "nowhere.jsonl"),
        (["queries.jsonl", "--pages", "nowhere"], "nowhere is no folder"),
        (["other.jsonl", "--pages", "pages"], "Page 'elsewhere': pages holds no elsewhere.png"),
        (["wrong.jsonl", "--pages", "pages"], "line 1: query must be a question"),
        (["queries.jsonl", "--pages", "pages", "--prompt-price", "1"], "pass --prompt-price and --completion-price"),
        (["queries.jsonl", "--pages", "pages", "--timeout", "0"], "timeout must be positive"),
    ],
)
def test_what_a_user_can_set_right_is_one_line_before_any_request(
    run: Run, pages: Path, arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_queries(Path("queries.jsonl"), 1)
    write_queries(Path("other.jsonl"), 1, candidate_page_ids=[*GREYS][:2] + ["elsewhere"])
    write_queries(Path("wrong.jsonl"), 1, query="")

    code, out, err = run(*arguments, "--to", "labels.jsonl")

    assert (code, out) == (2, "")
    assert err.startswith("ziprerank: ") and err.count("\n") == 1 and sentence in err
    assert not os.path.exists("labels.jsonl")


def test_without_the_extra_the_error_says_how_to_get_it() -> None:
    program = (
        "import sys\nsys.modules['tenacity'] = None\n"
        "from llama_index_ziprerank.cli import main\n"
        "main(['label', 'queries.jsonl', '--pages', '.', '--to', 'labels.jsonl'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.returncode == 2
    assert "pip install 'llama-index-ziprerank[training]'" in done.stderr
