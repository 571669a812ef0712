import itertools
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from PIL import Image

from llama_index_ziprerank.reranking import ListwiseReranker, PageFeatures, Ranking, RerankMemoryError
from llama_index_ziprerank.reranking.windows import seeded_permutations


def test_one_window_scores_by_the_softmax_of_its_logits(reranker: ListwiseReranker, pages: list[Image.Image]) -> None:
    ranking = reranker.rerank("set the line width", pages)
    assert ranking.scores == pytest.approx(torch.tensor(ranking.logits).softmax(0).tolist())
    assert [ranking.logits[i] for i in ranking.order] == sorted(ranking.logits, reverse=True)
    assert ranking.window_of == [0] * 20


def test_scores_do_not_depend_on_torchs_default_precision(reranker: ListwiseReranker, pages: list[Image.Image]) -> None:
    expected = reranker.rerank("axis", pages[:5])
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert reranker.rerank("axis", pages[:5]) == expected
    finally:
        torch.set_default_dtype(torch.float32)


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


def assert_alike(ranking: Ranking, expected: Ranking) -> None:
    """Equal but for rounding: windows that run together are padded to one length."""
    assert ranking.logits == pytest.approx(expected.logits, abs=1e-5)
    assert ranking.scores == pytest.approx(expected.scores, abs=1e-5)
    same = ("order", "window_of", "sequence_length", "visual_tokens", "steps")
    assert [getattr(ranking, name) for name in same] == [getattr(expected, name) for name in same]


def test_sixteen_calls_at_once_get_their_serial_answers_in_fewer_forward_passes(
    reranker: ListwiseReranker, mixed_pages: list[Image.Image], pages: list[Image.Image]
) -> None:
    wanted: list[tuple[str, list[Any], dict[str, Any]]] = [
        (f"{word} {number}", given, options)
        for number in range(2)
        for word in ("axis", "<|im_end|>")
        for given, options in (
            (mixed_pages, {"keep_ratio": 0.5, "pruning": "query"}),
            (pages[:3], {}),
            (pages[:7], {"window": 3, "stride": 1, "keep_ratio": 0.25}),
            (pages[:7], {"window": 3, "stride": 2, "strategy": "parallel", "permutations": 2}),
        )
    ]
    wanted = [(query, list(reranker.encode_pages(given)), options) for query, given, options in wanted]
    passes: list[int] = []
    hook = reranker.model.model.language_model.register_forward_pre_hook(
        lambda module, given, named: passes.append(len(named["inputs_embeds"])), with_kwargs=True
    )
    serial = [reranker.rerank(query, given, **options) for query, given, options in wanted]
    alone, together = list(passes), passes
    together.clear()
    with ThreadPoolExecutor(16) as threads:
        with reranker._turn:
            calls = [threads.submit(reranker.rerank, query, given, **options) for query, given, options in wanted]
            time.sleep(0.2)  # until all wait
        answers = [call.result() for call in calls]
    hook.remove()
    for answer, expected in zip(answers, serial, strict=True):
        assert_alike(answer, expected)
    assert sum(together) == sum(alone)
    assert len(together) < len(alone) / 2


def test_reading_a_window_in_several_orders_averages_its_logits(
    reranker: ListwiseReranker, pages: list[Image.Image]
) -> None:
    features = reranker.encode_pages(pages[:5])
    orders = seeded_permutations(5, 3)
    logits = [0.0] * 5
    for order in orders:
        for place, candidate in enumerate(order):
            logits[candidate] += reranker.rerank("axis", [features[i] for i in order]).logits[place] / 3
    ranking = reranker.rerank("axis", features, permutations=3)
    assert ranking.logits == pytest.approx(logits, abs=1e-5)
    assert ranking.sequence_length == 3 * reranker.rerank("axis", features).sequence_length
    assert reranker.rerank("axis", features, permutations=1) == reranker.rerank("axis", features)


@pytest.mark.parametrize(("strategy", "most"), [("parallel", 8), ("blocks", 2)])
def test_windows_that_do_not_depend_on_each_other_are_one_step(
    reranker: ListwiseReranker, pages: list[Image.Image], strategy: Any, most: int
) -> None:
    features = reranker.encode_pages(pages)
    ranking = reranker.rerank("axis", features, 0.25, window=5, stride=2, strategy=strategy)
    assert sorted(ranking.order) == list(range(20))
    in_order = [ranking.scores[i] for i in ranking.order]
    assert all(better >= worse for better, worse in itertools.pairwise(in_order))
    assert ranking.steps <= most < reranker.rerank("axis", features, 0.25, window=5, stride=2).steps


def test_a_call_given_up_before_its_turn_says_so(reranker: ListwiseReranker, pages: list[Image.Image]) -> None:
    given_up = threading.Event()
    given_up.set()
    with pytest.raises(CancelledError):
        reranker.rerank("axis", pages[:2], cancelled=given_up)


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
    with pytest.raises(ValueError, match="strategy is one of 'sliding', 'parallel', 'blocks', got 'letters'"):
        reranker.rerank("axis", pages[:2], strategy=unknown)
    with pytest.raises(ValueError, match="permutations is 1 to 64.*got 0"):
        reranker.rerank("axis", pages[:2], permutations=0)


def test_pages_that_another_reranker_has_read_are_named(reranker: ListwiseReranker, pages: list[Image.Image]) -> None:
    wide = PageFeatures(torch.zeros(4, 256), (), (1, 4, 4))
    with pytest.raises(ValueError, match=r"page 1 of the given list .* are 256 numbers wide, this model reads 96"):
        reranker.rerank("axis", [pages[0], wide])


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
    hook = reranker.model.model.visual.register_forward_pre_hook(run_out)
    try:
        with pytest.raises(RerankMemoryError, match="2 pages. Pass fewer at a time.*9 GiB"):
            reranker.encode_pages(pages[:2])
    finally:
        hook.remove()
    assert reranker.rerank("axis", pages[:2]).order
