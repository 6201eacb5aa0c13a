"""The binary decoder: one score, the log odds of true; weighted cross entropy and focal loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch import Tensor, nn
from torch.nn import functional

from trainer import metrics
from trainer.decoders.base import Decoder, Observed
from trainer.frozen import Frozen
from trainer.layers import DecoderLayers, LossWeight, Positive


class BinaryWeightedCrossEntropy(Frozen):
    """``weight`` of this output in the sum over outputs; ``positive_class_weight`` multiplies the loss of true rows."""

    type: Literal["binary_weighted_cross_entropy"] = "binary_weighted_cross_entropy"
    weight: LossWeight = 1.0
    positive_class_weight: Positive | None = None
    confidence_penalty: NonNegativeFloat = 0.0

    def of(self, scores: Tensor, targets: Tensor, positive_weight: Tensor | None) -> Tensor:
        """The mean over the batch; it is divided by the number of rows, whatever their weight."""
        loss = functional.binary_cross_entropy_with_logits(scores, targets, pos_weight=positive_weight)
        if not self.confidence_penalty:
            return loss
        probability = torch.sigmoid(scores)
        entropy = probability * functional.softplus(-scores) + (1 - probability) * functional.softplus(scores)
        return loss + self.confidence_penalty * (1 - entropy / math.log(2)).mean()


class BinaryFocal(Frozen):
    """Lin et al. 2017: cross entropy times (1 - p)^``gamma``, times ``alpha`` for true rows and 1 - alpha for false ones."""

    type: Literal["focal"] = "focal"
    weight: LossWeight = 1.0
    alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    gamma: NonNegativeFloat = 2.0

    def of(self, scores: Tensor, targets: Tensor, positive_weight: Tensor | None) -> Tensor:
        """The mean over the batch."""
        lost = functional.binary_cross_entropy_with_logits(scores, targets, reduction="none")
        share = self.alpha * targets + (1 - self.alpha) * (1 - targets)
        return (share * (-torch.expm1(-lost)).pow(self.gamma) * lost).mean()


BinaryLoss: TypeAlias = Annotated[BinaryWeightedCrossEntropy | BinaryFocal, Field(discriminator="type")]


class _Settings(DecoderLayers):
    def build(
        self,
        dim: int,
        loss: BinaryLoss,
        threshold: float,
        classes: tuple[str, str] = ("False", "True"),
        *,
        calibration: bool = False,
    ) -> BinaryDecoder:
        """The module for combined vectors of width ``dim``; a probability ≥ ``threshold`` is predicted true.

        ``classes`` are what false and true are called in the data.
        """
        return BinaryDecoder(dim, self, loss, threshold, classes, calibration=calibration)


class BinaryRegressor(_Settings):
    """Settings of the binary decoder."""

    type: Literal["regressor"] = "regressor"


class BinaryMlpClassifier(_Settings):
    """As the regressor, with a hidden layer unless told otherwise."""

    type: Literal["mlp_classifier"] = "mlp_classifier"
    num_fc_layers: NonNegativeInt = 1


BinaryDecoderSettings: TypeAlias = Annotated[BinaryRegressor | BinaryMlpClassifier, Field(discriminator="type")]


class BinaryDecoder(Decoder):
    """(batch, dim) → log odds (batch,); targets are float32 0 or 1 (batch,)."""

    kind: ClassVar[str] = "binary"
    default_metric: ClassVar[str] = "roc_auc"
    metric_names: ClassVar[tuple[str, ...]] = (
        *("loss", "roc_auc", "average_precision", "accuracy", "precision", "recall", "specificity", "f1"),
        *("balanced_accuracy", "mcc", "log_loss", "brier", "ece"),
    )
    epoch_metrics: ClassVar[tuple[str, ...]] = ("roc_auc", "accuracy", "precision", "recall", "f1")

    def __init__(
        self,
        dim: int,
        settings: DecoderLayers,
        loss: BinaryLoss,
        threshold: float,
        classes: tuple[str, str],
        *,
        calibration: bool = False,
    ) -> None:
        super().__init__(dim, settings.layers(), calibration=calibration)
        self.classes = classes
        self.threshold = threshold
        self.error = loss
        self.score = nn.Linear(self.stack.dim, 1, bias=settings.use_bias)
        self.positive_weight: Tensor | None
        weight = loss.positive_class_weight if isinstance(loss, BinaryWeightedCrossEntropy) else None
        tensor = None if weight is None else torch.tensor(weight, dtype=torch.float32)
        self.register_buffer("positive_weight", tensor, persistent=False)

    def forward(self, combined: Tensor) -> Tensor:
        score: Tensor = self.score(self.stack(combined))
        return self.tempered(score.squeeze(1))

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The mean over the batch."""
        return self.error.of(scores.float(), targets, self.positive_weight)

    def observe(self, scores: Tensor, targets: Tensor, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """What the metrics need of each row."""
        return {"score": scores.float(), "target": targets}

    def measure(self, observed: Observed, names: Sequence[str], weights: Tensor) -> dict[str, Tensor]:
        """Metrics of all rows observed."""
        score, target = observed["score"], observed["target"]
        probability = torch.sigmoid(score)
        found = metrics.binary(probability >= self.threshold, target > 0.5, weights)
        for name in names:
            match name:
                case "roc_auc":  # of the log odds: probabilities round to equal ones sooner
                    found[name] = metrics.roc_auc(score, target, weights)
                case "average_precision":
                    found[name] = metrics.average_precision(score, target, weights)
                case "log_loss":
                    wide = score.double()
                    lost = functional.binary_cross_entropy_with_logits(wide, target.double(), reduction="none")
                    found[name] = metrics.mean(lost, weights)
                case "brier":
                    found[name] = metrics.mean((probability.double() - target.double()).square(), weights)
                case "ece":
                    confidence = torch.maximum(probability, 1 - probability)
                    found[name] = metrics.ece(confidence, (score > 0) == (target > 0.5), weights)
        return {name: found[name] for name in names}

    def predict(self, scores: Tensor) -> Tensor:
        """Probability of true, float32 (rows,)."""
        return torch.sigmoid(scores.float())
