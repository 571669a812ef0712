import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_image_set import write_image_set
from tiny_retriever import PARITY

from llama_index_ziprerank.evaluation.first_stage import RerankSettings
from llama_index_ziprerank.evaluation.image_sets import ImageSet, load_image_set
from llama_index_ziprerank.evaluation.runs import read_qrels, read_run
from llama_index_ziprerank.evaluation.vidore import Settings, evaluate_image_set, summarize


@pytest.fixture(scope="module")
def image_set(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return load_image_set(str(write_image_set(tmp_path_factory.mktemp("sets") / "set", "saved")))


SETTINGS = Settings("set", rerank=RerankSettings(str(PARITY), top_k=4))


class DarkestFirst:
    """A first stage that puts the darkest page first."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(
        self, images: Iterable[tuple[str, Image.Image]], queries: Mapping[str, str], top_k: int
    ) -> dict[str, list[str]]:
        self.calls += 1
        greys = {name: image.getpixel((0, 0)) for name, image in images}
        return dict.fromkeys(queries, sorted(greys, key=greys.__getitem__)[:top_k])


def test_scores_of_the_first_stage_are_those_computed_by_hand(image_set: ImageSet, tmp_path: Path) -> None:
    scores = summarize(evaluate_image_set(image_set, SETTINGS, DarkestFirst(), tmp_path))["first_stage"]

    assert scores["R@1"].mean == 1 / 2  # q1 wants the darkest, q2 the two lightest of six
    assert scores["R@5"].mean == (1 + 1 / 2) / 2
    assert scores["MRR"].mean == pytest.approx((1 + 1 / 5) / 2)
    ideal, found = 2 + 0.63093, 1 * 0.38685  # grade 2 and 1 at ranks 1 and 2; grade 1 at rank 5
    assert scores["nDCG@5"].mean == pytest.approx((1 + found / ideal) / 2, abs=1e-4)


def test_reranking_reorders_the_head_and_everything_is_written(image_set: ImageSet, tmp_path: Path) -> None:
    results = evaluate_image_set(image_set, SETTINGS, DarkestFirst(), tmp_path)

    for result in results:
        before, after = result.rankings["first_stage"], result.rankings["reranked"]
        assert sorted(before[:4]) == sorted(after[:4]) and before[4:] == after[4:]
    for suffix in ("trec", "jsonl"):
        assert read_qrels(tmp_path / f"qrels.{suffix}") == image_set.qrels
        assert read_run(tmp_path / f"reranked.{suffix}") == {one.query_id: one.rankings["reranked"] for one in results}


def test_an_interrupted_run_neither_retrieves_nor_asks_again(image_set: ImageSet, tmp_path: Path) -> None:
    def interrupt(items: Iterable[Any], description: str, total: int | None = None) -> Iterable[Any]:
        for position, item in enumerate(items):
            if description.endswith("queries") and position == 1:
                raise KeyboardInterrupt
            yield item

    first = DarkestFirst()
    with pytest.raises(KeyboardInterrupt):
        evaluate_image_set(image_set, SETTINGS, first, tmp_path, interrupt)
    asked: list[int | None] = []

    def count(items: Iterable[Any], description: str, total: int | None = None) -> Iterable[Any]:
        asked.append(total)
        return items

    resumed = evaluate_image_set(image_set, SETTINGS, first, tmp_path, count)

    assert first.calls == 1 and asked == [1] and [one.query_id for one in resumed] == ["q1", "q2"]


def test_results_of_other_settings_are_never_mixed(image_set: ImageSet, tmp_path: Path) -> None:
    evaluate_image_set(image_set, SETTINGS, DarkestFirst(), tmp_path)

    with pytest.raises(ValueError, match="other settings"):
        evaluate_image_set(image_set, Settings("set", retriever="other"), DarkestFirst(), tmp_path)


def test_results_of_a_set_whose_answers_changed_are_not_taken_for_its_own(image_set: ImageSet, tmp_path: Path) -> None:
    evaluate_image_set(image_set, SETTINGS, DarkestFirst(), tmp_path)

    with pytest.raises(ValueError, match="other settings.*Name another folder, or empty this one"):
        corrected = replace(image_set, qrels={**image_set.qrels, "q1": {"page%203": 1}})
        evaluate_image_set(corrected, SETTINGS, DarkestFirst(), tmp_path)


@pytest.mark.parametrize("form", ["saved", "tsv"])
def test_results_of_a_set_whose_images_changed_are_not_taken_for_its_own(form: str, tmp_path: Path) -> None:
    evaluate_image_set(load_image_set(str(write_image_set(tmp_path / "set", form))), SETTINGS, DarkestFirst(), tmp_path)
    shutil.rmtree(tmp_path / "set")
    write_image_set(tmp_path / "set", form, brighter=10)

    with pytest.raises(ValueError, match="other settings .data set"):
        evaluate_image_set(load_image_set(str(tmp_path / "set")), SETTINGS, DarkestFirst(), tmp_path)


@pytest.mark.parametrize("emptied", [False, True])
def test_a_run_that_nothing_tells_about_is_made_again(image_set: ImageSet, tmp_path: Path, emptied: bool) -> None:
    evaluate_image_set(image_set, replace(SETTINGS, queries=1), DarkestFirst(), tmp_path)
    (tmp_path / "results.jsonl").unlink()
    if emptied:
        (tmp_path / "results.jsonl").touch()
    first = DarkestFirst()

    assert len(evaluate_image_set(image_set, SETTINGS, first, tmp_path)) == 2 and first.calls == 1


def test_results_of_another_split_are_never_mixed(image_set: ImageSet, tmp_path: Path) -> None:
    evaluate_image_set(image_set, SETTINGS, DarkestFirst(), tmp_path)

    with pytest.raises(ValueError, match="other settings"):
        evaluate_image_set(image_set, replace(SETTINGS, split="train"), DarkestFirst(), tmp_path)
