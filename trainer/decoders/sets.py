"""The set decoder: one score per label, each a question of its own; sigmoid cross entropy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn
from torch.nn import functional

from trainer import metrics
from trainer.decoders.base import Decoder, Observed, class_weights
from trainer.decoders.category import CLASSWISE, ClassWeights
from trainer.frozen import Frozen
from trainer.layers import DecoderLayers, LossWeight

LABELWISE = ("f1_macro", *CLASSWISE)  # need every label of every row


class SigmoidCrossEntropy(Frozen):
    """``weight`` of this output in the sum over outputs; ``class_weights`` multiply the loss of a label where it is there.

    A label that is given none has 1; the loss where it is not there is as it is, so that a weight above 1 makes it predicted more often.
    """

    type: Literal["sigmoid_cross_entropy"] = "sigmoid_cross_entropy"
    weight: LossWeight = 1.0
    class_weights: ClassWeights | None = None


class _Settings(DecoderLayers):
    def build(
        self,
        dim: int,
        labels: Sequence[str],
        loss: SigmoidCrossEntropy,
        threshold: float,
        where: str,
        *,
        calibration: bool = False,
    ) -> SetDecoder:
        """The module for combined vectors of width ``dim``; labels of a probability ≥ ``threshold`` are predicted.

        Raises ConfigError when class weights name no label, or are not as many as the labels.
        """
        weights = class_weights(loss.class_weights, labels, f"{where}.loss.class_weights")
        return SetDecoder(dim, tuple(labels), self, weights, threshold, calibration=calibration)


class SetClassifier(_Settings):
    """Settings of the set decoder."""

    type: Literal["classifier"] = "classifier"


class SetMlpClassifier(_Settings):
    """As the classifier, with a hidden layer unless told otherwise."""

    type: Literal["mlp_classifier"] = "mlp_classifier"
    num_fc_layers: NonNegativeInt = 1


SetDecoderSettings: TypeAlias = Annotated[SetClassifier | SetMlpClassifier, Field(discriminator="type")]


class SetDecoder(Decoder):
    """(batch, dim) → log odds (batch, labels); targets are 0 or 1, float32 (batch, labels)."""

    kind: ClassVar[str] = "set"
    default_metric: ClassVar[str] = "jaccard"
    metric_names: ClassVar[tuple[str, ...]] = ("loss", "jaccard", "accuracy", "f1_micro", *LABELWISE)
    epoch_metrics: ClassVar[tuple[str, ...]] = ("jaccard", "accuracy", "f1_micro")

    def __init__(
        self,
        dim: int,
        labels: tuple[str, ...],
        settings: DecoderLayers,
        weights: Tensor | None,
        threshold: float,
        *,
        calibration: bool = False,
    ) -> None:
        super().__init__(dim, settings.layers(), calibration=calibration)
        self.classes = labels
        self.threshold = threshold
        self.scores = nn.Linear(self.stack.dim, len(labels), bias=settings.use_bias)
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, combined: Tensor) -> Tensor:
        return self.tempered(self.scores(self.stack(combined)))

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy over rows and labels, divided by their number whatever the weights."""
        return functional.binary_cross_entropy_with_logits(
            scores.float(), targets.float(), pos_weight=self.class_weights
        )

    def observe(self, scores: Tensor, targets: Tensor, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """How many labels of each row are predicted, right, and both; for LABELWISE, also each label."""
        wanted = set(self.measured if names is None else names)
        probabilities, so = torch.sigmoid(scores.float()), targets > 0.5
        said = probabilities >= self.threshold
        found = {"both": (said & so).sum(dim=1), "predicted": said.sum(dim=1), "actual": so.sum(dim=1)}
        if wanted & set(LABELWISE):
            found |= {"probabilities": probabilities, "labels": so}
        return found

    def measure(self, observed: Observed, names: Sequence[str], weights: Tensor) -> dict[str, Tensor]:
        """Metrics of all rows observed; those of labels are means over the labels that rows have."""
        found = metrics.sets(observed["both"], observed["predicted"], observed["actual"], weights)
        labelwise = [name for name in names if name in LABELWISE]
        if labelwise:
            columns = zip(observed["probabilities"].T, observed["labels"].T, strict=True)
            parts = [self.of_label(score, so, labelwise, weights) for score, so in columns]
            found |= {name: torch.stack([part[name] for part in parts]).nanmean(dim=0) for name in labelwise}
        return {name: found[name] for name in names}

    def of_label(self, probability: Tensor, so: Tensor, names: Sequence[str], weights: Tensor) -> dict[str, Tensor]:
        """Metrics of one label, both (rows,); f1 of one that is neither there nor predicted is NaN."""
        found: dict[str, Tensor] = {}
        for name in names:
            match name:
                case "roc_auc":
                    found[name] = metrics.roc_auc(probability, so, weights)
                case "average_precision":
                    found[name] = metrics.average_precision(probability, so, weights)
                case "f1_macro":
                    said = probability >= self.threshold
                    both, either = weights @ (said & so).double(), weights @ (said.double() + so.double())
                    found[name] = 2 * both / either
        return found

    def predict(self, scores: Tensor) -> Tensor:
        """Probability of each label, float32 (rows, labels)."""
        return torch.sigmoid(scores.float())
