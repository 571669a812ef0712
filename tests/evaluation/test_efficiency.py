"""What the benchmark measures: that all methods do the same work, and that the work is counted right."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_retriever import PARITY
from torch import nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextAttention,
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextMLP,
    Qwen3VLTextRMSNorm,
    Qwen3VLVisionAttention,
)

from llama_index_ziprerank.evaluation.efficiency.bench import Outcome, bench, measure
from llama_index_ziprerank.evaluation.efficiency.comparing import changes
from llama_index_ziprerank.evaluation.efficiency.configurations import (
    SHAPES,
    as_transformers_has_it,
    configuration,
    load_reranker,
    quantized,
    random_model,
)
from llama_index_ziprerank.evaluation.efficiency.measuring import (
    count_flops,
    listening,
    matmul_peak,
    others_at_work,
    peak_memory,
    weight_bytes,
)
from llama_index_ziprerank.evaluation.efficiency.methods import Method, run
from llama_index_ziprerank.evaluation.efficiency.report import Change, Environment, Report
from llama_index_ziprerank.evaluation.efficiency.settings import Settings, parse_size
from llama_index_ziprerank.evaluation.efficiency.subjects import Subject, page_images, questions
from llama_index_ziprerank.evaluation.tracking import silently
from llama_index_ziprerank.reranking.inputs import prepare_page
from llama_index_ziprerank.reranking.loading import load_processor

PAPER, COLD, WARM = Method("paper"), Method("ours"), Method("ours", warm=True)
INT8 = Method("ours", warm=True, quantization="int8")
HAS_TORCHAO = importlib.util.find_spec("torchao") is not None


@pytest.fixture(scope="module")
def subject() -> Subject:
    """Three pages for the tiny checkpoint of the parity data."""
    reranker = load_reranker(str(PARITY), device="cpu")
    images = page_images(3, (160, 200))
    return Subject(
        reranker, as_transformers_has_it(reranker.model), images, reranker.encode_pages(images), questions(3)
    )


@pytest.fixture
def short_of_memory(subject: Subject) -> Iterator[None]:
    """The paper's way finds no memory for all its logits."""

    def run_out(module: Any, given: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    hook = subject.twin.lm_head.register_forward_pre_hook(run_out)
    yield
    hook.remove()


@pytest.mark.parametrize("method", [COLD, WARM, Method("ours", batch=3), Method("ours", warm=True, batch=3)])
def test_ours_with_every_visual_token_gives_the_logits_of_the_papers_way(subject: Subject, method: Method) -> None:
    papers = run(Method("paper", batch=method.batch), subject)
    ours = run(method, subject)
    assert len(ours) == len(papers) == method.batch
    assert all(paper.shape == (3,) and paper.max() > paper.min() for paper in papers)
    torch.testing.assert_close(ours, papers, rtol=0, atol=1e-4)


def test_random_weights_agree_too_and_come_from_the_seed() -> None:
    def logits(seed: int) -> list[torch.Tensor]:
        reranker = load_reranker("15m", device="cpu", seed=seed)
        pages = page_images(2, (128, 160))
        subject = Subject(reranker, as_transformers_has_it(reranker.model), pages, [], questions(1))
        paper, [ours] = run(PAPER, subject), run(COLD, subject)
        torch.testing.assert_close(paper, [ours], rtol=0, atol=1e-4)
        return paper

    assert torch.equal(logits(0)[0], logits(0)[0])
    assert not torch.equal(logits(0)[0], logits(1)[0])


def test_the_twin_shares_all_weights_and_has_transformers_own_classes(subject: Subject) -> None:
    model, twin = subject.reranker.model, subject.twin
    assert {w.data_ptr() for w in twin.parameters()} == {w.data_ptr() for w in model.parameters()}
    assert type(twin.model.visual.patch_embed.proj) is nn.Conv3d
    assert type(model.model.visual.patch_embed.proj) is not nn.Conv3d
    assert not [module for module in twin.modules() if type(module).__module__.startswith("llama_index_ziprerank")]
    theirs = {type(module) for module in twin.modules()}
    changed = {Qwen3VLVisionAttention, Qwen3VLTextAttention, Qwen3VLTextMLP, Qwen3VLTextRMSNorm}
    assert changed < theirs and changed.isdisjoint(type(module) for module in model.modules())
    assert type(twin.model.language_model.layers[-1]) is Qwen3VLTextDecoderLayer
    assert type(model.model.language_model.layers[-1]) is not Qwen3VLTextDecoderLayer


@pytest.mark.parametrize(("name", "millions"), [("15m", 15.6), ("2b", 2_127.5), ("4b", 4_437.8), ("8b", 8_767.1)])
def test_shapes_have_the_parameters_of_their_namesakes(name: str, millions: float) -> None:
    config = configuration(SHAPES[name], load_processor("nano"))
    model = random_model(config, torch.device("meta"), torch.bfloat16)
    assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_flops_are_those_one_counts_by_hand() -> None:
    query = torch.randn(1, 2, 10, 8)  # two heads, ten tokens, width 8: two products of 2 * 10 * 10 * 8 a head
    attend = nn.functional.scaled_dot_product_attention
    assert count_flops(lambda: torch.ones(3, 4) @ torch.ones(4, 5))[0] == 2 * 3 * 4 * 5
    assert count_flops(lambda: attend(query, query, query))[0] == 2 * 2 * 2 * 10 * 10 * 8
    assert count_flops(lambda: attend(query, query, query, is_causal=True))[0] == 2 * 2 * 10 * 10 * 8
    with torch.inference_mode():
        assert count_flops(lambda: attend(query, query, query, is_causal=True))[0] == 2 * 2 * 10 * 10 * 8


def test_ours_saves_the_head_the_last_layer_at_all_tokens_but_one_and_half_of_the_patches(subject: Subject) -> None:
    flops = {method: count_flops(lambda method=method: run(method, subject))[0] for method in (PAPER, COLD)}
    with listening([subject.twin]) as watch:
        run(PAPER, subject)
    last = subject.twin.model.language_model.layers[-1]
    query = last.self_attn.q_proj
    read_once = [query, last.self_attn.o_proj, *last.mlp.children(), subject.twin.lm_head]
    weights = sum(layer.weight.numel() for layer in read_once if isinstance(layer, nn.Linear))
    attention = 4 * watch.tokens**2 * query.out_features // 2  # two products, causal
    embedding = subject.twin.model.visual.patch_embed.proj.weight
    patches = sum(len(prepare_page(subject.reranker.processor, image).pixels) for image in subject.images)
    frame = 2 * patches * embedding.numel() // 2
    assert flops[PAPER] - flops[COLD] == pytest.approx(2 * watch.tokens * weights + attention + frame, rel=0.01)


def test_stages_and_tokens_are_those_of_the_method(subject: Subject) -> None:
    def watched(method: Method) -> tuple[dict[str, float], int]:
        with listening([subject.reranker.model, subject.twin]) as watch:
            run(method, subject)
        return watch.milliseconds(), watch.tokens

    ranking = subject.reranker.rerank(subject.queries[0], subject.images)
    pruned = subject.reranker.rerank(subject.queries[0], subject.images, 0.5)
    (cold, tokens), (warm, kept) = watched(COLD), watched(Method("ours", warm=True, keep_ratio=0.5))
    assert min(cold.values()) > 0
    assert warm["vision"] == warm["prepare"] == 0 < warm["prune"]
    assert (tokens, kept) == (ranking.sequence_length, pruned.sequence_length)
    assert watched(PAPER)[1] == tokens
    # the answer is "A] > [B] > [C]", ten tokens; the first comes of the prompt, the last is not read again
    assert watched(Method("generation"))[1] == tokens + 9
    one_by_one = [subject.reranker.rerank(subject.queries[0], [image]) for image in subject.images]
    assert watched(Method("pointwise"))[1] == sum(ranking.sequence_length for ranking in one_by_one)


def test_lists_longer_than_a_window_are_read_in_the_same_windows(subject: Subject) -> None:
    pages = Subject(subject.reranker, subject.twin, page_images(25, (64, 64)), [], questions(1))
    read = {}
    for method in (PAPER, COLD):
        with listening([subject.reranker.model, subject.twin]) as watch:
            run(method, pages)
        read[method] = watch.tokens
    assert read[PAPER] == read[COLD]


def test_memory_is_what_a_block_needs_at_most() -> None:
    with peak_memory(torch.device("cpu")) as memory:
        for _ in range(40):
            torch.ones(25_000_000).sum().item()  # 100 MB, again and again
    assert 70e6 < memory.rise < 250e6


def test_other_programs_are_noticed() -> None:
    burn = [sys.executable, "-c", "from time import *\nend = monotonic() + 60\nwhile monotonic() < end: pass"]
    with others_at_work() as others, subprocess.Popen(burn) as other:
        time.sleep(1)
        other.kill()
    assert 0.3 / (os.cpu_count() or 1) < others.share <= 1.1


def test_heads_that_share_a_key_count_as_many_as_they_are() -> None:
    query, key = torch.randn(1, 6, 10, 8), torch.randn(1, 2, 10, 8)
    attend = nn.functional.scaled_dot_product_attention
    flops, _ = count_flops(lambda: attend(query, key, key, is_causal=True, enable_gqa=True))
    assert flops == 6 * 2 * 10 * 10 * 8  # six heads, each as if it had a key of its own


def test_a_method_out_of_memory_is_named_and_the_others_go_on(subject: Subject, short_of_memory: None) -> None:
    outcome = _measured([PAPER, WARM], subject, Settings(repeats=2))
    assert [row.method for row in outcome.rows] == [WARM]
    assert outcome.out_of_memory == ["the paper's way (3 pages of 160x200)"]
    assert outcome.differences == (None, None)


def test_a_method_that_runs_out_of_memory_later_keeps_its_row(subject: Subject) -> None:
    outcomes = measure([PAPER, WARM], subject, Settings(repeats=2), silently)
    assert [row.rounds for row in next(outcomes).rows] == [1]

    def run_out(module: Any, given: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    hook = subject.twin.lm_head.register_forward_pre_hook(run_out)
    *_, last = outcomes
    hook.remove()
    assert [(row.method, row.rounds) for row in last.rows] == [(PAPER, 1), (WARM, 2)]
    assert last.out_of_memory == ["the paper's way, timed again (3 pages of 160x200)"]


def test_every_timed_run_is_reported_at_once_and_the_first_report_has_a_row() -> None:
    settings = Settings(
        str(PARITY), "cpu", pages=2, size=(96, 96), kinds=("paper", "ours"), keep_ratios=(1.0,), counts=(1,), repeats=2
    )
    known = [[*report.rows, *report.points] for report in bench(settings)]
    assert [sum(row.rounds for row in rows) for rows in known] == list(range(1, 2 * (3 + 4) + 1))


def test_a_method_that_takes_long_is_timed_fewer_times(subject: Subject) -> None:
    [row] = _measured([WARM], subject, Settings(repeats=3, seconds=0)).rows
    assert row.rounds == 1


def test_the_table_comes_first_then_the_points_with_the_least_pixels() -> None:
    lists = Settings(pages=20, size=(100, 100), counts=(5, 100, 1), sizes=((50, 50), (40, 200)), batches=(1, 8)).lists
    assert [(pages, size) for _, pages, size in lists] == [
        (20, (100, 100)), (1, (100, 100)), (5, (100, 100)), (20, (50, 50)), (20, (40, 200)), (100, (100, 100)),
    ]  # fmt: skip
    assert [method.batch for method in lists[0][0]] == [1] * (3 + 6) + [8] * 6


def test_past_the_limit_nothing_more_begins() -> None:
    *_, report = bench(Settings(str(PARITY), "cpu", pages=2, size=(96, 96), counts=(1,), repeats=5, limit=0))
    assert [(row.method, row.rounds) for row in report.rows] == [(PAPER, 1)] and not report.points


def test_the_report_compares_rows_on_the_same_pages_only(subject: Subject) -> None:
    settings = Settings(pages=3, size=(160, 200), repeats=2, batches=(1,))
    table = _measured([PAPER, WARM], subject, settings)
    lone = _measured([WARM], Subject(subject.reranker, subject.twin, *_two_of(subject)), settings)
    where = Environment("cpu", 1, "float32", "2", "5", 1, 4, matmul_peak=1e12, memory="resident")
    report = Report(settings, where, table.rows, lone.rows, *table.differences, [], [])
    paper, ours = report.rows

    assert report.difference is not None and report.spread is not None and report.difference < 1e-4 < report.spread
    assert report.speed_up(paper) == report.share_of_memory(paper) == 1
    assert report.speed_up(ours) == paper.total / ours.total
    assert report.speed_up(report.points[0]) is None
    assert report.share_of_peak(ours) == pytest.approx(ours.flops / (ours.total * 1e-3) / 1e12)
    assert ours.fastest <= ours.total <= ours.slowest and ours.rounds == 2
    assert json.loads(json.dumps(report.as_json()))["rows"][1]["label"] == "ours, warm, keep 1, batch 1"


def test_a_matmul_peak_is_a_speed() -> None:
    assert 1e8 < matmul_peak(torch.device("cpu"), torch.float32) < 1e14


def test_pages_are_of_their_size_and_no_two_are_alike() -> None:
    pages = page_images(3, (90, 60))
    assert {page.size for page in pages} == {(90, 60)}
    assert len({page.tobytes() for page in pages}) == 3
    assert page_images(1, (90, 60))[0].tobytes() == pages[0].tobytes() != page_images(1, (90, 60), 1)[0].tobytes()
    assert len(set(questions(100))) == 100


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kinds": ("ours", "magic")}, "Methods are paper, generation, pointwise, ours; got magic"),
        ({"kinds": ()}, "nothing to measure"),
        ({"keep_ratios": (0.0,)}, "keep_ratio is above 0 and at most 1, got 0.0"),
        ({"pages": 0}, "pages is at least 1, got 0"),
        ({"counts": (5, 0)}, "at least 1, got (5, 0)"),
        ({"sizes": ((8, 100),)}, "32 to 4096 pixels a side, got 8x100"),
        ({"quantization": "int4"}, "quantization is one of 'int8', 'fp8', got 'int4'"),
        ({"quantization": "int8", "kinds": ("paper",)}, "Quantization is for ours; got methods paper."),
    ],
)
def test_settings_say_what_came(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        Settings(**options)
    assert said in str(caught.value)


def test_sizes_are_read_as_width_and_height() -> None:
    assert parse_size(" 768X1000") == (768, 1000)
    with pytest.raises(ValueError, match="such as 768x1000; got '768'"):
        parse_size("768")


def test_random_weights_need_a_precision_that_is_one() -> None:
    with pytest.raises(ValueError, match="dtype is one of 'bfloat16', 'float16', 'float32'.*got 'int4'"):
        load_reranker("15m", dtype="int4")


@pytest.fixture
def double_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of torchao: the last layer's output is doubled, in weights of its own."""

    def double(model: Any, quantization: str) -> None:
        out = model.model.language_model.layers[-1].mlp.down_proj
        out.weight = nn.Parameter(2 * out.weight.detach(), requires_grad=False)

    monkeypatch.setattr("llama_index_ziprerank.evaluation.efficiency.configurations.quantize", double)
    monkeypatch.setattr("llama_index_ziprerank.evaluation.efficiency.settings.check_quantization", lambda name: None)


def test_quantized_rows_come_last_and_are_warm(double_instead: None) -> None:
    plain = Settings(keep_ratios=(1.0, 0.5), batches=(1, 8)).methods
    settings = Settings(keep_ratios=(1.0, 0.5), batches=(1, 8), quantization="fp8")
    added = settings.methods[len(plain) :]
    assert settings.methods[: len(plain)] == plain
    assert [method.label for method in added] == [
        "ours, warm, keep 1, fp8, batch 1", "ours, warm, keep 0.5, fp8, batch 1",
        "ours, warm, keep 1, fp8, batch 8", "ours, warm, keep 0.5, fp8, batch 8",
    ]  # fmt: skip
    assert all(method.quantization is None for method in settings.curves)


def test_the_quantized_copy_shares_what_was_not_quantized(subject: Subject, double_instead: None) -> None:
    before = run(WARM, subject)
    model, smaller = subject.reranker.model, quantized(subject.reranker, "int8").model
    own = {weight.data_ptr() for weight in smaller.parameters()} - {weight.data_ptr() for weight in model.parameters()}
    assert own == {smaller.model.language_model.layers[-1].mlp.down_proj.weight.data_ptr()}
    torch.testing.assert_close(run(WARM, subject), before, rtol=0, atol=0)


def test_quantized_rows_are_watched_and_compared_with_the_full_weights(double_instead: None) -> None:
    settings = Settings(
        str(PARITY), "cpu", pages=3, size=(96, 96), kinds=("paper", "ours"), keep_ratios=(1.0, 0.5), batches=(1, 2),
        repeats=1, quantization="int8",
    )  # fmt: skip
    *_, report = bench(settings)
    rows = {row.method: row for row in report.rows}
    assert rows[INT8].tokens == rows[WARM].tokens and rows[INT8].flops == rows[WARM].flops
    assert rows[INT8].milliseconds["llm"] > 0 == rows[INT8].milliseconds["vision"]
    assert [change.keep_ratio for change in report.changes] == [1.0, 0.5]
    assert all(change.logits > 1e-3 for change in report.changes)
    assert report.difference is not None and report.difference < 1e-4  # of the full weights alone


def test_a_change_is_the_largest_of_a_logit_and_whether_pages_swap() -> None:
    full, near, swapped = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([3.5, 1.0, 1.75]), torch.tensor([3.0, 2.5, 2.0])
    half, half_int8 = Method("ours", True, 0.5), Method("ours", True, 0.5, 1, "int8")
    answers = {WARM: full, half: full, INT8: near, half_int8: swapped}
    assert changes(answers, 3) == [Change(1.0, 0.5, 2.0, same_order=True), Change(0.5, 1.5, 2.0, same_order=False)]
    assert changes({INT8: near}, 3) == changes(answers, 21) == []


def test_plain_weights_take_what_they_say() -> None:
    model = nn.Linear(4, 5)
    assert weight_bytes(model) == 4 * (4 * 5 + 5)


@pytest.mark.skipif(not HAS_TORCHAO, reason="torchao is an optional extra")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_int8_weights_take_a_quarter_and_leave_the_full_ones_alone(subject: Subject) -> None:
    before = run(WARM, subject)
    smaller = quantized(subject.reranker, "int8")
    full = subject.reranker.model.model.language_model.layers
    linear = [module for module in full.modules() if isinstance(module, nn.Linear)]
    rows, weights = sum(module.out_features for module in linear), sum(module.weight.numel() for module in linear)
    saved = weight_bytes(full) - weight_bytes(smaller.model.model.language_model.layers)
    assert 3 * weights - 8 * rows <= saved <= 3 * weights - 4 * rows  # a scale a row, perhaps a zero point too
    torch.testing.assert_close(run(WARM, subject), before, rtol=0, atol=0)


@pytest.mark.skipif(HAS_TORCHAO, reason="torchao is installed")
def test_without_torchao_nothing_is_measured() -> None:
    with pytest.raises(ImportError, match=r"needs torchao.*llama-index-ziprerank\[quantization\]"):
        Settings(quantization="int8")


def _measured(methods: Sequence[Method], subject: Subject, settings: Settings) -> Outcome:
    *_, last = measure(methods, subject, settings, silently)
    return last


def _two_of(subject: Subject) -> tuple[list[Image.Image], list[Any], list[str]]:
    return list(subject.images[:2]), list(subject.features[:2]), list(subject.queries)
