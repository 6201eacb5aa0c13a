"""The gated_fusion combiner: projections of the features, each weighed per value by a gate that sees all features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from trainer.layers import Dropout, DropoutRate, FcLayer, FcSettings, FullyConnected


class GatedFusionCombiner(FcSettings):
    """``hidden_size``: the width every feature is projected to. ``dropout`` is that of the projections and of the layers."""

    type: Literal["gated_fusion"] = "gated_fusion"
    hidden_size: PositiveInt = 256
    dropout: DropoutRate = 0.1

    @property
    def linear(self) -> bool:
        """Gates are not."""
        return False

    def build(self, dims: Mapping[str, int]) -> GatedFusion:
        """The module for input vectors of these widths, in this order."""
        return GatedFusion(dims, self.hidden_size, self.dropout, self.layers())


class GatedFusion(nn.Module):
    """Vectors by feature name, (batch, dims[name]) each → (batch, ``self.dim``).

    The fused vector is the sum over features of sigmoid(gate of all features) * tanh(projection of this one), as the gated
    multimodal unit of Arevalo et al. 2017 for any number of inputs.
    """

    def __init__(self, dims: Mapping[str, int], size: int, dropout: float, layers: tuple[FcLayer, ...]) -> None:
        super().__init__()
        self.names = tuple(dims)
        self.projections = nn.ModuleList(nn.Linear(dim, size) for dim in dims.values())
        self.gates = nn.Linear(sum(dims.values()), size * len(dims))
        self.dropout = Dropout(dropout)
        self.stack = FullyConnected(size, layers)
        self.dim = self.stack.dim

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        parts = [vectors[name] for name in self.names]
        hidden = torch.stack(
            [project(part) for project, part in zip(self.projections, parts, strict=True)], dim=1
        ).tanh()
        gates = self.gates(torch.cat(parts, dim=1)).view_as(hidden).sigmoid()
        fused = self.dropout((gates * hidden).sum(dim=1))
        combined: Tensor = self.stack(fused)
        return combined
