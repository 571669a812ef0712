"""Every example runs as it stands, offline."""

import json
import runpy
import sys
from pathlib import Path

import httpx
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def test_every_example_says_how_it_is_started() -> None:
    for script in EXAMPLES.glob("*.py"):
        assert f"python examples/{script.name}" in script.read_text(), script.name


def test_an_existing_engine_needs_two_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = run("existing_engine.py", capsys, monkeypatch).splitlines()
    scores = [float(line.split()[0]) for line in lines]

    assert len(lines) == 3
    assert scores == sorted(scores, reverse=True)


def test_texts_and_pages_are_ranked_in_one_list(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = [line.split()[1] for line in run("mixed_nodes.py", capsys, monkeypatch).splitlines()]

    assert sorted(kinds) == ["picture"] * 3 + ["text"] * 2


def test_pages_are_found_in_a_qdrant_store(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(run("qdrant_server.py", capsys, monkeypatch).splitlines()) == 3


def test_a_data_set_of_ones_own_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = run("evaluate_engine.py", capsys, monkeypatch)

    assert [line.split()[0] for line in table.splitlines()[2:]] == ["first", "reranked", "gain"]


def test_a_teacher_of_ones_own_orders_every_list(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [json.loads(row) for row in run("own_teacher.py", capsys, monkeypatch, tmp_path / "l.jsonl").splitlines()]

    assert {row["query_id"] for row in rows} == {"q1", "q2"}
    assert all(sorted(row["openai_ranking"]) == [0, 1, 2, 3] for row in rows)


async def test_the_service_streams_pages_then_words() -> None:
    pytest.importorskip("fastapi")
    service = runpy.run_path(str(EXAMPLES / "service.py"))
    transport = httpx.ASGITransport(app=service["create_app"](service["build_engine"](pages=3)))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        answer = await client.get("/ask", params={"question": "How are error bars drawn?"})
    events = [event.split("\n") for event in answer.text.strip().split("\n\n")]

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [event[0] for event in events] == ["event: pages", *["event: words"] * (len(events) - 1)]
    assert len(json.loads(events[0][1].removeprefix("data: "))) == 3
    assert "".join(json.loads(event[1].removeprefix("data: ")) for event in events[1:]).startswith("text text")
