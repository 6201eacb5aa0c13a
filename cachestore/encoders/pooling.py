"""Hidden states to vectors: masked poolings, what a sentence-transformers model puts on them, and the L2 norm.

All of it is computed in float32 whatever the model's precision, and never sees padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Head(nn.Module):
    """Hidden states (texts, tokens, width) and a mask of ones, then zeros → (texts, dim) float32.

    ``poolings`` are computed each and joined in that order. The first ``unpooled`` tokens of a text (those of a prompt)
    are left out, but never its last one.
    """

    def __init__(self, poolings: Sequence[str], layers: nn.Sequential, *, normalize: bool, unpooled: int = 0) -> None:
        super().__init__()
        self.poolings = tuple(poolings)
        self.layers = layers
        self.normalize = normalize
        self.unpooled = unpooled

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        hidden = hidden.float()
        first = torch.minimum(torch.full_like(mask[:, 0], self.unpooled), mask.sum(1) - 1)
        parts = [pool(hidden, mask, how, first) for how in self.poolings]
        vectors: Tensor = self.layers(torch.cat(parts, dim=1))
        return nn.functional.normalize(vectors, dim=1) if self.normalize else vectors


def pool(hidden: Tensor, mask: Tensor, how: str, first: Tensor) -> Tensor:
    """One vector per text: (texts, tokens, width), a (texts, tokens) mask of ones, then zeros, and where to begin → (texts, width)."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    pooled = (mask * (positions >= first[:, None])).to(hidden.dtype)
    rows = torch.arange(len(hidden), device=hidden.device)
    match how:
        case "mean":
            return _weighted(hidden, pooled) / pooled.sum(1, keepdim=True)
        case "sum":
            return _weighted(hidden, pooled)
        case "mean_sqrt_len_tokens":
            return _weighted(hidden, pooled) / pooled.sum(1, keepdim=True).sqrt()
        case "weightedmean":
            weights = pooled * (positions + 1)
            return _weighted(hidden, weights) / weights.sum(1, keepdim=True)
        case "max":
            return hidden.masked_fill(pooled.unsqueeze(-1) == 0, -torch.inf).amax(1)
        case "cls_pooled":
            return hidden[rows, first]
        case "last":
            return hidden[rows, mask.sum(1) - 1]
    raise ValueError(how)


def _weighted(hidden: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("btd,bt->bd", hidden, weights)
