"""The encoder gives colpali-engine's own vectors for every family, batches as it likes, and refuses what it must."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colpali_engine import models
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_retriever import FAMILIES, PARITY, colqwen2, colqwen3

from llama_index_ziprerank.retrieval.encoder import MultiVectorEncoder
from llama_index_ziprerank.retrieval.families import RetrieverError

QUERIES = ["hello world", "How do I change the toner of this printer?"]


def _images() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    sizes = [(64, 90), (64, 64), (120, 50), (96, 96)]
    return [Image.fromarray(generator.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def _difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colqwen3(tmp_path_factory.mktemp("retriever") / "tiny")


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> MultiVectorEncoder:
    return MultiVectorEncoder.from_pretrained(str(checkpoint), device="cpu")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # transformers' PaliGemmaProcessor
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_vectors_that_colpali_engine_gives(name: str, tmp_path: Path) -> None:
    build, model_class, processor_class = FAMILIES[name]
    build(tmp_path)
    model, processor = model_class.from_pretrained(tmp_path).eval(), processor_class.from_pretrained(tmp_path)
    with torch.inference_mode():
        pages = [model(**processor.process_images([image]))[0].numpy() for image in _images()]
        questions = [model(**processor.process_queries([query]))[0].numpy() for query in QUERIES]
    encoder = MultiVectorEncoder.from_pretrained(str(tmp_path), device="cpu")
    assert encoder.family == name
    assert _difference(encoder.encode_images(_images(), batch_size=2), pages) < 1e-5
    assert _difference(encoder.encode_queries(QUERIES), questions) < 1e-5
    assert pages[0].shape[1] == encoder.dim


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_runs_in_bfloat16(name: str, tmp_path: Path) -> None:
    FAMILIES[name][0](tmp_path)
    exact = MultiVectorEncoder.from_pretrained(str(tmp_path), device="cpu")
    short = MultiVectorEncoder.from_pretrained(str(tmp_path), device="cpu", dtype="bfloat16")
    assert short.model.dtype == torch.bfloat16
    assert short.fingerprint == exact.fingerprint
    assert _difference(short.encode_images(_images()), exact.encode_images(_images())) < 0.1


def test_vectors_are_unit_float32_without_padding(encoder: MultiVectorEncoder) -> None:
    for vectors in [*encoder.encode_images(_images()), *encoder.encode_queries(QUERIES)]:
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("batch_size", [None, 1, 3, 100])
def test_batches_change_nothing_and_progress_counts_every_page(
    encoder: MultiVectorEncoder, batch_size: int | None
) -> None:
    seen: list[tuple[int, int]] = []
    pages = encoder.encode_images(_images(), batch_size=batch_size, progress=lambda done, all: seen.append((done, all)))
    assert _difference(pages, encoder.encode_images(_images(), batch_size=1)) < 1e-5
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_threads_share_an_encoder(encoder: MultiVectorEncoder) -> None:
    expected = encoder.encode_queries(QUERIES) + encoder.encode_images(_images())
    with ThreadPoolExecutor(8) as threads:
        questions = [threads.submit(encoder.encode_queries, QUERIES) for _ in range(8)]
        pages = [threads.submit(encoder.encode_images, _images()) for _ in range(8)]
    for question, page in zip(questions, pages, strict=True):
        assert _difference(question.result() + page.result(), expected) == 0


def test_a_stream_of_pages_is_read_a_batch_at_a_time(encoder: MultiVectorEncoder) -> None:
    read: list[int] = []

    def pages() -> Any:
        for number, image in enumerate(_images()):
            read.append(number)
            yield image

    next(encoder.stream_images(pages(), batch_size=2))
    assert read == [0, 1]


class _SmallMemory:
    """Stands for a device that holds at most ``pages`` pages in one forward pass."""

    def __init__(self, model: torch.nn.Module, pages: int, error: RuntimeError) -> None:
        self.pages, self.error, self.sizes = pages, error, []
        self.hook = model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: torch.nn.Module, positional: Any, named: dict[str, torch.Tensor]) -> None:
        self.sizes.append(len(named["input_ids"]))
        if self.sizes[-1] > self.pages:
            raise self.error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_batch_that_exceeds_the_memory_is_halved_and_keeps_its_order(
    encoder: MultiVectorEncoder, error: RuntimeError
) -> None:
    expected = encoder.encode_images(_images(), batch_size=1)
    memory = _SmallMemory(encoder.model, 1, error)
    try:
        found = encoder.encode_images(_images(), batch_size=4)
    finally:
        memory.hook.remove()
    assert memory.sizes == [4, 2, 1, 1, 2, 1, 1]
    assert _difference(found, expected) == 0


def test_a_page_that_alone_exceeds_the_memory_is_one_clear_error(encoder: MultiVectorEncoder) -> None:
    memory = _SmallMemory(encoder.model, 0, torch.OutOfMemoryError())
    try:
        with pytest.raises(torch.OutOfMemoryError, match="One page of 64x90 pixels does not fit the memory of cpu"):
            encoder.encode_images(_images())
    finally:
        memory.hook.remove()


def test_another_error_of_the_device_is_not_taken_for_a_lack_of_memory(encoder: MultiVectorEncoder) -> None:
    broken = _SmallMemory(encoder.model, 0, RuntimeError("device-side assert triggered"))
    try:
        with pytest.raises(RuntimeError, match="device-side assert"):
            encoder.encode_images(_images())
    finally:
        broken.hook.remove()


def test_pooling_leaves_one_vector_in_pool_factor_and_no_question_is_pooled(checkpoint: Path) -> None:
    plain = MultiVectorEncoder.from_pretrained(str(checkpoint), device="cpu")
    pooled = MultiVectorEncoder.from_pretrained(str(checkpoint), device="cpu", pool_factor=3)
    for before, after in zip(plain.encode_images(_images()), pooled.encode_images(_images()), strict=True):
        assert len(after) <= len(before) // 3
    assert _difference(plain.encode_queries(QUERIES), pooled.encode_queries(QUERIES)) == 0
    with pytest.raises(ValueError, match="pool_factor must be at least 1"):
        MultiVectorEncoder.from_pretrained(str(checkpoint), device="cpu", pool_factor=0)


def test_the_fingerprint_is_the_model_and_not_its_folder_or_dtype(checkpoint: Path, tmp_path: Path) -> None:
    copy, other = tmp_path / "copy", tmp_path / "other"
    shutil.copytree(checkpoint, copy)
    colqwen3(other, seed=1)
    fingerprint = MultiVectorEncoder.from_pretrained(str(checkpoint), device="cpu").fingerprint
    assert MultiVectorEncoder.from_pretrained(str(copy), device="cpu", dtype="bfloat16").fingerprint == fingerprint
    assert MultiVectorEncoder.from_pretrained(str(other), device="cpu").fingerprint != fingerprint


def _without_projection(base: Path) -> Path:
    weights = load_file(base / "model.safetensors")
    left = {name: weight for name, weight in weights.items() if not name.startswith("custom_text_proj")}
    save_file(left, base / "model.safetensors", {"format": "pt"})
    return base


def _adapter(base: Path, **choices: Any) -> Any:
    return get_peft_model(models.ColQwen2.from_pretrained(base), LoraConfig(r=2, **choices))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "custom_text_proj"]])
def test_an_adapter_is_refused_when_neither_it_nor_its_base_has_the_projection(
    tmp_path: Path, targets: list[str]
) -> None:
    base = _without_projection(colqwen2(tmp_path / "base"))
    _adapter(base, target_modules=targets).save_pretrained(tmp_path / "adapter")
    with pytest.raises(RetrieverError, match="/adapter' on its base '.*/base' holds no weights for 'custom_text_proj'"):
        MultiVectorEncoder.from_pretrained(str(tmp_path / "adapter"), device="cpu")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_may_bring_the_projection_that_its_base_lacks(tmp_path: Path) -> None:
    base = _without_projection(colqwen2(tmp_path / "base"))
    model = _adapter(base, target_modules=["q_proj"], modules_to_save=["custom_text_proj"])
    model.save_pretrained(tmp_path / "adapter")
    with torch.inference_mode():
        batch = models.ColQwen2Processor.from_pretrained(base).process_images(_images()[:1])
        expected = [model.eval()(**batch)[0].numpy()]
    encoder = MultiVectorEncoder.from_pretrained(str(tmp_path / "adapter"), device="cpu")
    assert _difference(encoder.encode_images(_images()[:1]), expected) < 1e-5


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_beside_a_whole_model_is_refused(tmp_path: Path) -> None:
    base = colqwen2(tmp_path / "base")
    _adapter(base, target_modules=["q_proj"]).save_pretrained(base)
    with pytest.raises(RetrieverError, match=r"a LoRA adapter \(adapter_config.json\) beside a whole model"):
        MultiVectorEncoder.from_pretrained(str(base), device="cpu")


def test_an_adapter_whose_base_is_gone_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "moved")}))
    with pytest.raises(FileNotFoundError, match="the base of .*: the folder '.*moved' does not exist"):
        MultiVectorEncoder.from_pretrained(str(tmp_path), device="cpu")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers for it
def test_a_lora_adapter_loads_on_its_base(tmp_path: Path) -> None:
    base, adapter = colqwen2(tmp_path / "base"), tmp_path / "adapter"
    _, model_class, processor_class = FAMILIES["ColQwen2"]
    model = get_peft_model(
        model_class.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj", "custom_text_proj"])
    )
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)  # LoRA starts at zero, where it would change nothing
    model.save_pretrained(adapter)
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    with torch.inference_mode():
        batch = processor_class.from_pretrained(base).process_images(_images()[:1])
        expected = [model.eval()(**batch)[0].numpy()]
    encoder = MultiVectorEncoder.from_pretrained(str(adapter), device="cpu")
    assert _difference(encoder.encode_images(_images()[:1]), expected) < 1e-5
    plain = MultiVectorEncoder.from_pretrained(str(base), device="cpu")
    assert _difference(plain.encode_images(_images()[:1]), expected) > 1e-2
    assert plain.fingerprint != encoder.fingerprint


def test_a_base_model_is_refused_because_its_projection_would_be_random() -> None:
    with pytest.raises(
        RetrieverError, match="'custom_text_proj': it is a base model, not a trained ColQwen3 retriever"
    ):
        MultiVectorEncoder.from_pretrained(str(PARITY), device="cpu")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert"}, r"model_type 'bert'.*ColPali \(paligemma\).*ColModernVBERT \(modernvbert\)"),
        ({}, "model_type None"),
        ({"model_type": "qwen2_vl", "architectures": ["BiQwen2"]}, "BiQwen2, which gives one vector a page"),
        (None, "has no config.json"),
    ],
)
def test_a_checkpoint_of_no_multi_vector_family_is_refused(tmp_path: Path, config: Any, message: str) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RetrieverError, match=message):
        MultiVectorEncoder.from_pretrained(str(tmp_path), device="cpu")


def test_a_checkpoint_without_all_weights_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    norm = next(name for name in weights if name.endswith("language_model.norm.weight"))
    save_file({k: v for k, v in weights.items() if k != norm}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(RetrieverError, match=r"lacks 1 weights of a ColQwen3 retriever, such as .*norm\.weight"):
        MultiVectorEncoder.from_pretrained(str(tmp_path), device="cpu")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_is_cut_off_is_named(checkpoint: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:100])
    with pytest.raises(RetrieverError, match="cannot be read .*Fetch it again"):
        MultiVectorEncoder.from_pretrained(str(tmp_path), device="cpu")


def test_weights_in_another_format_than_safetensors_are_not_read(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        MultiVectorEncoder.from_pretrained(str(tmp_path), device="cpu")


def test_an_adapter_in_another_format_than_safetensors_is_not_read(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(checkpoint)}))
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(RetrieverError, match="has no adapter_model.safetensors; no other format is read"):
        MultiVectorEncoder.from_pretrained(str(tmp_path), device="cpu")


@pytest.mark.parametrize("query", ["", "  \n"])
def test_a_question_without_text_is_refused(encoder: MultiVectorEncoder, query: str) -> None:
    with pytest.raises(ValueError, match="A question must contain text"):
        encoder.encode_queries([query])


def test_a_batch_size_below_one_is_refused(encoder: MultiVectorEncoder) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        encoder.encode_images(_images(), batch_size=0)
