"""The concat combiner: every feature's vector side by side, then an optional fully connected stack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from trainer.frozen import Frozen
from trainer.layers import Activation, DropoutRate, FcLayer, FcLayerSettings, FullyConnected, Norm


class ConcatCombiner(Frozen):
    """Settings; ``fc_layers`` wins over ``num_fc_layers`` equal layers of ``output_size``."""

    type: Literal["concat"] = "concat"
    num_fc_layers: NonNegativeInt = 0
    output_size: PositiveInt = 256
    activation: Activation = "relu"
    dropout: DropoutRate = 0.0
    norm: Norm | None = None
    fc_layers: tuple[FcLayerSettings, ...] | None = None

    def layers(self) -> tuple[FcLayer, ...]:
        """The stack after the concatenation, every setting resolved."""
        around = FcLayer(output_size=self.output_size, activation=self.activation, dropout=self.dropout, norm=self.norm)
        if self.fc_layers is None:
            return (around,) * self.num_fc_layers
        return tuple(layer.resolve(around) for layer in self.fc_layers)

    def build(self, dims: Mapping[str, int]) -> Concat:
        """The module for input vectors of these widths, in this order."""
        return Concat(dims, self.layers())


class Concat(nn.Module):
    """Vectors by feature name, (batch, dims[name]) each → (batch, ``self.dim``)."""

    def __init__(self, dims: Mapping[str, int], layers: tuple[FcLayer, ...]) -> None:
        super().__init__()
        self.names = tuple(dims)
        self.stack = FullyConnected(sum(dims.values()), layers)
        self.dim = self.stack.dim

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        parts = [vectors[name] for name in self.names]
        combined: Tensor = self.stack(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))
        return combined
