from pathlib import Path

from PIL import Image

from llama_index_ziprerank.evaluation.throughput import measure_concurrency, measure_long_list
from llama_index_ziprerank.reranking import ListwiseReranker

PARITY = Path(__file__).parents[1] / "data" / "parity"


def test_both_measurements_run_what_they_name() -> None:
    reranker = ListwiseReranker.from_pretrained(str(PARITY / "checkpoint"), device="cpu")
    pages = reranker.encode_pages([Image.open(PARITY / "pages" / f"small-{i:03d}.png") for i in range(12, 18)])
    calls = measure_concurrency(reranker, ["axis", "bar graph"], pages[:1], repeats=1)
    assert calls.calls == 2
    assert calls.ratio == calls.one_by_one / calls.together > 0
    found = measure_long_list(reranker, "axis", pages, keep_ratio=0.1, window=3, stride=1, repeats=1)
    assert (found["sliding"].steps, found["blocks"].steps) == (4, 2)
    assert all(row.seconds > 0 and row.tokens > 0 for row in found.values())
