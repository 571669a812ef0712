"""How the embedded pair "nano" is made: corpus, reading (stage 0), retriever, reranker, export."""

from llama_index_ziprerank import compat

compat.import_torchvision()
