from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from llama_index_ziprerank.pages.patch_map import PatchMap
from llama_index_ziprerank.reranking import ListwiseReranker, PruningMode
from llama_index_ziprerank.reranking.explanation import Candidate, Explanation, explain, read_page
from llama_index_ziprerank.reranking.inputs import build_ranking_prompt
from llama_index_ziprerank.reranking.pruning import window_inputs
from llama_index_ziprerank.reranking.ranking import RankingOptions

QUERY = "set the line width of an axis"


@pytest.fixture(scope="module")
def candidates(mixed_pages: list[Image.Image]) -> list[Candidate]:
    return [Candidate(f"page {i}", page, 1 - i / 10) for i, page in enumerate(mixed_pages)]


def _in_given_order(explanation: Explanation) -> list[PatchMap]:
    return [page.reading for page in sorted(explanation.pages, key=lambda page: page.rank_before)]


@pytest.mark.parametrize(
    "options", [RankingOptions(), RankingOptions(0.5, "query"), RankingOptions(window=2, stride=1)]
)
def test_an_explanation_ranks_as_the_reranker_does(
    reranker: ListwiseReranker, candidates: list[Candidate], options: RankingOptions
) -> None:
    ranking = reranker.rerank(QUERY, [candidate.page for candidate in candidates], **vars(options))
    pages = explain(reranker, QUERY, candidates, options).pages

    assert [page.rank_before - 1 for page in pages] == ranking.order
    assert [page.rank for page in pages] == list(range(1, len(pages) + 1))
    assert [page.probability for page in pages] == pytest.approx([ranking.scores[i] for i in ranking.order])
    assert [page.logit for page in pages] == pytest.approx([ranking.logits[i] for i in ranking.order])
    assert [page.score_before for page in pages] == [candidates[i].score for i in ranking.order]


@pytest.mark.parametrize("pruning", ["prompt", "query"])
@pytest.mark.parametrize("keep_ratio", [1.0, 0.5, 0.25])
def test_the_tokens_shown_as_kept_are_those_that_the_language_model_reads(
    reranker: ListwiseReranker, candidates: list[Candidate], pruning: PruningMode, keep_ratio: float
) -> None:
    features = reranker.encode_pages([candidate.page for candidate in candidates])
    prompt = build_ranking_prompt(reranker.processor, QUERY, [page.grid for page in features])
    read = window_inputs(reranker.model, prompt, features, keep_ratio=keep_ratio, pruning=pruning).merged

    explanation = explain(reranker, QUERY, candidates, RankingOptions(keep_ratio, pruning))
    maps = _in_given_order(explanation)
    kept = [page.merged[torch.from_numpy(m.chosen.ravel())] for page, m in zip(features, maps, strict=True)]

    torch.testing.assert_close(torch.cat(kept), read)
    assert explanation.visual_tokens == sum(page.kept for page in explanation.pages) == len(read)


def test_the_best_of_the_query_is_what_query_pruning_keeps(
    reranker: ListwiseReranker, candidates: list[Candidate]
) -> None:
    for page in explain(reranker, QUERY, candidates, RankingOptions(0.25, "query")).pages:
        values, kept = page.reading.values, page.reading.chosen
        assert values[kept].min() >= values[~kept].max()


def test_similarity_is_a_cosine_and_depends_on_the_query_alone(
    reranker: ListwiseReranker, candidates: list[Candidate]
) -> None:
    [page] = reranker.encode_pages([candidates[0].page])
    first, wider, other = (
        read_page(reranker, query, page, RankingOptions(0.5), n).values
        for query, n in [(QUERY, 1), (QUERY, 20), ("draw a bar graph", 1)]
    )

    assert np.abs(first).max() <= 1.0001
    assert np.array_equal(first, wider)
    assert not np.array_equal(first, other)


def test_a_map_has_the_shape_of_its_page(reranker: ListwiseReranker, candidates: list[Candidate]) -> None:
    """Pages are 232 x 328, 200 x 328 or less, and 500 x 300 pixels; a visual token covers 32 x 32 of them."""
    maps = _in_given_order(explain(reranker, QUERY, candidates, RankingOptions()))

    for candidate, m in zip(candidates, maps, strict=True):
        assert isinstance(candidate.page, Image.Image)
        rows, columns = m.values.shape
        assert abs(rows - candidate.page.height / 32) <= 1 and abs(columns - candidate.page.width / 32) <= 1


def test_a_query_that_has_no_token_is_like_nothing(reranker: ListwiseReranker, candidates: list[Candidate]) -> None:
    [page] = reranker.encode_pages([candidates[0].page])
    mapped = read_page(reranker, "\u200b", page, RankingOptions(0.5), 1)

    assert mapped.chosen.sum() == round(0.5 * mapped.chosen.size)
    assert np.isfinite(mapped.values).all()


def test_letters_are_named_when_every_page_was_read_once(
    reranker: ListwiseReranker, candidates: list[Candidate]
) -> None:
    once = explain(reranker, QUERY, candidates, RankingOptions()).pages
    assert {page.rank_before: page.letter for page in once} == {1: "A", 2: "B", 3: "C"}

    for options in (RankingOptions(window=2, stride=1), RankingOptions(permutations=2)):
        assert {page.letter for page in explain(reranker, QUERY, candidates, options).pages} == {None}


def test_the_first_stage_is_drawn_for_the_best_pages_alone(
    reranker: ListwiseReranker, candidates: list[Candidate]
) -> None:
    seen: list[Image.Image] = []

    def draw(image: Image.Image) -> PatchMap:
        seen.append(image)
        return PatchMap(np.eye(4, dtype=np.float32), np.eye(4, dtype=bool))

    explanation = explain(reranker, QUERY, candidates, RankingOptions(), top_n=2, draw_first_stage=draw)

    assert seen == [page.image for page in explanation.best]
    assert [page.first_stage is not None for page in explanation.pages] == [True, True, False]
    assert explanation.draw_first_stage(explanation.pages[0]) is not None
    assert explanation.draw_first_stage(explanation.pages[2]) is None


def test_what_is_kept_changes_the_drawing_and_what_is_asked_too(
    reranker: ListwiseReranker, candidates: list[Candidate]
) -> None:
    drawings = set()
    for query, keep_ratio in [(QUERY, 1.0), (QUERY, 0.5), ("draw a bar graph", 1.0)]:
        explanation = explain(reranker, query, candidates, RankingOptions(keep_ratio))
        page = next(page for page in explanation.pages if page.rank_before == 1)
        drawings.add(explanation.draw_reading(page).tobytes())

    assert len(drawings) == 3


def test_the_picture_of_all_grows_with_the_first_stage_and_holds_every_letter(
    reranker: ListwiseReranker, candidates: list[Candidate]
) -> None:
    bare = explain(reranker, QUERY, candidates, RankingOptions())
    first_stage = PatchMap(np.eye(4, dtype=np.float32), np.eye(4, dtype=bool))
    full = replace(bare, pages=tuple(replace(page, first_stage=first_stage) for page in bare.pages))

    assert full.draw().height > bare.draw().height > bare.draw_letters().height


@pytest.mark.parametrize(("query", "sentence"), [(" ", "got a blank one"), (QUERY, "`images` is empty")])
def test_nothing_to_ask_and_nothing_to_rank_are_refused(reranker: ListwiseReranker, query: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        explain(reranker, query, [], RankingOptions())
