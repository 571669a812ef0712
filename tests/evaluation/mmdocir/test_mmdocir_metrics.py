import random

import pytest

from llama_index_ziprerank.evaluation.mmdocir.annotations import DOMAINS, Box, Question
from llama_index_ziprerank.evaluation.mmdocir.metrics import layout_recalls, page_recalls, table
from llama_index_ziprerank.evaluation.runs import measure


def test_page_recall_is_the_recall_of_the_field_library() -> None:
    rng = random.Random(0)
    for _ in range(20):
        ranking = rng.sample(range(30), 10)
        gold = tuple(rng.sample(range(30), rng.randint(1, 4)))
        expected = measure({"q": {str(page): 1 for page in gold}}, {"q": [*map(str, ranking)]}, ["R@1", "R@3", "R@5"])
        assert page_recalls(ranking, Question("q", "", gold, ())) == pytest.approx(
            {metric: values["q"] for metric, values in expected.items()}
        )


def test_boxes_share_area_on_the_same_page_only() -> None:
    question = Question("q", "", (0,), (Box(0, (0, 0, 10, 10)),))

    assert layout_recalls([Box(0, (5, 5, 15, 15))], question)["R@1"] == 0.25
    assert layout_recalls([Box(1, (0, 0, 10, 10))], question)["R@1"] == 0.0
    assert layout_recalls([Box(0, (10, 0, 20, 10))], question)["R@1"] == 0.0  # side by side


def test_a_question_without_answers_scores_nothing() -> None:
    question = Question("q", "", (), ())

    assert set(page_recalls([1, 2], question).values()) == {0.0}
    assert set(layout_recalls([Box(0, (0, 0, 1, 1))], question).values()) == {0.0}


def test_macro_is_the_mean_of_domains_and_micro_that_of_questions() -> None:
    parts = table([("News", {"s": {"R@1": 1.0}}), ("Laws", {"s": {"R@1": 0.0}}), ("Laws", {"s": {"R@1": 0.0}})])

    assert [part.name for part in parts] == ["Laws", "News", "macro", "micro"]  # the published order
    assert [part.recalls["s"]["R@1"] for part in parts] == pytest.approx([0.0, 1.0, 0.5, 1 / 3])
    assert DOMAINS.index("Laws") < DOMAINS.index("News")
