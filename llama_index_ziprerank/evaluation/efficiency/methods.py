"""The ways to rank pages that are compared: the paper's, two rivals, and ours.

All get the same weights, page images and questions. Lists longer than a window are read by the same sliding window;
only the pointwise way has none. The rivals run with our fast vision tower, so that what is compared is the way itself.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image

from llama_index_ziprerank.evaluation.efficiency.subjects import Subject
from llama_index_ziprerank.reranking import ListwiseReranker, RankingInputs, build_ranking_inputs
from llama_index_ziprerank.reranking.features import page_features
from llama_index_ziprerank.reranking.inputs import build_ranking_prompt, prepare_page
from llama_index_ziprerank.reranking.permutation import WINDOW_SIZE, format_permutation
from llama_index_ziprerank.reranking.pruning import window_inputs
from llama_index_ziprerank.reranking.quantization import Quantization
from llama_index_ziprerank.reranking.scoring import identifier_logits
from llama_index_ziprerank.reranking.windows import window_spans

STRIDE = WINDOW_SIZE // 2

Kind = Literal["paper", "generation", "pointwise", "ours"]

_LABELS = {"paper": "the paper's way", "generation": "listwise generation", "pointwise": "page by page"}


@dataclass(frozen=True)
class Method:
    """A way to rank, and its settings where it has any."""

    kind: Kind
    warm: bool = False
    """Whether the pages' features are given, as a cache does; otherwise the tower runs for every question."""
    keep_ratio: float = 1.0
    batch: int = 1
    """Questions that are asked at the same time, each with its pages."""
    quantization: Quantization | None = None
    """Smaller weights for the language model; None: the full ones."""

    @property
    def label(self) -> str:
        """How a table calls it."""
        if self.kind != "ours":
            return _LABELS[self.kind]
        weights = "" if self.quantization is None else f", {self.quantization}"
        return f"ours, {'warm' if self.warm else 'cold'}, keep {self.keep_ratio:g}{weights}, batch {self.batch}"


def reranker_of(method: Method, subject: Subject) -> ListwiseReranker:
    """Find the reranker with the weights that a method asks for."""
    if method.quantization is None:
        return subject.reranker
    if subject.quantized is None:
        raise ValueError(f"{method.label!r} needs a subject with quantized weights, got one without.")
    return subject.quantized


@torch.inference_mode()
def run(method: Method, subject: Subject) -> list[torch.Tensor]:
    """Rank the pages for the first ``method.batch`` questions.

    Returns each question's logits, (N,) float32 on the CPU, for lists of one window; none from the rivals.
    """
    ways: dict[Kind, Callable[[Method, Subject], list[torch.Tensor]]] = {
        "paper": _paper,
        "generation": _generation,
        "pointwise": _pointwise,
        "ours": _ours,
    }
    return ways[method.kind](method, subject)


def _paper(method: Method, subject: Subject) -> list[torch.Tensor]:
    """Run transformers' whole forward for each window, with every token's logits, and read the letters' off."""
    answers = []
    for query in subject.queries[: method.batch]:
        for images in _windows(subject):
            inputs = build_ranking_inputs(subject.reranker.processor, query, images)
            output = subject.twin(**_arguments(inputs, subject.twin.device), use_cache=False)
            logits = output.logits[0, inputs.read_position, inputs.identifier_ids.to(output.logits.device)]
        answers.append(logits.float().cpu())
    return answers


def _generation(method: Method, subject: Subject) -> list[torch.Tensor]:
    """Let the model write out the order, token by token: as many tokens as an order of the window has."""
    model, processor = subject.reranker.model, subject.reranker.processor
    for query in subject.queries[: method.batch]:
        for images in _windows(subject):
            inputs = build_ranking_inputs(processor, query, images)
            order = processor.tokenizer(format_permutation(range(len(images))), add_special_tokens=False).input_ids
            tokens = len(order) - 1  # the prompt ends with the first bracket
            arguments = _arguments(inputs, model.device)
            model.generate(**arguments, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False)
    return []


def _pointwise(method: Method, subject: Subject) -> list[torch.Tensor]:
    """Score page by page, each with a prompt and a forward pass of its own, by the logit of one letter."""
    model, processor = subject.reranker.model, subject.reranker.processor
    for query in subject.queries[: method.batch]:
        for image in subject.images:
            features = page_features(model, [prepare_page(processor, image)])
            prompt = build_ranking_prompt(processor, query, [page.grid for page in features])
            identifier_logits(model, [window_inputs(model, prompt, features)])
    return []


def _ours(method: Method, subject: Subject) -> list[torch.Tensor]:
    """Call the reranker as its users do, from as many threads as there are questions; it batches the calls itself."""
    reranker, pages = reranker_of(method, subject), subject.features if method.warm else subject.images

    def rerank(query: str) -> torch.Tensor:
        return torch.tensor(reranker.rerank(query, pages, method.keep_ratio).logits)

    if method.batch == 1:
        return [rerank(subject.queries[0])]
    with ThreadPoolExecutor(method.batch) as threads:
        return list(threads.map(rerank, subject.queries[: method.batch]))


def _windows(subject: Subject) -> Iterator[Sequence[Image.Image]]:
    """Cut the list as the sliding window does; which page a window has put where changes nothing about the cost."""
    for start, end in window_spans(len(subject.images), WINDOW_SIZE, STRIDE):
        yield subject.images[start:end]


def _arguments(inputs: RankingInputs, device: torch.device) -> dict[str, Any]:
    """Write a window as transformers' own forward takes it."""
    return {
        "input_ids": inputs.input_ids[None].to(device),
        "attention_mask": torch.ones_like(inputs.input_ids)[None].to(device),
        "mm_token_type_ids": inputs.mm_token_type_ids[None].to(device),
        "pixel_values": inputs.pixel_values.to(device),
        "image_grid_thw": inputs.image_grid_thw.to(device),
    }
