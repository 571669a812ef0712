"""`ziprerank bench`, as a user types it."""

import importlib.util
import json
from pathlib import Path

import pytest
from command_line import Run, runner
from PIL import Image
from tiny_retriever import PARITY

SMALL = ("--model", PARITY, "--device", "cpu", "--pages", 3, "--size", "160x200", "--repeats", 1)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `ziprerank bench`; return exit code, stdout and stderr."""
    command = runner(capsys)
    return lambda *arguments: command("bench", *arguments, "--to", tmp_path / "to")


def test_a_table_a_picture_and_figures_come_of_one_run(run: Run, tmp_path: Path) -> None:
    code, out, err = run(*SMALL, "--keep", "1,0.5", "--batch", "1,2", "--counts", "1,2", "--sizes", "96x96")
    lines = out.splitlines()
    saved = json.loads((tmp_path / "to" / "bench.json").read_text())

    assert code == 0
    assert [line.strip().split("  ")[0] for line in lines if "  160x200  " in line][:3] == [
        "the paper's way", "listwise generation", "page by page",
    ]  # fmt: skip
    assert sum(line.startswith(" ours") for line in lines) == 2 * 2 * 2 + 3 * 3
    assert "logits differ by" in out and "matmul peak" in out and "…" not in out
    assert err.strip() == f"Picture: {tmp_path / 'to' / 'bench.png'}; figures: {tmp_path / 'to' / 'bench.json'}"
    assert len(saved["rows"]) == 3 + 8 and {point["pages"] for point in saved["points"]} == {1, 2, 3}
    assert saved["difference"] < 1e-3
    assert sorted(file.name for file in (tmp_path / "to").iterdir()) == ["bench.json", "bench.png"]
    with Image.open(tmp_path / "to" / "bench.png") as picture:
        assert picture.width > 1000 and picture.convert("L").getextrema()[0] < 50


def test_json_alone_is_on_stdout(run: Run) -> None:
    code, out, _ = run(*SMALL, "--methods", "ours", "--keep", "0.25", "--json")
    report = json.loads(out)

    assert code == 0
    assert [row["label"] for row in report["rows"]] == [
        "ours, cold, keep 0.25, batch 1", "ours, warm, keep 0.25, batch 1",
    ]  # fmt: skip
    assert report["difference"] is None and report["rows"][0]["speed_up"] is None
    assert report["environment"]["dtype"] == "float32" and report["settings"]["batches"] == [1]


def test_smaller_weights_get_rows_and_a_line_on_how_far_they_move_logits(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    efficiency = "llama_index_ziprerank.evaluation.efficiency"
    monkeypatch.setattr(f"{efficiency}.settings.check_quantization", lambda name: None)
    monkeypatch.setattr(f"{efficiency}.configurations.quantize", lambda model, name: None)  # leaves them as they are
    code, out, _ = run(*SMALL, "--methods", "ours", "--keep", "1,0.5", "--quantization", "int8")
    saved = json.loads((tmp_path / "to" / "bench.json").read_text())

    assert code == 0
    assert [row["label"] for row in saved["rows"]][-2:] == [
        "ours, warm, keep 1, int8, batch 1", "ours, warm, keep 0.5, int8, batch 1",
    ]  # fmt: skip
    assert [(change["keep_ratio"], change["logits"], change["same_order"]) for change in saved["changes"]] == [
        (1.0, 0.0, True), (0.5, 0.0, True),
    ]  # fmt: skip
    assert "int8 against the full weights, keep 0.5: logits differ by 0.0e+00 at most" in out
    assert "the same order." in out and "int8: smaller weights in the language model" in out


@pytest.mark.skipif(importlib.util.find_spec("torchao") is not None, reason="torchao is installed")
def test_without_torchao_the_extra_is_named_before_anything_is_made(run: Run, tmp_path: Path) -> None:
    code, out, err = run("--model", "8b", "--quantization", "fp8")

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "pip install 'llama-index-ziprerank[quantization]'" in err
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--size", "big"), "such as 768x1000; got 'big'"),
        (("--keep", "half"), "--keep takes numbers between commas, got 'half'"),
        (("--methods", "magic"), "Methods are paper, generation, pointwise, ours; got magic"),
        (("--model", "/nowhere/model"), "No checkpoint at '/nowhere/model'"),
        (("--model", "8b", "--dtype", "int4"), "got 'int4'"),
        (("--model", "8b", "--quantization", "int4"), "quantization is one of 'int8', 'fp8', got 'int4'"),
    ],
)
def test_what_is_wrong_is_one_line_on_stderr(run: Run, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = run(*arguments)

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
