"""The training wing: it makes checkpoints that the rooms load by name or path."""

from llama_index_ziprerank import compat

compat.import_torchvision()
