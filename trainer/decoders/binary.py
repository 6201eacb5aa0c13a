"""The binary decoder: one score, the log odds of true; weighted cross entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from trainer import metrics
from trainer.frozen import Frozen
from trainer.layers import DecoderLayers, FcLayer, FullyConnected, LossWeight, Positive

Threshold = Annotated[float, Field(ge=0.0, le=1.0)]


class BinaryWeightedCrossEntropy(Frozen):
    """``weight`` of this output in the sum over outputs; ``positive_class_weight`` multiplies the loss of true rows."""

    type: Literal["binary_weighted_cross_entropy"] = "binary_weighted_cross_entropy"
    weight: LossWeight = 1.0
    positive_class_weight: Positive | None = None


class BinaryRegressor(DecoderLayers):
    """Settings of the binary decoder."""

    type: Literal["regressor"] = "regressor"

    def build(self, dim: int, loss: BinaryWeightedCrossEntropy, threshold: float) -> BinaryDecoder:
        """The module for combined vectors of width ``dim``; a probability ≥ ``threshold`` is predicted true."""
        return BinaryDecoder(dim, self.layers(), loss.positive_class_weight, threshold)


class BinaryDecoder(nn.Module):
    """(batch, dim) → log odds (batch,); targets are float32 0 or 1 (batch,)."""

    default_metric: ClassVar[str] = "roc_auc"
    metric_names: ClassVar[tuple[str, ...]] = ("loss", "roc_auc", "accuracy", "precision", "recall", "f1")

    def __init__(self, dim: int, layers: Sequence[FcLayer], positive_weight: float | None, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.stack = FullyConnected(dim, layers)
        self.score = nn.Linear(self.stack.dim, 1)
        self.positive_weight: Tensor | None
        weight = None if positive_weight is None else torch.tensor(positive_weight, dtype=torch.float32)
        self.register_buffer("positive_weight", weight, persistent=False)

    def forward(self, combined: Tensor) -> Tensor:
        score: Tensor = self.score(self.stack(combined))
        return score.squeeze(1)

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy over the batch."""
        return functional.binary_cross_entropy_with_logits(scores.float(), targets, pos_weight=self.positive_weight)

    def loss_weight(self, targets: Tensor) -> int:
        """The number of rows: ``positive_class_weight`` scales the loss of a row, not what the sum is divided by."""
        return len(targets)

    def observe(self, scores: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """What the metrics need of each row."""
        return {"score": scores.float(), "target": targets}

    def metrics(self, observed: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics of all rows observed."""
        score, target = observed["score"], observed["target"]
        return {
            "roc_auc": metrics.roc_auc(score, target),  # of the log odds: probabilities round to equal ones sooner
            **metrics.binary(torch.sigmoid(score) >= self.threshold, target > 0.5),
        }

    def predict(self, scores: Tensor) -> Tensor:
        """Probability of true, float32 (rows,)."""
        return torch.sigmoid(scores.float())
