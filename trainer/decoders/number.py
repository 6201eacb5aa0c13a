"""The number decoder: one value per row, squared, absolute or Huber error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from trainer import metrics
from trainer.frozen import Frozen
from trainer.layers import DecoderLayers, FcLayer, FullyConnected, LossWeight, Positive

Error: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Restore: TypeAlias = Callable[[Tensor], Tensor]


class MeanSquaredError(Frozen):
    """``weight`` of this output in the sum over outputs."""

    type: Literal["mean_squared_error"] = "mean_squared_error"
    weight: LossWeight = 1.0


class MeanAbsoluteError(Frozen):
    """``weight`` of this output in the sum over outputs."""

    type: Literal["mean_absolute_error"] = "mean_absolute_error"
    weight: LossWeight = 1.0


class Huber(Frozen):
    """Squared below ``delta``, linear above it."""

    type: Literal["huber"] = "huber"
    weight: LossWeight = 1.0
    delta: Positive = 1.0


NumberLoss: TypeAlias = Annotated[MeanSquaredError | MeanAbsoluteError | Huber, Field(discriminator="type")]


class NumberRegressor(DecoderLayers):
    """Settings of the number decoder."""

    type: Literal["regressor"] = "regressor"

    def build(self, dim: int, loss: NumberLoss, restore: Restore | None) -> NumberDecoder:
        """The module for combined vectors of width ``dim``; ``restore`` takes normalised values back to their units."""
        error: Error
        match loss:
            case MeanSquaredError():
                error = functional.mse_loss
            case MeanAbsoluteError():
                error = functional.l1_loss
            case Huber(delta=delta):
                error = partial(functional.huber_loss, delta=delta)
        return NumberDecoder(dim, self.layers(), error, restore)


class NumberDecoder(nn.Module):
    """(batch, dim) → values (batch,); targets are float32 (batch,)."""

    default_metric: ClassVar[str] = "mean_squared_error"
    metric_names: ClassVar[tuple[str, ...]] = (
        "loss",
        "mean_squared_error",
        "mean_absolute_error",
        "root_mean_squared_error",
        "r2",
    )

    def __init__(self, dim: int, layers: Sequence[FcLayer], error: Error, restore: Restore | None) -> None:
        super().__init__()
        self.stack = FullyConnected(dim, layers)
        self.value = nn.Linear(self.stack.dim, 1)
        self.error = error
        self.restore = restore

    def start_at(self, value: float) -> None:
        """Predict about ``value``, of normalised targets where they are: the mean of the targets spares the steps that lead there."""
        nn.init.constant_(self.value.bias, value)

    def forward(self, combined: Tensor) -> Tensor:
        value: Tensor = self.value(self.stack(combined))
        return value.squeeze(1)

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Mean error over the batch, of normalised values where targets are normalised."""
        return self.error(scores.float(), targets)

    def loss_weight(self, targets: Tensor) -> int:
        """The number of rows."""
        return len(targets)

    def observe(self, scores: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """What the metrics need of each row, in the column's own units."""
        value = scores.float()
        if self.restore is None:
            return {"value": value, "target": targets}
        return {"value": self.restore(value), "target": self.restore(targets)}

    def metrics(self, observed: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics of all rows observed."""
        return metrics.regression(observed["value"], observed["target"])

    def predict(self, scores: Tensor) -> Tensor:
        """The value in the column's own units, float32 (rows,)."""
        return scores.float() if self.restore is None else self.restore(scores.float())
