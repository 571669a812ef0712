"""One forward pass gives the letters' logits: the scores of all pages of a window, or of a batch of windows.

Only the letters' rows of the language-model head are used, at the read position alone: the inner model runs without its
head. Letters: B windows, L tokens of the longest, N pages of a window, D width of the language model.

Shorter windows are padded on the right, behind their read position. Attention is causal, so nothing that is read can
see the padding, and no attention mask is needed: transformers then materialises no (L, L) mask (sdpa and FlashAttention
run with ``is_causal``). Packing windows into one long row instead would need such a mask wherever FlashAttention's
variable lengths are missing. `batching.py` keeps the padding small. The last layer runs at the read positions alone
where it can (`last_layer.py`).

The language model is called with embedded inputs: transformers' own joining of text and visual tokens
(``Qwen3VLModel.forward``) stops the host several times to count and find tokens whose places are known here.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from llama_index_ziprerank.reranking.pruning import WindowInputs, to_device


def window_logits(model: Qwen3VLForConditionalGeneration, windows: Sequence[WindowInputs]) -> list[torch.Tensor]:
    """Score the pages of each window, differentiably: B windows -> B tensors (N,) float32 on the model's device."""
    hidden = _read_states(model, windows)  # (B, D)
    head = model.get_output_embeddings().weight  # (vocabulary, D)
    return [
        head[window.identifier_ids.to(head.device)].float() @ state.float()
        for window, state in zip(windows, hidden, strict=True)
    ]


@torch.inference_mode()
def identifier_logits(model: Qwen3VLForConditionalGeneration, windows: Sequence[WindowInputs]) -> list[torch.Tensor]:
    """Score the pages of each window without gradients: B windows -> B tensors (N,) float32 on the CPU.

    Raises:
        FloatingPointError: when a logit is not finite.
    """
    counts = [len(window.identifier_ids) for window in windows]
    logits = torch.cat(window_logits(model, windows)).cpu()
    if not logits.isfinite().all():
        raise FloatingPointError(
            f"The reranker's logits are not finite in {model.dtype}. Load it with dtype='float32', or with 'bfloat16' "
            "where that is what it was trained in."
        )
    return list(logits.split(counts))


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


def _read_states(model: Qwen3VLForConditionalGeneration, windows: Sequence[WindowInputs]) -> torch.Tensor:
    """Run the language model, without its head: B windows -> (B, D), of each what is read."""
    padding = windows[0].input_ids[-1:]  # any text token will do: nothing reads it
    length = max(len(window.input_ids) for window in windows)
    input_ids = torch.stack([_pad(window.input_ids, padding, length) for window in windows])  # (B, L)
    position_ids = torch.stack([_pad(w.position_ids, w.position_ids[:, -1:], length) for w in windows], 1)  # (3, B, L)
    columns = torch.cat([window.visual_columns + row * length for row, window in enumerate(windows)])
    [reads] = to_device(input_ids.device, torch.tensor([window.read_position for window in windows]))  # (B,)

    def place(text: torch.Tensor, layers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Put the visual tokens of all windows in their columns: (B * L, D) -> (B, L, D)."""
        return text.index_copy(0, columns, torch.cat(list(layers)).to(text.dtype)).view(len(windows), length, -1)

    embedded = model.get_input_embeddings()(input_ids).flatten(0, 1)  # (B * L, D)
    deepstack = [
        place(torch.zeros_like(embedded), layers) for layers in zip(*(w.deepstack for w in windows), strict=True)
    ]
    output = model.model.language_model(
        inputs_embeds=place(embedded, [window.merged for window in windows]),
        position_ids=position_ids,
        # the features are spread over whole rows, so the rows' numbers serve as the index of what they are added to
        visual_pos_masks=torch.arange(len(windows), device=input_ids.device),
        deepstack_visual_embeds=deepstack,
        use_cache=False,
        read_positions=reads,
    )
    states = output.last_hidden_state  # (B, 1, D), or (B, L, D) from a last layer that does not take `read_positions`
    rows = torch.arange(len(windows), device=states.device)
    return states[:, 0] if states.shape[1] == 1 else states[rows, reads]


def _pad(tokens: torch.Tensor, padding: torch.Tensor, length: int) -> torch.Tensor:
    """Repeat ``padding`` behind ``tokens`` up to ``length``: (..., L') -> (..., length)."""
    missing = length - tokens.shape[-1]
    return torch.cat([tokens, padding.expand(*tokens.shape[:-1], missing)], dim=-1)
