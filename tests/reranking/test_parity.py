"""Our logits against those of the paper's released code (tests/data/parity)."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llama_index_ziprerank.reranking import ListwiseReranker

PARITY = Path(__file__).parents[1] / "data" / "parity"
CASES = json.loads((PARITY / "expected.json").read_text())


@pytest.mark.parametrize("keep_ratio", ["1.0", "0.5", "0.25"])
@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_logits_order_and_length_are_those_of_the_released_code(
    reranker: ListwiseReranker, case: dict[str, Any], keep_ratio: str
) -> None:
    images = [Image.open(PARITY / "pages" / page) for page in case["pages"]]
    ranking = reranker.rerank(case["query"], images, keep_ratio=float(keep_ratio))
    assert ranking.logits == pytest.approx(case["logits"][keep_ratio], abs=1e-3)
    assert ranking.order == case["order"][keep_ratio]
    assert ranking.sequence_length == case["tokens"][keep_ratio]
