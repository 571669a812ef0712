"""Shared by all tests: torchvision must import before transformers' processors and colpali-engine do."""

from llama_index_ziprerank import compat

compat.import_torchvision()
