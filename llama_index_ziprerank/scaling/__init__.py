"""Scaling out with Ray: many PDFs are read and encoded on all machines of a cluster, and rerankers are served on them.

`pip install llama-index-ziprerank[scaling]`. The index itself is `ColPaliIndex`, its vectors on a Qdrant server where
they are too many for a folder (`retrieval.qdrant`).
"""

try:
    import ray  # noqa: F401
except ImportError as error:
    raise ImportError("Scaling out needs Ray. Install it: pip install 'llama-index-ziprerank[scaling]'") from error
