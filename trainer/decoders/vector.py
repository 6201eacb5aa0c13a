"""The vector decoder: as many values per row as the column's vectors have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from trainer import metrics
from trainer.decoders.base import Decoder, Observed
from trainer.decoders.number import Huber, MeanAbsoluteError, MeanAbsolutePercentageError, MeanSquaredError
from trainer.layers import DecoderLayers

VectorLoss: TypeAlias = Annotated[
    MeanSquaredError | MeanAbsoluteError | Huber | MeanAbsolutePercentageError, Field(discriminator="type")
]


class VectorProjector(DecoderLayers):
    """Settings of the vector decoder."""

    type: Literal["projector"] = "projector"

    def build(self, dim: int, size: int, loss: VectorLoss) -> VectorDecoder:
        """The module for combined vectors of width ``dim`` and targets of ``size`` values."""
        return VectorDecoder(dim, size, self, loss)


class VectorDecoder(Decoder):
    """(batch, dim) → values (batch, size); targets are float32 (batch, size)."""

    kind: ClassVar[str] = "vector"
    default_metric: ClassVar[str] = "mean_squared_error"
    metric_names: ClassVar[tuple[str, ...]] = (
        *("loss", "mean_squared_error", "mean_absolute_error", "root_mean_squared_error"),
        *("mean_absolute_percentage_error", "cosine_similarity"),
    )
    epoch_metrics: ClassVar[tuple[str, ...]] = ("mean_squared_error", "mean_absolute_error", "root_mean_squared_error")

    def __init__(self, dim: int, size: int, settings: DecoderLayers, loss: VectorLoss) -> None:
        super().__init__(dim, settings.layers())
        self.values = nn.Linear(self.stack.dim, size, bias=settings.use_bias)
        self.error = loss

    def start_at(self, mean: Tensor) -> None:
        """Predict about ``mean`` (size,)."""
        if self.values.bias is not None:
            self.values.bias.data.copy_(mean)

    def forward(self, combined: Tensor) -> Tensor:
        values: Tensor = self.values(self.stack(combined))
        return values

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Mean error over rows and places."""
        return self.error.of(scores.float(), targets)

    def loss_weight(self, targets: Tensor) -> Tensor | int:
        """The rows of the batch; of a relative error, the places that are not 0."""
        return (targets != 0).sum() if self.error.relative else len(targets)

    def observe(self, scores: Tensor, targets: Tensor, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The mean error of each row, squared and absolute, the sum of its relative ones over its ``places`` that are not 0, and the
        cosine to its target.
        """
        error = scores.float() - targets
        relative = metrics.relative(error, targets).abs()
        return {
            "squared": error.square().mean(dim=1),
            "absolute": error.abs().mean(dim=1),
            "relative": relative.nansum(dim=1),
            "places": (~relative.isnan()).sum(dim=1),
            "cosine": functional.cosine_similarity(scores.float(), targets, dim=1),
        }

    def measure(self, observed: Observed, names: Sequence[str], weights: Tensor) -> dict[str, Tensor]:
        """Metrics of all rows observed."""
        squared = metrics.mean(observed["squared"], weights)
        found = {
            "mean_squared_error": squared,
            "root_mean_squared_error": squared.sqrt(),
            "mean_absolute_error": metrics.mean(observed["absolute"], weights),
            "mean_absolute_percentage_error": (weights @ observed["relative"])
            / (weights @ observed["places"].double()),
            "cosine_similarity": metrics.mean(observed["cosine"], weights),
        }
        return {name: found[name] for name in names}

    def predict(self, scores: Tensor) -> Tensor:
        """The values, float32 (rows, size)."""
        return scores.float()
