import importlib.util
from pathlib import Path

import pytest
import torch
from PIL import Image

from llama_index_ziprerank.reranking import ListwiseReranker

CHECKPOINT = str(Path(__file__).parents[1] / "data" / "parity" / "checkpoint")

needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is an optional extra")


def test_an_unknown_kind_of_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="quantization is one of 'int8', 'fp8', got 'int4'"):
        ListwiseReranker.from_pretrained(CHECKPOINT, "cpu", quantization="int4")  # type: ignore[arg-type]


@pytest.mark.skipif(importlib.util.find_spec("torchao") is not None, reason="torchao is installed")
def test_without_torchao_the_extra_is_named() -> None:
    with pytest.raises(ImportError, match=r"needs torchao.*llama-index-ziprerank\[quantization\]"):
        ListwiseReranker.from_pretrained(CHECKPOINT, "cpu", quantization="int8")


@needs_torchao
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_int8_weights_are_those_of_the_language_model_alone_and_move_scores_little(
    reranker: ListwiseReranker, pages: list[Image.Image]
) -> None:
    small = ListwiseReranker.from_pretrained(CHECKPOINT, "cpu", quantization="int8")
    changed = {name for name, weight in small.model.named_parameters() if type(weight.data) is not torch.Tensor}
    layers = small.model.model.language_model.layers
    expected = {
        f"model.language_model.layers.{name}.weight"
        for name, module in layers.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert changed == expected
    features = reranker.encode_pages(pages[:6])
    ours, theirs = small.rerank("axis", features), reranker.rerank("axis", features)
    assert ours.logits == pytest.approx(theirs.logits, abs=0.05)
    assert ours.logits != theirs.logits


@needs_torchao
def test_fp8_without_a_gpu_says_what_to_use() -> None:
    with pytest.raises(ValueError, match="capability 8.9.*on cpu.*Use quantization='int8'"):
        ListwiseReranker.from_pretrained(CHECKPOINT, "cpu", quantization="fp8")
