"""ZipRerank for LlamaIndex: find the pages of a PDF with ColPali, reorder them in one forward pass.

The four doors are imported when they are first used, so that `import llama_index_ziprerank` (and `ziprerank --help`)
stays quick.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_index_ziprerank.indices import ColPaliIndex
    from llama_index_ziprerank.postprocessors import ZipRerankPostprocessor
    from llama_index_ziprerank.readers import PDFPageReader
    from llama_index_ziprerank.retrievers import ColPaliRetriever

__all__ = ["ColPaliIndex", "ColPaliRetriever", "PDFPageReader", "ZipRerankPostprocessor", "__version__"]

_DOORS = {
    "ColPaliIndex": "indices",
    "ColPaliRetriever": "retrievers",
    "PDFPageReader": "readers",
    "ZipRerankPostprocessor": "postprocessors",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return version("llama-index-ziprerank")
    if name in _DOORS:
        return getattr(import_module(f"{__name__}.{_DOORS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
