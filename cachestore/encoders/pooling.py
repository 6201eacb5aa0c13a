"""Hidden states to vectors: masked poolings, what a sentence-transformers model puts on them, and the L2 norm.

All of it is computed in float32 whatever the model's precision, and never sees padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cachestore.encoders.sentence_transformers_files import ACTIVATIONS
from cachestore.errors import EncoderError


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


class Dense(nn.Module):
    """A linear layer and an activation, as sentence-transformers puts them on a pooled vector."""

    def __init__(self, sizes: tuple[int, int], *, bias: bool, activation: str, residual: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(*sizes, bias=bias)
        self.activation: nn.Module = getattr(nn, activation)()
        self.added = residual
        if residual and sizes[0] != sizes[1]:
            self.residual = nn.Linear(*sizes, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        found: Tensor = self.activation(self.linear(vectors))
        if not self.added:
            return found
        return found + (self.residual(vectors) if hasattr(self, "residual") else vectors)


class LayerNorm(nn.Module):
    """A layer norm whose weights are called as sentence-transformers calls them."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dimension)

    def forward(self, vectors: Tensor) -> Tensor:
        normed: Tensor = self.norm(vectors)
        return normed


class Normalize(nn.Module):
    """Vectors to length one."""

    def forward(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize(vectors, dim=1)


def head_module(settings: Mapping[str, Any], weights: Path | None) -> nn.Module:
    """A module after pooling, with the weights of its file. Raises EncoderError when they are not its weights."""
    match settings["type"]:
        case "normalize":
            return Normalize()
        case "layer_norm":
            make: Callable[[], nn.Module] = partial(LayerNorm, settings["dimension"])
        case "dense" if settings["activation"] in ACTIVATIONS:
            make = partial(
                Dense,
                (settings["in_features"], settings["out_features"]),
                bias=settings["bias"],
                activation=settings["activation"],
                residual=settings.get("residual", False),
            )
        case _:
            raise EncoderError(f"a module after pooling of type {settings['type']!r} is unknown to this version.")
    try:
        with torch.device("meta"):  # sizes are what a file says: nothing is allocated before the weights agree
            module = make()
        module.load_state_dict(load_file(weights or Path()), assign=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise EncoderError(f"{weights} does not hold the weights that its config.json describes: {reason}") from error
    return module.float()


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
