"""Token embeddings that know how they are spelled, so that reading one word teaches something about the next.

A piece's embedding is the sum of learned vectors of its characters (with their place from either end), its pairs of
characters, and one of its own (fastText's idea, arXiv:1607.04606). After stage 0 the sums become a plain table.
"""

import zlib

import torch
from torch import Tensor, nn

SPELLING_FEATURES = 4096
"""Buckets that character features are hashed into."""

MOST_FEATURES = 32
"""Features of one piece; longer pieces lose their middle pairs."""


def spelling_features(piece: str) -> list[int]:
    """The hashed spelling of one word piece: pairs with both ends marked, characters by place from either end."""
    inner = piece.removeprefix("##")
    marked = ("#" if piece != inner else "^") + inner + "$"
    names = [f"start{i}{character}" for i, character in enumerate(inner[:4])]
    names += [f"end{i}{character}" for i, character in enumerate(inner[::-1][:4])]
    names += [f"pair{marked[i : i + 2]}" for i in range(len(marked) - 1)]
    return [zlib.crc32(name.encode()) % SPELLING_FEATURES for name in names[:MOST_FEATURES]]


class SpelledEmbedding(nn.Module):
    """V pieces, D width: ids (...,) -> (..., D)."""

    features: Tensor

    def __init__(self, pieces: list[str], width: int) -> None:
        super().__init__()
        features = torch.full((len(pieces), MOST_FEATURES), SPELLING_FEATURES)
        for index, piece in enumerate(pieces):
            found = spelling_features(piece)
            features[index, : len(found)] = torch.tensor(found)
        self.register_buffer("features", features, persistent=False)
        self.spelling = nn.EmbeddingBag(SPELLING_FEATURES + 1, width, mode="sum", padding_idx=SPELLING_FEATURES)
        self.own = nn.Embedding(len(pieces), width)
        nn.init.normal_(self.spelling.weight, std=0.3)
        nn.init.normal_(self.own.weight, std=0.1)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed pieces."""
        return self.spelling(self.features[ids.flatten()]).view(*ids.shape, -1) + self.own(ids)

    def __len__(self) -> int:
        """The number of pieces."""
        return len(self.features)

    def table(self) -> Tensor:
        """All embeddings: (V, D)."""
        return self(torch.arange(len(self), device=self.features.device))
