"""How far the logits of two ways lie apart: ours from the paper's, quantized weights from the full ones.

Answers are each method's logits of the first question, (N,). Pages that were read in several windows are not compared.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from llama_index_ziprerank.evaluation.efficiency.methods import Method
from llama_index_ziprerank.evaluation.efficiency.report import Change
from llama_index_ziprerank.reranking.permutation import WINDOW_SIZE

Answers = Mapping[Method, torch.Tensor]


def differences(answers: Answers, pages: int) -> tuple[float | None, float | None]:
    """Return how far our logits, nothing pruned, are from the paper's way, and how far its own lie apart.

    None where they cannot be compared: one of both was not run, or pages were read in several windows.
    """
    paper = answers.get(Method("paper"))
    exact = [method for method in answers if method.kind == "ours" and method.keep_ratio == 1]
    ours = [answers[method] for method in exact if method.quantization is None]
    if paper is None or not ours or pages > WINDOW_SIZE:
        return None, None
    return max(_distance(logits, paper) for logits in ours), _spread(paper)


def changes(answers: Answers, pages: int) -> list[Change]:
    """Compare quantized weights with the full ones, once for each keep_ratio; empty where nothing can be compared."""
    if pages > WINDOW_SIZE:
        return []
    found = {}
    for method, smaller in answers.items():
        full = answers.get(replace(method, quantization=None))
        if method.quantization is None or full is None:
            continue
        same_order = torch.equal(_order(smaller), _order(full))
        found[method.keep_ratio] = Change(method.keep_ratio, _distance(smaller, full), _spread(full), same_order)
    return list(found.values())


def _distance(logits: torch.Tensor, others: torch.Tensor) -> float:
    return float((logits - others).abs().max())


def _spread(logits: torch.Tensor) -> float:
    return float(logits.max() - logits.min())


def _order(logits: torch.Tensor) -> torch.Tensor:
    return logits.argsort(descending=True, stable=True)
