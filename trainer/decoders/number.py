"""The number decoder: one value per row; squared, absolute, relative or Huber error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from trainer import metrics
from trainer.decoders.base import Decoder, Observed
from trainer.frozen import Frozen
from trainer.layers import DecoderLayers, LossWeight, Positive

Restore: TypeAlias = Callable[[Tensor], Tensor]


class _Error(Frozen):
    """``weight`` of this output in the sum over outputs."""

    relative: ClassVar[bool] = False  # of values in the column's own units: a share of a normalised value says nothing
    root: ClassVar[bool] = False  # its square averages over batches, not it

    weight: LossWeight = 1.0


class MeanSquaredError(_Error):
    """(value - target)²."""

    type: Literal["mean_squared_error"] = "mean_squared_error"

    def of(self, values: Tensor, targets: Tensor) -> Tensor:
        """The mean over the batch."""
        return functional.mse_loss(values, targets)


class MeanAbsoluteError(_Error):
    """|value - target|."""

    type: Literal["mean_absolute_error"] = "mean_absolute_error"

    def of(self, values: Tensor, targets: Tensor) -> Tensor:
        """The mean over the batch."""
        return functional.l1_loss(values, targets)


class Huber(_Error):
    """Squared below ``delta``, linear above it."""

    type: Literal["huber"] = "huber"
    delta: Positive = 1.0

    def of(self, values: Tensor, targets: Tensor) -> Tensor:
        """The mean over the batch."""
        return functional.huber_loss(values, targets, delta=self.delta)


class MeanAbsolutePercentageError(_Error):
    """|value - target| / |target|, in the column's own units, of the rows whose target is not 0."""

    relative: ClassVar[bool] = True

    type: Literal["mean_absolute_percentage_error"] = "mean_absolute_percentage_error"

    def of(self, values: Tensor, targets: Tensor) -> Tensor:
        """The mean over the batch; 0 where all targets are."""
        return _mean_where_counted(_shares(values, targets).abs(), targets)


class RootMeanSquaredError(_Error):
    """The root of the mean squared error of a batch."""

    root: ClassVar[bool] = True

    type: Literal["root_mean_squared_error"] = "root_mean_squared_error"

    def of(self, values: Tensor, targets: Tensor) -> Tensor:
        """Over the batch."""
        return _root(functional.mse_loss(values, targets))


class RootMeanSquaredPercentageError(_Error):
    """The root of the mean squared relative error of a batch, in the column's own units, of the rows whose target is not 0."""

    relative: ClassVar[bool] = True
    root: ClassVar[bool] = True

    type: Literal["root_mean_squared_percentage_error"] = "root_mean_squared_percentage_error"

    def of(self, values: Tensor, targets: Tensor) -> Tensor:
        """Over the batch."""
        return _root(_mean_where_counted(_shares(values, targets).square(), targets))


NumberLoss: TypeAlias = Annotated[
    MeanSquaredError
    | MeanAbsoluteError
    | Huber
    | MeanAbsolutePercentageError
    | RootMeanSquaredError
    | RootMeanSquaredPercentageError,
    Field(discriminator="type"),
]


class NumberRegressor(DecoderLayers):
    """Settings of the number decoder."""

    type: Literal["regressor"] = "regressor"

    def build(
        self, dim: int, loss: NumberLoss, restore: Restore | None, clip: tuple[float, float] | None = None
    ) -> NumberDecoder:
        """The module for combined vectors of width ``dim``; ``restore`` takes normalised values back to their units.

        Predictions, not the loss, are cut to the range ``clip`` of those units.
        """
        return NumberDecoder(dim, self, loss, restore, clip)


class NumberDecoder(Decoder):
    """(batch, dim) → values (batch,); targets are float32 (batch,)."""

    kind: ClassVar[str] = "number"
    default_metric: ClassVar[str] = "mean_squared_error"
    metric_names: ClassVar[tuple[str, ...]] = (
        *("loss", "mean_squared_error", "mean_absolute_error", "root_mean_squared_error", "r2"),
        *("mean_absolute_percentage_error", "root_mean_squared_percentage_error"),
    )
    epoch_metrics: ClassVar[tuple[str, ...]] = (
        *("mean_squared_error", "mean_absolute_error", "root_mean_squared_error", "r2"),
    )

    def __init__(
        self,
        dim: int,
        settings: DecoderLayers,
        loss: NumberLoss,
        restore: Restore | None,
        clip: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(dim, settings.layers())
        self.value = nn.Linear(self.stack.dim, 1, bias=settings.use_bias)
        self.error = loss
        self.restore = restore
        self.clip = clip

    def start_at(self, mean: Tensor) -> None:
        """Predict about ``mean`` (), of normalised targets where they are: beginning there spares the steps that lead there."""
        if self.value.bias is not None:
            nn.init.constant_(self.value.bias, float(mean.item()))

    def forward(self, combined: Tensor) -> Tensor:
        value: Tensor = self.value(self.stack(combined))
        return value.squeeze(1)

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Mean error over the batch, of normalised values where targets are normalised, but for relative errors."""
        values = scores.float()
        if self.error.relative and self.restore is not None:
            values, targets = self.restore(values), self._restored(targets)
        return self.error.of(values, targets)

    def loss_weight(self, targets: Tensor) -> Tensor | int:
        """The rows of the batch; of a relative error, those whose target is not 0."""
        return (self._restored(targets) != 0).sum() if self.error.relative else len(targets)

    def joined_loss(self, losses: Tensor, weights: Tensor) -> float:
        """The mean over batches; of the roots of means, the root of the mean of their squares."""
        if not self.error.root:
            return super().joined_loss(losses, weights)
        return float((losses.square() @ weights / weights.sum()).sqrt().item())

    def observe(self, scores: Tensor, targets: Tensor, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """What the metrics need of each row, in the column's own units."""
        return {"value": self.predict(scores), "target": self._restored(targets)}

    def _restored(self, targets: Tensor) -> Tensor:
        if self.restore is None:
            return targets
        restored = self.restore(targets)
        shift = self.restore(torch.zeros((), device=targets.device)).abs()
        # a target of 0 comes back as what its sum with the shift was rounded by
        return torch.where(restored.abs() <= 4 * torch.finfo(torch.float32).eps * shift, 0.0, restored)

    def measure(self, observed: Observed, names: Sequence[str], weights: Tensor) -> dict[str, Tensor]:
        """Metrics of all rows observed."""
        found = metrics.regression(observed["value"], observed["target"], weights)
        return {name: found[name] for name in names}

    def predict(self, scores: Tensor) -> Tensor:
        """The value in the column's own units, float32 (rows,), within ``clip``."""
        value = scores.float() if self.restore is None else self.restore(scores.float())
        return value if self.clip is None else value.clamp(*self.clip)


def _shares(values: Tensor, targets: Tensor) -> Tensor:
    """(value - target) / |target|, and 0 where the target is."""
    size = targets.abs()
    return torch.where(size > 0, (values - targets) / size.where(size > 0, 1.0), 0.0)


def _mean_where_counted(shares: Tensor, targets: Tensor) -> Tensor:
    return shares.sum() / (targets != 0).sum().clamp(min=1)


def _root(square: Tensor) -> Tensor:
    return (square + torch.finfo(square.dtype).tiny).sqrt()  # its slope at 0 is finite so
