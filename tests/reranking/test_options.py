"""What is not asked for is decided by the checkpoint's config, then by the paper."""

from typing import Any

import pytest
from PIL import Image
from transformers import PreTrainedConfig

from llama_index_ziprerank.reranking import ListwiseReranker
from llama_index_ziprerank.reranking.options import RankingOptions

OWN = {"keep_ratio": 0.4, "pruning": "query", "first_stage_weight": 2.0}


def test_a_checkpoint_without_choices_ranks_as_in_the_paper() -> None:
    decided = RankingOptions.decide(PreTrainedConfig())
    assert (decided.keep_ratio, decided.pruning, decided.first_stage_weight) == (1.0, "prompt", 0.0)


def test_a_checkpoint_may_choose_and_is_overruled() -> None:
    config = PreTrainedConfig(**OWN)
    assert RankingOptions.decide(config, keep_ratio=None, window=7, stride=3) == RankingOptions(
        0.4, "query", 7, 3, first_stage_weight=2.0
    )
    assert RankingOptions.decide(config, keep_ratio=1.0, pruning="prompt", first_stage_weight=0) == RankingOptions(
        first_stage_weight=0
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("keep_ratio", 0),
        ("keep_ratio", 1.1),
        ("keep_ratio", "all"),
        ("pruning", "letters"),
        ("pruning", 3),
        ("first_stage_weight", -1),
        ("first_stage_weight", "much"),
        ("first_stage_weight", float("nan")),
        ("first_stage_weight", True),
        ("keep_ratio", True),
    ],
)
def test_a_choice_that_cannot_be_is_refused_by_its_place(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"config\.json.*{name}"):
        RankingOptions.decide(PreTrainedConfig(**{name: value}))
    if not isinstance(value, str | bool) or name == "pruning":
        with pytest.raises(ValueError, match=f"^{name}"):
            RankingOptions.decide(PreTrainedConfig(**OWN), **{name: value})


def test_reranking_follows_the_checkpoint(
    reranker: ListwiseReranker, pages: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores: list[float | None] = [float(i) for i in range(6)]
    plain = reranker.rerank("axis", pages[:6], first_stage_scores=scores)
    asked = reranker.rerank("axis", pages[:6], 0.4, "query", first_stage_scores=scores, first_stage_weight=2)
    with monkeypatch.context() as patch:
        for name, value in OWN.items():
            patch.setattr(reranker.model.config, name, value, raising=False)
        assert reranker.rerank("axis", pages[:6], first_stage_scores=scores) == asked
        own = reranker.rerank("axis", pages[:6], 1.0, "prompt", first_stage_scores=scores, first_stage_weight=0)
        assert own == plain != asked


def test_nanos_own_choices() -> None:
    nano = ListwiseReranker.from_pretrained("nano", device="cpu")
    assert nano.options() == RankingOptions(0.16, "query", first_stage_weight=0.5)
    assert nano.sides == (1280,)
