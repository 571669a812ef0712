from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from llama_index_ziprerank.reranking import ListwiseReranker
from llama_index_ziprerank.reranking.features import PageFeatures, page_features
from llama_index_ziprerank.reranking.inputs import RankingPrompt, build_ranking_prompt, prepare_page
from llama_index_ziprerank.reranking.positions import rope_positions
from llama_index_ziprerank.reranking.pruning import keep_best, kept_counts, score_patches, window_inputs
from llama_index_ziprerank.reranking.ranking import PlannedWindow

counts_and_scores = st.lists(
    st.lists(st.sampled_from([-0.9, -0.5, -0.1, 0.0, 0.2, 0.7]), min_size=1, max_size=9), min_size=1, max_size=5
)


@pytest.fixture(scope="module")
def window(reranker: ListwiseReranker, mixed_pages: list[Image.Image]) -> tuple[RankingPrompt, list[PageFeatures]]:
    features = page_features(reranker.model, [prepare_page(reranker.processor, page) for page in mixed_pages])
    return build_ranking_prompt(reranker.processor, "set the line width", [p.grid for p in features]), features


@given(counts_and_scores, st.floats(0.01, 1.0))
def test_keeping_the_best_of_all_pages_equals_the_loop_over_pages(pages: list[list[float]], ratio: float) -> None:
    expected: list[bool] = []
    for scores in pages:
        best_first = sorted(range(len(scores)), key=lambda i: -scores[i])  # stable, so the earlier of equals wins
        kept = best_first[: max(1, round(ratio * len(scores)))]
        expected += [i in kept for i in range(len(scores))]
    scores = torch.tensor([score for page in pages for score in page])
    assert keep_best(scores, [len(page) for page in pages], ratio).tolist() == expected


def test_a_patch_scores_its_best_cosine() -> None:
    patches = torch.tensor([[2.0, 0.0], [0.0, -3.0], [1.0, 1.0]])
    text = torch.tensor([[5.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(score_patches(patches, text), torch.tensor([1.0, 0.0, 0.5**0.5]))


def test_half_of_each_page_is_kept_at_its_original_position(
    reranker: ListwiseReranker, window: tuple[RankingPrompt, list[PageFeatures]]
) -> None:
    prompt, features = window
    whole = window_inputs(reranker.model, prompt, features)
    half = window_inputs(reranker.model, prompt, features, keep_ratio=0.5)
    dropped = sum(count - round(count / 2) for count in prompt.visual_counts)
    assert len(half.input_ids) == len(prompt.input_ids) - dropped
    assert half.read_position == len(half.input_ids) - 1
    places = [tuple(column) for column in whole.position_ids.T.tolist()]
    remaining = [tuple(column) for column in half.position_ids.T.tolist()]
    assert remaining == sorted(remaining, key=places.index)
    assert remaining[-1] == places[-1]


@pytest.mark.parametrize("pruning", ["prompt", "query"])
def test_patches_are_compared_with_the_text_that_the_mode_names(
    reranker: ListwiseReranker, window: tuple[RankingPrompt, list[PageFeatures]], pruning: Any
) -> None:
    prompt, features = window
    ids = prompt.query_ids if pruning == "query" else prompt.text_ids
    text = reranker.model.get_input_embeddings()(ids)  # repetitions included
    pruned = window_inputs(reranker.model, prompt, features, keep_ratio=0.25, pruning=pruning)
    expected = []
    for page in features:
        scores = functional.cosine_similarity(page.merged[:, None], text[None], dim=-1).amax(dim=1)
        kept = scores.topk(max(1, round(len(scores) * 0.25))).indices.sort().values
        expected.append([layer[kept] for layer in (page.merged, *page.deepstack)])
    for ours, theirs in zip((pruned.merged, *pruned.deepstack), zip(*expected, strict=True), strict=True):
        assert torch.equal(ours, torch.cat(theirs))


def test_every_page_keeps_at_least_one_visual_token(
    reranker: ListwiseReranker, window: tuple[RankingPrompt, list[PageFeatures]]
) -> None:
    assert len(window_inputs(reranker.model, *window, keep_ratio=1e-9).merged) == 3


@pytest.mark.parametrize("ratio", [0, -0.5, 1.01, float("nan"), float("inf")])
def test_a_ratio_that_is_no_part_is_refused(
    reranker: ListwiseReranker, window: tuple[RankingPrompt, list[PageFeatures]], ratio: float
) -> None:
    with pytest.raises(ValueError, match=f"above 0 and at most 1, got {ratio}"):
        window_inputs(reranker.model, *window, keep_ratio=ratio)


def test_an_unknown_mode_is_refused(
    reranker: ListwiseReranker, window: tuple[RankingPrompt, list[PageFeatures]]
) -> None:
    unknown: Any = "query_only"
    with pytest.raises(ValueError, match="one of 'prompt', 'query', got 'query_only'"):
        window_inputs(reranker.model, *window, pruning=unknown)


def test_a_query_without_tokens_cannot_prune_by_the_query(
    reranker: ListwiseReranker, window: tuple[RankingPrompt, list[PageFeatures]]
) -> None:
    prompt, features = window
    silent = RankingPrompt(**{**vars(prompt), "query_ids": prompt.query_ids[:0]})
    with pytest.raises(ValueError, match="no token in the query"):
        window_inputs(reranker.model, silent, features, keep_ratio=0.5, pruning="query")


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6), st.integers(0, 30))
@settings(max_examples=30)
def test_positions_are_those_that_transformers_counts(
    reranker: ListwiseReranker, sizes: list[tuple[int, int]], words: int
) -> None:
    grids = torch.tensor([(1, 2 * rows, 2 * columns) for rows, columns in sizes])
    stretches = [torch.zeros(words + 1, dtype=torch.bool)]
    for rows, columns in sizes:
        stretches += [torch.ones(rows * columns, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)]
    is_visual = torch.cat(stretches)
    expected, _ = reranker.model.model.get_rope_index(
        is_visual.long()[None], is_visual.int()[None], image_grid_thw=grids
    )
    assert torch.equal(rope_positions(is_visual, grids, merge=2), expected[:, 0])


@pytest.mark.parametrize("keep_ratio", [1.0, 0.5, 0.3, 0.01])
def test_the_pruned_length_is_known_before_anything_is_scored(
    reranker: ListwiseReranker, window: tuple[RankingPrompt, list[PageFeatures]], keep_ratio: float
) -> None:
    prompt, features = window
    kept = [max(1, round(keep_ratio * count)) for count in prompt.visual_counts]
    assert kept_counts(prompt.visual_counts, keep_ratio) == kept
    inputs = window_inputs(reranker.model, prompt, features, keep_ratio=keep_ratio)
    text = len(prompt.input_ids) - sum(prompt.visual_counts)
    assert PlannedWindow(reranker.model, prompt, features, keep_ratio, "prompt").length == text + sum(kept)
    assert len(inputs.input_ids) == inputs.position_ids.shape[1] == text + sum(kept)
    assert len(inputs.merged) == len(inputs.visual_columns) == sum(kept)
    image_id = reranker.processor.image_token_id
    assert inputs.visual_columns.tolist() == (inputs.input_ids == image_id).nonzero()[:, 0].tolist()
