"""The feed-forward layer behind the votes: logarithms of shares, and the first stage's order for the bracket."""

import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextMLP

from llama_index_ziprerank.reranking.permutation import IDENTIFIERS
from llama_index_ziprerank.training.nano.layout import ANY, LETTERS, MARK, OPENING
from llama_index_ziprerank.training.nano.model import WIDTH

_WHOLE_VOTE = 0.2
"""Short, because a share is taken away from its logarithm only as exactly as `_TYPICAL_GAIN` is right."""

_STEEPNESS = 6.0
"""Of the steps that the logarithm is made of: a step is silent for shares of more than its own."""

_SMALLEST_SHARE = 12
"""Shares of the votes below two to minus this are the same."""

_LOGARITHM = 0.05
"""What a factor of two in a word's votes adds to a letter: little, or words that are sure of themselves grow so long
that the next norm makes them smaller."""

_FIRST_IMPRESSION = 0.3
"""What the page of rank r is set back before any word has voted: this times the logarithm of r."""

_TYPICAL_GAIN = 3.2
"""What the norm before the feed-forward layer multiplies a word of the question by, about."""

_OPENING_GAIN = WIDTH**0.5 / (2 * MARK**2) ** 0.5
"""The same for the opening bracket, which is two marks long until the words are counted."""


def write_logarithm(layer: Qwen3VLTextMLP) -> None:
    """Add to each letter the logarithm of its share of a word's votes, as steps that fall silent above their share.

    log2(v) is about -sum over j of relu(1 - v / 2**-j) - relu(-v / 2**-j): no term is larger than one, so that half
    precision is enough, and a share that noise made negative counts as none.
    """
    unit = 1 / (MARK * _TYPICAL_GAIN)  # times what the norm makes of a mark: about one
    letters = range(LETTERS.start, LETTERS.stop)
    neurons = iter(range(1, layer.gate_proj.out_features))  # the first is `write_first_impression`'s
    for step in range(1, _SMALLEST_SHARE + 1):
        for start, sign in ((1, -1), (0, 1)):
            for letter in letters:
                neuron = next(neurons)
                layer.gate_proj.weight[neuron], layer.up_proj.weight[neuron] = 0, 0
                layer.gate_proj.weight[neuron, ANY] = _STEEPNESS * unit * start
                layer.gate_proj.weight[neuron, letter] = -_STEEPNESS * MARK / _WHOLE_VOTE * unit * 2**step
                layer.up_proj.weight[neuron, ANY] = unit
                layer.up_proj.weight[neuron, OPENING] = -unit  # it has no vote
                layer.down_proj.weight[letter, neuron] = sign * _LOGARITHM / _STEEPNESS
    middle = next(neurons)  # one more that is always on, so that letters are about zero
    layer.gate_proj.weight[middle], layer.up_proj.weight[middle] = 0, 0
    layer.gate_proj.weight[middle, ANY], layer.up_proj.weight[middle, ANY] = _STEEPNESS * unit, unit
    layer.up_proj.weight[middle, OPENING] = -unit
    layer.down_proj.weight[LETTERS, middle] = _LOGARITHM / _STEEPNESS * _SMALLEST_SHARE / 2
    for letter in letters:  # the share itself must not be added to its logarithm
        neuron = next(neurons)
        layer.gate_proj.weight[neuron], layer.up_proj.weight[neuron] = 0, 0
        layer.gate_proj.weight[neuron, ANY], layer.up_proj.weight[neuron, letter] = _STEEPNESS * unit, MARK * unit
        layer.down_proj.weight[letter, neuron] = -1 / _STEEPNESS


def write_first_impression(layer: Qwen3VLTextMLP) -> None:
    """Set pages back by the logarithm of their place: the first stage, which chose the order, has read them too."""
    unit = 1 / (MARK * _OPENING_GAIN)
    layer.gate_proj.weight[0], layer.up_proj.weight[0] = 0, 0
    layer.gate_proj.weight[0, OPENING], layer.up_proj.weight[0, ANY] = _STEEPNESS * unit, unit
    layer.down_proj.weight[LETTERS, 0] = -_FIRST_IMPRESSION / _STEEPNESS * torch.arange(1.0, len(IDENTIFIERS) + 1).log()
