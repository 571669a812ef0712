"""Every question searches its document."""

import numpy as np
import pytest

from llama_index_ziprerank.training.finetune.first_stage import max_sim


@pytest.mark.parametrize("count", [1, 64, 130])
def test_questions_in_blocks_score_as_one_by_one(count: int) -> None:
    rng = np.random.default_rng(count)
    asked = [rng.standard_normal((int(length), 8), dtype=np.float32) for length in rng.integers(1, 9, count)]
    page = rng.standard_normal((50, 8), dtype=np.float32)
    by_hand = [sum(max(token @ patch for patch in page) for token in question) for question in asked]
    assert max_sim(asked, page) == pytest.approx(by_hand, abs=1e-4)
