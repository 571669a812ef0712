"""What both training stages minimise (ZipRerank, arXiv:2605.11864): a language-model loss on the answer plus a ranking
loss on the letters' logits.

Letters: N candidates of one list, T tokens of its answer, V tokens of the vocabulary. *ranks* give each candidate its
place (from 0), an *order* lists candidates best first.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from llama_index_ziprerank.training.samples import target_order, target_ranks

RankingLoss: TypeAlias = Literal["ranknet", "soft_ranking"]


def ranknet_loss(scores: Tensor, ranks: Sequence[int]) -> Tensor:
    """Weighted RankNet: the mean over pairs, i better than j, of softplus(s_j - s_i) / (rank_i + rank_j), ranks from 1.

    RankNet is Burges et al. (2005), equation 3; the weights are those of FIRST (arXiv:2406.15657, section 3.2). Pairs
    come from the given ranks alone, so tied scores keep their pair; candidates that share a rank are not compared.

    Args:
        scores: (N,) logits of the candidates.
        ranks: place of each candidate, from 0 (counted from 1 in the weights, as in the paper).

    Raises:
        ValueError: when scores and ranks differ in length, or no candidate is better than another.
    """
    if len(ranks) != len(scores) or len(set(ranks)) < 2:
        raise ValueError(
            f"RankNet compares candidates of different ranks, a rank for each score; got {len(scores)} scores and the "
            f"ranks {list(ranks)}."
        )
    place = torch.tensor(ranks, device=scores.device) + 1  # (N,)
    better, worse = torch.nonzero(place[:, None] < place[None, :], as_tuple=True)
    weights = 1.0 / (place[better] + place[worse])
    return (F.softplus(scores[worse] - scores[better]) * weights).mean()


def soft_ranking_loss(scores: Tensor, order: Sequence[int], positives: Collection[int], decay: float = 0.5) -> Tensor:
    """Cross-entropy of softmax(scores) and targets proportional to decay**position (ZipRerank, soft ranking loss).

    Positions count along `samples.target_order`: positives first, then the teacher's order. Candidates in neither get
    no weight, but take part in the softmax.

    Args:
        scores: (N,) logits of the candidates.
        order: the teacher's order of the candidates, best first; may leave candidates out.
        positives: candidates known to answer the query.
        decay: how much less each next place weighs, above 0 and at most 1.

    Raises:
        ValueError: when nothing is ranked, or a candidate is named twice or has no score.
    """
    arranged = target_order(order, positives)
    if not arranged or len(set(arranged)) != len(arranged) or not set(arranged) <= set(range(len(scores))):
        raise ValueError(f"Order and positives name some of the {len(scores)} candidates once each, got {arranged}.")
    weights = decay ** torch.arange(len(arranged), dtype=scores.dtype, device=scores.device)
    log_probabilities = F.log_softmax(scores, dim=0)[torch.tensor(arranged, device=scores.device)]
    return -(weights / weights.sum() * log_probabilities).sum()


def language_model_loss(logits: Tensor, target_ids: Tensor) -> Tensor:
    """Mean negative log-likelihood of the answer's tokens: (T, V), (T,) -> scalar. Row t predicts token t."""
    return F.cross_entropy(logits.float(), target_ids.to(logits.device))


@dataclass(frozen=True)
class SampleLoss:
    """The loss of one list, and what it is made of."""

    total: Tensor
    language_model: Tensor
    ranking: Tensor


@dataclass(frozen=True)
class Objective:
    """A stage's loss: `language_model_weight` x language-model loss + `weight` x ranking loss."""

    ranking: RankingLoss
    weight: float
    decay: float = 0.5
    """Of the soft ranking loss."""
    language_model_weight: float = 1.0

    def __call__(
        self, logits: Tensor, target_ids: Tensor, scores: Tensor, order: Sequence[int], positives: Collection[int]
    ) -> SampleLoss:
        """Weigh up one list: logits (T, V) from the read position on, scores (N,) of its candidates."""
        language_model = language_model_loss(logits, target_ids)
        if self.ranking == "ranknet":
            ranking = ranknet_loss(scores, target_ranks(order, positives, len(scores)))
        else:
            ranking = soft_ranking_loss(scores, order, positives, self.decay)
        total = self.language_model_weight * language_model + self.weight * ranking
        return SampleLoss(total, language_model, ranking)


STAGE1 = Objective("ranknet", weight=10.0)
STAGE2 = Objective("soft_ranking", weight=1.0)
