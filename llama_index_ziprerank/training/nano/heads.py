"""What hand-written attention is made of: rotary pairs of a head, how sharply it tells, marks that it takes along."""

from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextAttention

from llama_index_ziprerank.reranking.permutation import IDENTIFIERS
from llama_index_ziprerank.training.nano.model import HEAD_WIDTH

SLOWEST, IDLE = 63, 62
"""Rotary pairs that do not turn at all: marks are compared in the first, and tokens without a task meet the first
token in the other."""


def rows(head: int, pair: int) -> tuple[int, int]:
    """The two rows of a projection that one rotary pair of a head turns."""
    return head * HEAD_WIDTH + pair, head * HEAD_WIDTH + pair + HEAD_WIDTH // 2


def sharpen(attention: Qwen3VLTextAttention, gain: float) -> None:
    """Set the length of queries and keys: how sharply all heads tell apart."""
    attention.q_norm.weight.fill_(gain)
    attention.k_norm.weight.fill_(gain)


def take_along(attention: Qwen3VLTextAttention, head: int, mark: int, to: int, gain: float) -> None:
    """Let a head take a mark along, beside the letters."""
    value = head * HEAD_WIDTH + len(IDENTIFIERS)
    attention.v_proj.weight[value] = 0
    attention.v_proj.weight[value, mark] = 1
    attention.o_proj.weight[:, value] = 0
    attention.o_proj.weight[to, value] = gain
