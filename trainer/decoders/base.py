"""What every decoder has: its layers, its metrics, and the temperature that calibration finds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from cachestore.errors import ConfigError, nearest
from trainer import metrics
from trainer.layers import FcLayer, FullyConnected

Observed = Mapping[str, Tensor]


class Decoder(nn.Module, ABC):
    """(batch, dim) → scores; ``rows`` are those of one batch unless said otherwise.

    ``metric_names``, "loss" first, are all it knows; ``epoch_metrics`` those cheap enough to be computed every epoch, and
    ``measured`` those that this one computes: a metric that chooses the best epoch joins them.
    """

    kind: ClassVar[str]  # the type of output
    default_metric: ClassVar[str]
    metric_names: ClassVar[tuple[str, ...]]
    epoch_metrics: ClassVar[tuple[str, ...]]

    def __init__(self, dim: int, layers: Sequence[FcLayer], *, calibration: bool = False) -> None:
        super().__init__()
        self.input_dim = dim
        self.stack = FullyConnected(dim, layers)
        self.measured = self.epoch_metrics
        self.temperature: Tensor | None
        self.register_buffer("temperature", torch.ones(()) if calibration else None)

    def also_measure(self, metric: str) -> None:
        """Compute ``metric`` every epoch as well."""
        if metric != "loss" and metric not in self.measured:
            self.measured = (*self.measured, metric)

    def tempered(self, scores: Tensor) -> Tensor:
        """Scores as predictions take them: divided by the temperature, where there is one and nothing is being trained."""
        if self.temperature is None or self.training:
            return scores
        return scores.float() / self.temperature

    @abstractmethod
    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """A scalar: the mean over the batch."""

    def loss_weight(self, targets: Tensor) -> Tensor | int:
        """A scalar: what that mean is divided by. Weighted with it, the means of batches average to the mean over a split."""
        return len(targets)

    def joined_loss(self, losses: Tensor, weights: Tensor) -> float:
        """The loss over a split from those of its batches and their ``loss_weight`` (batches,), float64."""
        return float((losses @ weights / weights.sum()).item())

    @abstractmethod
    def observe(self, scores: Tensor, targets: Tensor, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """What the metrics ``names`` (those ``measured``) need, a few numbers a row where they allow it."""

    @abstractmethod
    def measure(self, observed: Observed, names: Sequence[str], weights: Tensor) -> dict[str, Tensor]:
        """Metrics, float64 (resamples,), of what was observed of all rows; ``weights`` (resamples, rows) as in metrics."""

    def metrics(self, observed: Observed) -> dict[str, float]:
        """Those ``measured``, of what was observed of all rows of a split."""
        first = next(iter(observed.values()))
        found = self.measure(observed, self.measured, metrics.once(len(first), first.device))
        return {name: float(value.item()) for name, value in found.items()}

    @abstractmethod
    def predict(self, scores: Tensor) -> Tensor:
        """Probabilities or values, float32."""


def weighted(rows: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of one loss a row, weighted where there are weights (rows,)."""
    return rows.mean() if weights is None else (rows * weights).sum() / weights.sum()


def class_weights(
    given: Mapping[str, float] | Sequence[float] | None, classes: Sequence[str], where: str
) -> Tensor | None:
    """One weight per class, 1 for those not named. Raises ConfigError for another number, or a name that is no class."""
    if given is None:
        return None
    if isinstance(given, Mapping):
        for name in given:
            if name not in classes:
                raise ConfigError(f"{where}.{name}: the training rows have no such class{nearest(name, classes)}")
        return torch.tensor([given.get(name, 1.0) for name in classes], dtype=torch.float32)
    if len(given) != len(classes):
        shown = ", ".join(classes[:10]) + (", …" if len(classes) > 10 else "")
        raise ConfigError(
            f"{where}: has {len(given)} weights, and the training rows have {len(classes)} classes; write one for each of "
            f"{shown} in this order, or a mapping of classes"
        )
    return torch.tensor(given, dtype=torch.float32)
