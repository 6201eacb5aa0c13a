"""The one building block that encoders of vectors, combiners and decoders share: a stack of fully connected layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from trainer.frozen import Frozen

Activation: TypeAlias = Literal["relu", "gelu", "tanh", "sigmoid", "elu", "leakyRelu"]
Norm: TypeAlias = Literal["layer", "batch"]
DropoutRate: TypeAlias = Annotated[float, Field(ge=0.0, lt=1.0)]
LossWeight: TypeAlias = Annotated[float, Field(ge=0.0)]
Positive: TypeAlias = Annotated[float, Field(gt=0.0)]

_ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "elu": nn.ELU,
    "leakyRelu": nn.LeakyReLU,
}


class FcLayer(Frozen):
    """One fully connected layer, every setting resolved."""

    output_size: PositiveInt = 256
    activation: Activation = "relu"
    dropout: DropoutRate = 0.0
    norm: Norm | None = None
    use_bias: bool = True


class FcLayerSettings(Frozen):
    """One entry of ``fc_layers``; what is left out is taken from the settings around it."""

    output_size: PositiveInt | None = None
    activation: Activation | None = None
    dropout: DropoutRate | None = None
    norm: Norm | None = None
    use_bias: bool | None = None

    def resolve(self, around: FcLayer) -> FcLayer:
        """The layer itself, with everything left out taken from ``around``."""
        return FcLayer(**{**around.model_dump(), **self.model_dump(exclude_none=True)})


def stack_of(around: FcLayer, count: int, written: Sequence[FcLayerSettings] | None) -> tuple[FcLayer, ...]:
    """The layers ``written``, what they leave out taken from ``around``; ``count`` layers like that where none are."""
    return (around,) * count if written is None else tuple(layer.resolve(around) for layer in written)


class FcSettings(Frozen):
    """The fully connected stack of a combiner; ``fc_layers`` wins over ``num_fc_layers`` equal layers of ``output_size``."""

    num_fc_layers: NonNegativeInt = 0
    output_size: PositiveInt = 256
    activation: Activation = "relu"
    dropout: DropoutRate = 0.0
    norm: Norm | None = None
    use_bias: bool = True
    fc_layers: tuple[FcLayerSettings, ...] | None = None

    def layers(self) -> tuple[FcLayer, ...]:
        """The stack itself, every setting resolved."""
        around = FcLayer(
            output_size=self.output_size,
            activation=self.activation,
            dropout=self.dropout,
            norm=self.norm,
            use_bias=self.use_bias,
        )
        return stack_of(around, self.num_fc_layers, self.fc_layers)


class DecoderLayers(Frozen):
    """The settings every decoder has: the layers between the combined vector and its scores, as of a combiner's stack."""

    num_fc_layers: NonNegativeInt = 0
    fc_output_size: PositiveInt = 256
    fc_activation: Activation = "relu"
    fc_norm: Norm | None = None
    fc_dropout: DropoutRate = 0.0
    fc_use_bias: bool = True
    fc_layers: tuple[FcLayerSettings, ...] | None = None
    use_bias: bool = True

    def layers(self) -> tuple[FcLayer, ...]:
        """The stack itself, every setting resolved."""
        around = FcLayer(
            output_size=self.fc_output_size,
            activation=self.fc_activation,
            dropout=self.fc_dropout,
            norm=self.fc_norm,
            use_bias=self.fc_use_bias,
        )
        return stack_of(around, self.num_fc_layers, self.fc_layers)


class Dropout(nn.Module):
    """Zeroes each value with probability ``rate`` while training and scales the rest by 1 / (1 - rate).

    The one place where a model draws random numbers: from torch's global generator, exactly as ``nn.Dropout`` does.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, values: Tensor) -> Tensor:
        return functional.dropout(values, self.rate, self.training)


class FullyConnected(nn.Module):
    """(batch, dim) → (batch, ``self.dim``): linear → norm → activation → dropout, layer by layer; no layers: identity.

    With ``residual``, what enters a layer is added to what leaves it, where both are as wide.
    """

    def __init__(self, dim: int, layers: Sequence[FcLayer], *, residual: bool = False) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        for layer in layers:
            block = _block(dim, layer)
            modules += [Residual(block)] if residual and dim == layer.output_size else block
            dim = layer.output_size
        self.dim = dim
        self.layers = nn.Sequential(*modules)

    def forward(self, vector: Tensor) -> Tensor:
        stacked: Tensor = self.layers(vector)
        return stacked


class Residual(nn.Module):
    """x + block(x)."""

    def __init__(self, block: Sequence[nn.Module]) -> None:
        super().__init__()
        self.block = nn.Sequential(*block)

    def forward(self, vector: Tensor) -> Tensor:
        added: Tensor = vector + self.block(vector)
        return added


def _block(dim: int, layer: FcLayer) -> list[nn.Module]:
    block: list[nn.Module] = [nn.Linear(dim, layer.output_size, bias=layer.use_bias)]
    if layer.norm is not None:
        block.append(nn.LayerNorm(layer.output_size) if layer.norm == "layer" else nn.BatchNorm1d(layer.output_size))
    block.append(_ACTIVATIONS[layer.activation]())
    if layer.dropout > 0:
        block.append(Dropout(layer.dropout))
    return block
