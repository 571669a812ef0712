"""The reranking room: page images and a query in, a ranking out. Knows nothing of LlamaIndex.

A chain, each file importing only from those before it: permutation, prompt, inputs, features, pruning, scoring,
windows, fusion, options, ranking, loading, reranker.
"""

from llama_index_ziprerank.compat import import_torchvision

import_torchvision()

from llama_index_ziprerank.reranking.features import PageFeatures  # noqa: E402
from llama_index_ziprerank.reranking.inputs import RankingInputs, build_ranking_inputs  # noqa: E402
from llama_index_ziprerank.reranking.pruning import PruningMode  # noqa: E402
from llama_index_ziprerank.reranking.ranking import Ranking  # noqa: E402
from llama_index_ziprerank.reranking.reranker import ListwiseReranker, RerankMemoryError  # noqa: E402

__all__ = [
    "ListwiseReranker",
    "PageFeatures",
    "PruningMode",
    "Ranking",
    "RankingInputs",
    "RerankMemoryError",
    "build_ranking_inputs",
]
