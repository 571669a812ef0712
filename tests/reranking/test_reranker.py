import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from PIL import Image

from llama_index_ziprerank.reranking import ListwiseReranker, RerankMemoryError


def test_one_window_scores_by_the_softmax_of_its_logits(reranker: ListwiseReranker, pages: list[Image.Image]) -> None:
    ranking = reranker.rerank("set the line width", pages)
    assert ranking.scores == pytest.approx(torch.tensor(ranking.logits).softmax(0).tolist())
    assert [ranking.logits[i] for i in ranking.order] == sorted(ranking.logits, reverse=True)
    assert ranking.window_of == [0] * 20


@pytest.mark.parametrize(("keep_ratio", "pruning"), [(1.0, "prompt"), (0.5, "prompt"), (0.5, "query")])
def test_over_several_windows_every_page_has_a_place_and_scores_never_rise(
    reranker: ListwiseReranker, pages: list[Image.Image], keep_ratio: float, pruning: Any
) -> None:
    ranking = reranker.rerank("set the line width", pages[:12], keep_ratio, pruning, window=5, stride=2)
    assert sorted(ranking.order) == list(range(12))
    in_order = [ranking.scores[i] for i in ranking.order]
    assert all(better >= worse for better, worse in itertools.pairwise(in_order))
    assert [ranking.window_of[i] for i in ranking.order] == sorted(ranking.window_of, reverse=True)
    assert max(ranking.window_of) == 4


def test_a_list_that_fits_the_window_is_read_once(reranker: ListwiseReranker, pages: list[Image.Image]) -> None:
    whole = reranker.rerank("axis", pages[:4])
    assert reranker.rerank("axis", pages[:4], window=4, stride=1) == whole
    assert 0 < whole.visual_tokens < whole.sequence_length


def test_a_page_is_seen_once_however_many_windows_it_is_in(
    reranker: ListwiseReranker, pages: list[Image.Image]
) -> None:
    seen: list[int] = []
    hook = reranker.model.model.visual.register_forward_hook(
        lambda module, given, output: seen.append(len(output.pooler_output))
    )
    once = reranker.rerank("axis", pages[:9], window=4, stride=2)
    hook.remove()
    assert sum(seen) == reranker.rerank("axis", pages[:9]).visual_tokens < once.visual_tokens


def test_one_page_is_a_ranking_too(reranker: ListwiseReranker, pages: list[Image.Image]) -> None:
    ranking = reranker.rerank("axis", pages[:1])
    assert (ranking.order, ranking.scores) == ([0], [1.0])


def test_threads_take_turns_and_get_the_serial_answers(reranker: ListwiseReranker, pages: list[Image.Image]) -> None:
    queries = [f"{word} {i}" for i in range(4) for word in ("axis", "<|im_end|>", "a bar graph")]
    serial = [reranker.rerank(query, pages[:3]) for query in queries]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda query: reranker.rerank(query, pages[:3]), queries)) == serial


def test_bad_requests_say_what_came(reranker: ListwiseReranker, pages: list[Image.Image]) -> None:
    unknown: Any = "letters"
    with pytest.raises(ValueError, match="`images` is empty"):
        reranker.rerank("axis", [])
    with pytest.raises(ValueError, match=r"blank one: ' \\n'"):
        reranker.rerank(" \n", pages[:2])
    with pytest.raises(ValueError, match="keep_ratio.*got nan"):
        reranker.rerank("axis", pages[:2], keep_ratio=float("nan"))
    with pytest.raises(ValueError, match="got 'letters'"):
        reranker.rerank("axis", pages[:2], pruning=unknown)
    with pytest.raises(ValueError, match=r"Page 1 of the given list \(from 0\), 3x2000 pixels"):
        reranker.rerank("axis", [pages[0], Image.new("RGB", (3, 2000))])
    with pytest.raises(ValueError, match="window is 2 to 20 pages.*got 21"):
        reranker.rerank("axis", pages[:2], window=21)
    with pytest.raises(ValueError, match="stride.*got 20"):
        reranker.rerank("axis", pages[:2], stride=20)


def test_running_out_of_memory_says_what_to_lower(reranker: ListwiseReranker, pages: list[Image.Image]) -> None:
    def run_out(module: Any, given: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    hook = reranker.model.model.language_model.register_forward_pre_hook(run_out)
    try:
        with pytest.raises(RerankMemoryError, match="2 pages.*Lower keep_ratio or window.*9 GiB") as caught:
            reranker.rerank("axis", pages[:2])
    finally:
        hook.remove()
    assert caught.value.__context__ is None  # no traceback keeps the tensors alive
    assert reranker.rerank("axis", pages[:2]).order
