"""One forward pass gives the letters' logits: the scores of all pages of a window, or of a batch of windows.

Only the letters' rows of the language-model head are used, at the read position alone: the inner model runs without its
head. Letters: B windows, L tokens of the longest, N pages of a window, D width of the language model.

Shorter windows are padded on the right, behind their read position. Attention is causal, so nothing that is read can
see the padding, and the attention mask may stay all ones: transformers then materialises no (L, L) mask (sdpa and
FlashAttention run with ``is_causal``) and does not take gaps in the positions for the seams of packed sequences.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from llama_index_ziprerank.reranking.pruning import WindowInputs


def window_logits(model: Qwen3VLForConditionalGeneration, windows: Sequence[WindowInputs]) -> list[torch.Tensor]:
    """Score the pages of each window, differentiably: B windows -> B tensors (N,) float32 on the model's device."""
    hidden = _hidden_states(model, windows)  # (B, L, D)
    head = model.get_output_embeddings().weight  # (vocabulary, D)
    return [
        head[window.identifier_ids.to(head.device)].float() @ states[window.read_position].float()
        for window, states in zip(windows, hidden, strict=True)
    ]


@torch.inference_mode()
def identifier_logits(model: Qwen3VLForConditionalGeneration, windows: Sequence[WindowInputs]) -> list[torch.Tensor]:
    """Score the pages of each window without gradients: B windows -> B tensors (N,) float32 on the CPU.

    Raises:
        FloatingPointError: when a logit is not finite.
    """
    logits = [scores.cpu() for scores in window_logits(model, windows)]
    if not all(scores.isfinite().all() for scores in logits):
        raise FloatingPointError(
            f"The reranker's logits are not finite in {model.dtype}. Load it with dtype='bfloat16' or 'float32'."
        )
    return logits


def forward_arguments(
    windows: Sequence[WindowInputs], *, padding_side: Literal["right", "left"] = "right"
) -> dict[str, Any]:
    """Pad windows to one length and write them as arguments of the transformers forward.

    On the right the padding needs no mask (see above); on the left it does, and columns move by the padding.
    """
    padding = int(windows[0].input_ids[-1])  # any text token will do: nothing reads it
    input_ids = pad_sequence([w.input_ids for w in windows], True, padding, padding_side)  # (B, L)
    position_ids = pad_sequence([w.position_ids.T for w in windows], True, 0, padding_side)  # (B, L, 3)
    attention_mask = torch.ones_like(input_ids)
    if padding_side == "left":
        attention_mask = pad_sequence([torch.ones_like(w.input_ids) for w in windows], True, 0, padding_side)
    layers = zip(*(window.deepstack for window in windows), strict=True)
    features = BaseModelOutputWithDeepstackFeatures(
        pooler_output=tuple(window.merged for window in windows), deepstack_features=list(layers)
    )
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": position_ids.permute(2, 0, 1),  # (3, B, L)
        "mm_encoder_outputs": {"image": features},
        "use_cache": False,
    }


def _hidden_states(model: Qwen3VLForConditionalGeneration, windows: Sequence[WindowInputs]) -> torch.Tensor:
    return model.model(**forward_arguments(windows)).last_hidden_state
