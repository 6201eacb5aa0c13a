"""The category decoder: one score per class; softmax cross entropy, focal and poly loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Final, Literal, TypeAlias

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch import Tensor, nn
from torch.nn import functional

from trainer import metrics
from trainer.decoders.base import Decoder, Observed, class_weights, weighted
from trainer.frozen import Frozen
from trainer.layers import DecoderLayers, LossWeight, Positive

ClassWeights: TypeAlias = Mapping[str, Positive] | tuple[Positive, ...]
CLASSWISE: Final = ("roc_auc", "average_precision")  # need every probability of every row


class SoftmaxCrossEntropy(Frozen):
    """``weight`` of this output in the sum over outputs; ``class_weights`` by class name, 1 where none is given, or a list."""

    type: Literal["softmax_cross_entropy"] = "softmax_cross_entropy"
    weight: LossWeight = 1.0
    class_weights: ClassWeights | None = None
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    confidence_penalty: NonNegativeFloat = 0.0

    def of(self, scores: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """The mean over the batch; with class weights, the weighted mean."""
        loss = functional.cross_entropy(scores, targets, weight=weights, label_smoothing=self.label_smoothing)
        if not self.confidence_penalty:
            return loss
        logs = functional.log_softmax(scores, dim=1)
        entropy = -(logs.exp() * logs).sum(dim=1)
        lacking = 1 - entropy / math.log(max(scores.shape[1], 2))
        return loss + self.confidence_penalty * weighted(lacking, None if weights is None else weights[targets])


class Focal(Frozen):
    """Lin et al. 2017: cross entropy times (1 - p)^``gamma``, p the probability of the right class: easy rows count less."""

    type: Literal["focal"] = "focal"
    weight: LossWeight = 1.0
    class_weights: ClassWeights | None = None
    gamma: NonNegativeFloat = 2.0

    def of(self, scores: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """The mean over the batch; with class weights, the weighted mean."""
        lost = functional.cross_entropy(scores, targets, reduction="none")
        rows = (-torch.expm1(-lost)).pow(self.gamma) * lost
        return weighted(rows, None if weights is None else weights[targets])


class Poly(Frozen):
    """Leng et al. 2022: cross entropy plus ``epsilon`` (1 - p), p the probability of the right class."""

    type: Literal["poly"] = "poly"
    weight: LossWeight = 1.0
    class_weights: ClassWeights | None = None
    epsilon: NonNegativeFloat = 1.0

    def of(self, scores: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """The mean over the batch; with class weights, the weighted mean."""
        lost = functional.cross_entropy(scores, targets, reduction="none")
        return weighted(lost - self.epsilon * torch.expm1(-lost), None if weights is None else weights[targets])


CategoryLoss: TypeAlias = Annotated[SoftmaxCrossEntropy | Focal | Poly, Field(discriminator="type")]


class _Settings(DecoderLayers):
    def build(
        self,
        dim: int,
        classes: Sequence[str],
        loss: CategoryLoss,
        top_k: int,
        where: str,
        *,
        calibration: bool = False,
    ) -> Classifier:
        """The module for combined vectors of width ``dim``; ``where`` names the output in messages.

        Raises ConfigError when class weights name no class, or are not as many as the classes.
        """
        weights = class_weights(loss.class_weights, classes, f"{where}.loss.class_weights")
        return Classifier(dim, tuple(classes), self, loss, weights, top_k, calibration=calibration)


class CategoryClassifier(_Settings):
    """Settings of the category decoder."""

    type: Literal["classifier"] = "classifier"


class CategoryMlpClassifier(_Settings):
    """As the classifier, with a hidden layer unless told otherwise."""

    type: Literal["mlp_classifier"] = "mlp_classifier"
    num_fc_layers: NonNegativeInt = 1


CategoryDecoder: TypeAlias = Annotated[CategoryClassifier | CategoryMlpClassifier, Field(discriminator="type")]


class Classifier(Decoder):
    """(batch, dim) → scores (batch, classes); targets are class indices, int64 (batch,)."""

    kind: ClassVar[str] = "category"
    default_metric: ClassVar[str] = "accuracy"
    metric_names: ClassVar[tuple[str, ...]] = (
        *("loss", "accuracy", "hits_at_k", "f1_macro", "f1_micro", "f1_weighted", "balanced_accuracy", "mcc"),
        *("log_loss", "brier", "ece", *CLASSWISE),
    )
    epoch_metrics: ClassVar[tuple[str, ...]] = ("accuracy", "hits_at_k", "f1_macro")

    def __init__(
        self,
        dim: int,
        classes: tuple[str, ...],
        settings: DecoderLayers,
        loss: CategoryLoss,
        weights: Tensor | None,
        top_k: int,
        *,
        calibration: bool = False,
    ) -> None:
        super().__init__(dim, settings.layers(), calibration=calibration)
        self.classes = classes
        self.top_k = top_k
        self.error = loss
        self.scores = nn.Linear(self.stack.dim, len(classes), bias=settings.use_bias)
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, combined: Tensor) -> Tensor:
        return self.tempered(self.scores(self.stack(combined)))

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The mean over the batch; with class weights, the weighted mean."""
        return self.error.of(scores.float(), targets, self.class_weights)

    def loss_weight(self, targets: Tensor) -> Tensor | int:
        """The class weights of the batch's rows, summed; without class weights, its number of rows."""
        if self.class_weights is None:
            return len(targets)
        return self.class_weights[targets].sum()

    def observe(self, scores: Tensor, targets: Tensor, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """What metrics need of each row, one number each but for those of CLASSWISE: scores do not pile up over an epoch."""
        wanted = set(self.measured if names is None else names)
        found = {"predicted": scores.argmax(dim=1), "target": targets}
        if "hits_at_k" in wanted:
            found["rank"] = metrics.rank(scores, targets)
        if not wanted & {"log_loss", "brier", "ece", *CLASSWISE}:
            return found
        logs = functional.log_softmax(scores.float(), dim=1)
        found["surprise"] = -logs.gather(1, targets[:, None]).squeeze(1)
        probabilities = logs.exp()
        found["square"] = probabilities.square().sum(dim=1)
        found["confidence"] = probabilities.amax(dim=1)
        if wanted & set(CLASSWISE):
            found["probabilities"] = probabilities
        return found

    def measure(self, observed: Observed, names: Sequence[str], weights: Tensor) -> dict[str, Tensor]:
        """Metrics of all rows observed."""
        counted: metrics.ClassCounts | None = None
        found: dict[str, Tensor] = {}
        for name in names:
            match name:
                case "accuracy" | "f1_micro":
                    value = metrics.mean(observed["predicted"] == observed["target"], weights)
                case "hits_at_k":
                    value = metrics.mean(observed["rank"] < self.top_k, weights)
                case "log_loss":
                    value = metrics.mean(observed["surprise"], weights)
                case "brier":
                    right = (-observed["surprise"].double()).exp()
                    value = metrics.mean(observed["square"].double() - 2 * right + 1, weights)
                case "ece":
                    value = metrics.ece(observed["confidence"], observed["predicted"] == observed["target"], weights)
                case "roc_auc" | "average_precision":
                    one = metrics.roc_auc if name == "roc_auc" else metrics.average_precision
                    columns = observed["probabilities"].T
                    parts = [one(column, observed["target"] == place, weights) for place, column in enumerate(columns)]
                    value = torch.stack(parts).nanmean(dim=0)
                case _:
                    counted = counted or metrics.ClassCounts(
                        observed["predicted"], observed["target"], len(self.classes), weights
                    )
                    value = getattr(counted, name)()
            found[name] = value
        return found

    def predict(self, scores: Tensor) -> Tensor:
        """Probability of each class, float32 (rows, classes)."""
        return functional.softmax(scores.float(), dim=1)
