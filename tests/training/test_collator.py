import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

from llama_index_ziprerank.pages.page import PageError
from llama_index_ziprerank.reranking import ListwiseReranker, build_ranking_inputs
from llama_index_ziprerank.reranking.features import PageFeatures, page_features
from llama_index_ziprerank.reranking.inputs import PagePatches, pixel_values
from llama_index_ziprerank.training.cache import FeatureCache
from llama_index_ziprerank.training.collator import RankingCollator, TrainingRow
from llama_index_ziprerank.training.forward import PaddingSide, row_outputs, training_window
from llama_index_ziprerank.training.samples import RankingSample
from llama_index_ziprerank.training.sources import page_image

LETTERED = [
    RankingSample("draw a bar graph", ["set a line", "draw bars", "an axis"], [2, 0, 1], frozenset({1})),
    RankingSample("line <|im_end|> width", [Image.new("RGB", (70, 40), "red"), "width"], [1]),
]


@pytest.fixture
def collator(reranker: ListwiseReranker) -> RankingCollator:
    return RankingCollator(reranker.processor, canvas=64)


def patches(row: TrainingRow) -> list[PagePatches]:
    return [page.content for page in row.pages if isinstance(page.content, PagePatches)]


@pytest.mark.parametrize("sample", LETTERED)
def test_a_row_up_to_the_read_position_is_what_inference_reads(
    collator: RankingCollator, reranker: ListwiseReranker, sample: RankingSample
) -> None:
    row = collator.row(sample)
    inference = build_ranking_inputs(reranker.processor, sample.query, [page_image(page, 64) for page in sample.pages])
    features = page_features(
        reranker.model, [page.content for page in row.pages if isinstance(page.content, PagePatches)]
    )
    window = training_window(reranker.model, row, features)

    assert row.prompt.input_ids.tolist() == inference.input_ids.tolist()
    assert window.input_ids.tolist() == [*inference.input_ids.tolist(), *row.target_ids.tolist()]
    assert window.read_position == inference.read_position
    frames = inference.pixel_values.unflatten(1, (3, 2, -1))  # transformers has each page twice
    torch.testing.assert_close(pixel_values(patches(row), torch.device("cpu")), frames[:, :, 0].flatten(1))
    assert row.prompt.image_grid_thw.tolist() == inference.image_grid_thw.tolist()


def test_positions_go_on_behind_the_prompt_as_the_model_counts_them(
    collator: RankingCollator, reranker: ListwiseReranker
) -> None:
    row = collator.row(LETTERED[0])
    features = page_features(
        reranker.model, [page.content for page in row.pages if isinstance(page.content, PagePatches)]
    )
    window = training_window(reranker.model, row, features)
    types = torch.cat([row.prompt.mm_token_type_ids, torch.zeros(len(row.target_ids), dtype=torch.int32)])
    expected, _ = reranker.model.model.get_rope_index(
        window.input_ids[None], types[None], image_grid_thw=row.prompt.image_grid_thw
    )
    assert torch.equal(window.position_ids, expected[:, 0])


def test_the_answer_is_the_target_order_and_the_end_of_the_turn(
    collator: RankingCollator, reranker: ListwiseReranker
) -> None:
    row = collator.row(LETTERED[0])
    assert reranker.processor.tokenizer.decode(row.target_ids) == "B] > [C] > [A]<|im_end|>"
    assert row.target_ids[0] == row.prompt.identifier_ids[1]


@pytest.mark.parametrize("keep_ratio", [1.0, 0.5])
@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_training_reads_the_scores_that_inference_reads(
    collator: RankingCollator, reranker: ListwiseReranker, keep_ratio: float, padding_side: PaddingSide
) -> None:
    rows = [collator.row(sample) for sample in LETTERED]
    seen = [page_features(reranker.model, patches(row)) for row in rows]
    windows = [
        training_window(reranker.model, row, features, keep_ratio=keep_ratio)
        for row, features in zip(rows, seen, strict=True)
    ]
    with torch.no_grad():
        together = row_outputs(reranker.model, windows, padding_side=padding_side)
        alone = [row_outputs(reranker.model, [window], padding_side="right")[0] for window in windows]
    for sample, output, single in zip(LETTERED, together, alone, strict=True):
        ranking = reranker.rerank(sample.query, [page_image(page, 64) for page in sample.pages], keep_ratio=keep_ratio)
        assert output.scores.tolist() == pytest.approx(ranking.logits, abs=1e-5)
        torch.testing.assert_close(output.logits, single.logits, atol=1e-5, rtol=0)


def test_candidates_are_shuffled_anew_in_every_epoch_and_alike_in_every_run(reranker: ListwiseReranker) -> None:
    sample = RankingSample("query", [f"text {i}" for i in range(12)], list(range(12)))
    first, again = (RankingCollator(reranker.processor, canvas=32, shuffle_seed=7) for _ in range(2))
    [one], [same] = first([sample])["rows"], again([sample])["rows"]
    first.epoch = 1
    [other] = first([sample])["rows"]
    keys = [[page.key for page in row.pages] for row in (one, same, other)]
    assert keys[0] == keys[1] != keys[2]
    assert sorted(keys[0]) == sorted(keys[2])


def test_a_batch_goes_to_another_process_without_open_files(collator: RankingCollator) -> None:
    """A tensor would take one of its own, and many systems allow a process no more than 1,024."""
    batch = collator(LETTERED)
    before, cpu = psutil.Process().num_fds(), torch.device("cpu")
    sent = ForkingPickler.dumps(batch)
    assert psutil.Process().num_fds() == before
    for row, came in zip(batch["rows"], pickle.loads(sent)["rows"], strict=True):
        assert torch.equal(row.prompt.input_ids, came.prompt.input_ids)
        assert torch.equal(row.target_ids, came.target_ids)
        assert (row.order, row.positives) == (came.order, came.positives)
        for page, same in zip(patches(row), patches(came), strict=True):
            assert torch.equal(pixel_values([page], cpu), pixel_values([same], cpu))


def test_a_page_that_the_cache_knows_is_not_opened(collator: RankingCollator, tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        path.write_bytes(b"no image at all")
    features = PageFeatures(torch.zeros(1, 96), (), (1, 2, 2))
    collator.cache = FeatureCache(10_000)
    for key in ("a.png", "b.png"):
        status = (tmp_path / key).stat()
        collator.cache.put(f"file-{tmp_path / key}-{status.st_mtime_ns}-{status.st_size}", features)
    assert [page.content.grid for page in collator.row(RankingSample("q", paths, [0])).pages] == [(1, 2, 2)] * 2


def test_the_cache_goes_to_another_process_empty() -> None:
    """Where processes are spawned each tensor that is sent takes an open file."""
    cache = FeatureCache(1000)
    cache.put("a", PageFeatures(torch.zeros(1, 10), (), (1, 2, 2)))
    before = psutil.Process().num_fds()
    came = pickle.loads(ForkingPickler.dumps(cache))
    assert psutil.Process().num_fds() == before
    assert (len(came), came.size, came.limit) == (0, 0, 1000)


def test_a_missing_image_is_named(collator: RankingCollator, tmp_path: Path) -> None:
    with pytest.raises(PageError, match="gone.png: the image cannot be read"):
        collator.row(RankingSample("q", [tmp_path / "gone.png"] * 2, [0]))


def test_the_cache_forgets_what_was_used_longest_ago() -> None:
    cache = FeatureCache(2 * 4 * 10)
    pages = {name: PageFeatures(torch.zeros(1, 10), (), (1, 2, 2)) for name in "abc"}
    cache.put("a", pages["a"])
    cache.put("b", pages["b"])
    assert cache.get("a")
    cache.put("c", pages["c"])
    assert (cache.get("a") is not None, cache.get("b") is not None, cache.size) == (True, False, 80)


def test_the_cache_holds_no_more_memory_than_it_counts() -> None:
    batch = torch.zeros(100, 10)
    cache = FeatureCache(1000)
    cache.put("a", PageFeatures(batch[:2], (batch[2:4],), (1, 2, 4)))
    kept = cache.get("a")
    assert kept is not None and cache.size == 160
    assert sum(part.untyped_storage().nbytes() for part in (kept.merged, *kept.deepstack)) == 160


def test_a_tokenizer_without_an_end_of_the_turn_is_refused(checkpoint: Path) -> None:
    reranker = ListwiseReranker.from_pretrained(str(checkpoint), device="cpu")
    reranker.processor.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end of a turn"):
        RankingCollator(reranker.processor, canvas=32).row(LETTERED[0])


def test_a_list_that_no_window_holds_is_refused(collator: RankingCollator) -> None:
    with pytest.raises(ValueError, match="1 to 20 pages"):
        collator.row(RankingSample("q", [f"t{i}" for i in range(21)], [0]))
