"""The transformer combiner: every feature is a token, and tokens attend to each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from pydantic import NonNegativeInt, PositiveInt, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn
from torch.nn import functional

from trainer.frozen import Frozen
from trainer.layers import Activation, Dropout, DropoutRate, FcLayer, FcLayerSettings, FullyConnected, Norm, stack_of

Reduce: TypeAlias = Literal["mean", "sum", "max", "concat", "last", "cls"]


class _TransformerSettings(Frozen):
    """Layers of self-attention over one token of width ``hidden_size`` per feature, then a fully connected stack."""

    num_layers: PositiveInt = 1
    hidden_size: PositiveInt = 256
    num_heads: PositiveInt = 8
    transformer_output_size: PositiveInt = 256
    dropout: DropoutRate = 0.1
    num_fc_layers: NonNegativeInt = 0
    output_size: PositiveInt = 256
    fc_activation: Activation = "relu"
    fc_dropout: DropoutRate = 0.0
    fc_residual: bool = False
    fc_layers: tuple[FcLayerSettings, ...] | None = None
    norm: Norm | None = None
    use_bias: bool = True

    @model_validator(mode="after")
    def _heads_divide(self) -> _TransformerSettings:
        if self.hidden_size % self.num_heads:
            raise PydanticCustomError(
                "num_heads",
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}; change one",
            )
        return self

    @property
    def linear(self) -> bool:
        """Attention is not."""
        return False

    def layers(self) -> tuple[FcLayer, ...]:
        """The stack after the reduction, every setting resolved."""
        around = FcLayer(
            output_size=self.output_size,
            activation=self.fc_activation,
            dropout=self.fc_dropout,
            norm=self.norm,
            use_bias=self.use_bias,
        )
        return stack_of(around, self.num_fc_layers, self.fc_layers)

    def _build(self, dims: Mapping[str, int], reduce: Reduce) -> Transformer:
        blocks = [
            _Block(self.hidden_size, self.num_heads, self.transformer_output_size, self.dropout)
            for _ in range(self.num_layers)
        ]
        return Transformer(dims, self.hidden_size, blocks, reduce, self.layers(), residual=self.fc_residual)


class TransformerCombiner(_TransformerSettings):
    """``reduce_output``: how the tokens become one vector."""

    type: Literal["transformer"] = "transformer"
    reduce_output: Literal["mean", "sum", "max", "concat", "last"] = "mean"

    def build(self, dims: Mapping[str, int]) -> Transformer:
        """The module for input vectors of these widths, in this order."""
        return self._build(dims, self.reduce_output)


class FtTransformerCombiner(_TransformerSettings):
    """A learnt token stands before those of the features, and what becomes of it is the result (Gorishniy et al. 2021)."""

    type: Literal["ft_transformer"] = "ft_transformer"

    def build(self, dims: Mapping[str, int]) -> Transformer:
        """The module for input vectors of these widths, in this order."""
        return self._build(dims, "cls")


class Transformer(nn.Module):
    """Vectors by feature name, (batch, dims[name]) each → (batch, ``self.dim``).

    A feature's token is a linear map of its vector, with a bias of its own, which tells tokens apart.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        size: int,
        blocks: list[_Block],
        reduce: Reduce,
        layers: tuple[FcLayer, ...],
        *,
        residual: bool,
    ) -> None:
        super().__init__()
        self.names = tuple(dims)
        self.reduce = reduce
        self.tokens = nn.ModuleList(nn.Linear(dim, size) for dim in dims.values())
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(size)
        self.register_parameter("first", nn.Parameter(torch.randn(size) * size**-0.5) if reduce == "cls" else None)
        self.first: nn.Parameter | None
        self.stack = FullyConnected(size * len(dims) if reduce == "concat" else size, layers, residual=residual)
        self.dim = self.stack.dim

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        tokens = [token(vectors[name]) for name, token in zip(self.names, self.tokens, strict=True)]
        if self.first is not None:
            tokens.insert(0, self.first.to(tokens[0].dtype).expand_as(tokens[0]))
        found = self.norm(self.blocks(torch.stack(tokens, dim=1)))
        match self.reduce:
            case "mean":
                reduced = found.mean(dim=1)
            case "sum":
                reduced = found.sum(dim=1)
            case "max":
                reduced = found.amax(dim=1)
            case "concat":
                reduced = found.flatten(1)
            case "last":
                reduced = found[:, -1]
            case "cls":
                reduced = found[:, 0]
        combined: Tensor = self.stack(reduced)
        return combined


class _Block(nn.Module):
    """Self-attention and a two-layer network, each before a residual sum and after a layer norm; (batch, tokens, size)."""

    def __init__(self, size: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(size)
        self.query_key_value = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)
        self.before_network = nn.LayerNorm(size)
        self.network = nn.Sequential(nn.Linear(size, inner), nn.GELU(), Dropout(dropout), nn.Linear(inner, size))
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        rows, count, size = tokens.shape
        projected = self.query_key_value(self.before_attention(tokens))
        query, key, value = projected.view(rows, count, 3, self.heads, size // self.heads).permute(2, 0, 3, 1, 4)
        # dropout stands after the attention, not within: all random numbers are Dropout's
        attended = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(rows, count, size)
        tokens = tokens + self.dropout(self.out(attended))
        found: Tensor = tokens + self.dropout(self.network(self.before_network(tokens)))
        return found
