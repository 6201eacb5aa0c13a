"""The concat combiner: every feature's vector side by side, then an optional fully connected stack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from trainer.layers import FcLayer, FcSettings, FullyConnected


class ConcatCombiner(FcSettings):
    """``residual`` adds to each layer's result what entered it; ``flatten_inputs`` changes nothing: every input is flat."""

    type: Literal["concat"] = "concat"
    residual: bool = False
    flatten_inputs: bool = False

    @property
    def linear(self) -> bool:
        """Whether the combined vector holds the inputs as they are."""
        return not self.layers()

    def build(self, dims: Mapping[str, int]) -> Concat:
        """The module for input vectors of these widths, in this order."""
        return Concat(dims, self.layers(), residual=self.residual)


class Concat(nn.Module):
    """Vectors by feature name, (batch, dims[name]) each → (batch, ``self.dim``)."""

    def __init__(self, dims: Mapping[str, int], layers: tuple[FcLayer, ...], *, residual: bool = False) -> None:
        super().__init__()
        self.names = tuple(dims)
        self.stack = FullyConnected(sum(dims.values()), layers, residual=residual)
        self.dim = self.stack.dim

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        combined: Tensor = self.stack(side_by_side([vectors[name] for name in self.names]))
        return combined


def side_by_side(parts: list[Tensor]) -> Tensor:
    """(batch, dim) each → (batch, sum of dims); one part alone is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
