"""A small tokenizer and an untrained reader."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from llama_index_ziprerank.training.nano import export, reading
from llama_index_ziprerank.training.nano.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["the hash table of a page holds words", "how do I draw a bar graph"] * 20)


@pytest.fixture
def reader(tokenizer: PreTrainedTokenizerFast) -> reading.Reader:
    torch.manual_seed(0)
    return export.build_reader(tokenizer)
