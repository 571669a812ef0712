"""What is measured on manuals: models, queries, and the ways in which the reranker prunes."""

from dataclasses import dataclass

from llama_index_ziprerank.evaluation.degradation import DEGRADATIONS
from llama_index_ziprerank.evaluation.results import RERANKED
from llama_index_ziprerank.labels import KINDS
from llama_index_ziprerank.reranking import PruningMode
from llama_index_ziprerank.reranking.fusion import check_first_stage_weight
from llama_index_ziprerank.reranking.inputs import check_sides
from llama_index_ziprerank.reranking.pruning import check_pruning
from llama_index_ziprerank.reranking.windows import Strategy, check_strategy

Pruning = tuple[float | None, PruningMode | None]
ABLATION: dict[str, Pruning] = {
    "keep_1.00": (1.0, "prompt"),
    "keep_0.50_prompt": (0.5, "prompt"),
    "keep_0.25_prompt": (0.25, "prompt"),
    "keep_0.50_query": (0.5, "query"),
    "keep_0.25_query": (0.25, "query"),
}
"""System → the part of the visual tokens that is kept, and what they are compared with; None: the checkpoint's own."""


@dataclass(frozen=True)
class Settings:
    """What is measured. Equal settings give equal results."""

    retriever: str = "nano"
    reranker: str = "nano"
    kinds: tuple[str, ...] = KINDS
    queries: int | None = None
    """Queries of each kind drawn from each manual; all of them by default."""
    pool: int | None = None
    """Candidate pages of a query: its answers and others drawn at random. The whole manual by default."""
    top_k: int = 20
    """Pages of the first stage that are reranked."""
    keep_ratio: float | None = None
    """The checkpoint's own by default, as for `pruning`, `sides` and `first_stage_weight`."""
    pruning: PruningMode | None = None
    strategy: Strategy = "sliding"
    """How more than a window of pages is ranked."""
    sides: tuple[int, ...] | None = None
    """Longest sides of a page in pixels, at each of which the reranker reads it."""
    first_stage_weight: float | None = None
    """How much the first stage's scores count beside the reranker's."""
    ablation: bool = False
    """Rerank in all ways of `ABLATION` too."""
    degradation: str = "none"
    """What is done to the pages before both stages see them (`degradation`)."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("queries", 1), ("pool", 2), ("top_k", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}.")
        for name, values, known in (
            ("kinds", self.kinds, KINDS),
            ("degradation", (self.degradation,), DEGRADATIONS),
        ):
            if not values or not set(values) <= set(known):
                raise ValueError(f"{name}: choose from {', '.join(known)}, got {', '.join(values) or 'nothing'}.")
        check_pruning(self.keep_ratio, self.pruning)
        check_strategy(self.strategy)
        if self.sides is not None:
            check_sides(self.sides)
        check_first_stage_weight(self.first_stage_weight)

    def rerankings(self) -> dict[str, Pruning]:
        """System → how it prunes."""
        main: Pruning = (self.keep_ratio, self.pruning)
        return {RERANKED: main, **(ABLATION if self.ablation else {})}
