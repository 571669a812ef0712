"""How a list is ranked: as asked for, else as the checkpoint's config says, else as the paper does."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from llama_index_ziprerank.reranking.fusion import check_first_stage_weight
from llama_index_ziprerank.reranking.pruning import PruningMode, check_pruning
from llama_index_ziprerank.reranking.windows import Strategy, check_permutations, check_strategy, check_window

OWN = ("keep_ratio", "pruning", "first_stage_weight")
"""Options that a checkpoint's config.json may set, under these names."""


@dataclass(frozen=True)
class RankingOptions:
    """The options of `ListwiseReranker.rerank`, decided. ValueError for one out of its bounds."""

    keep_ratio: float = 1.0
    pruning: PruningMode = "prompt"
    window: int = 20
    stride: int = 10
    strategy: Strategy = "sliding"
    permutations: int = 1
    first_stage_weight: float = 0.0

    def __post_init__(self) -> None:
        check_pruning(self.keep_ratio, self.pruning)
        check_window(self.window, self.stride)
        check_strategy(self.strategy)
        check_permutations(self.permutations)
        check_first_stage_weight(self.first_stage_weight)

    @classmethod
    def decide(cls, config: PreTrainedConfig, **asked: Any) -> "RankingOptions":
        """Fill in what was not asked for (None): the checkpoint's own choice, else the default.

        Raises:
            ValueError: for an option out of its bounds, in ``asked`` or in the config.
        """
        wanted = {name: value for name, value in asked.items() if value is not None}
        cls(**wanted)
        own = {name: value for name in OWN if (value := getattr(config, name, None)) is not None}
        try:
            if booleans := [name for name in own if isinstance(own[name], bool)]:
                raise TypeError(f"{booleans[0]} is true or false")
            return cls(**{**own, **wanted})
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The checkpoint's config.json says how it ranks, {own}, and one of these cannot be: {error}"
            ) from error
