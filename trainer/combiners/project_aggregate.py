"""The project_aggregate combiner: every feature's vector is projected to one width, and the projections are averaged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from trainer.layers import FcLayer, FcSettings, FullyConnected, Norm


class ProjectAggregateCombiner(FcSettings):
    """Defaults are Ludwig's: two layers of 128 with layer norm, each with what entered it added."""

    type: Literal["project_aggregate"] = "project_aggregate"
    projection_size: PositiveInt = 128
    residual: bool = True
    num_fc_layers: NonNegativeInt = 2
    output_size: PositiveInt = 128
    norm: Norm | None = "layer"

    @property
    def linear(self) -> bool:
        """Projections are learnt, so with weights after them the model is not convex."""
        return False

    def build(self, dims: Mapping[str, int]) -> ProjectAggregate:
        """The module for input vectors of these widths, in this order."""
        return ProjectAggregate(dims, self.projection_size, self.layers(), residual=self.residual)


class ProjectAggregate(nn.Module):
    """Vectors by feature name, (batch, dims[name]) each → (batch, ``self.dim``)."""

    def __init__(self, dims: Mapping[str, int], size: int, layers: tuple[FcLayer, ...], *, residual: bool) -> None:
        super().__init__()
        self.names = tuple(dims)
        self.projections = nn.ModuleList(nn.Linear(dim, size) for dim in dims.values())
        self.stack = FullyConnected(size, layers, residual=residual)
        self.dim = self.stack.dim

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        projected = [project(vectors[name]) for name, project in zip(self.names, self.projections, strict=True)]
        combined: Tensor = self.stack(torch.stack(projected).mean(dim=0))
        return combined
