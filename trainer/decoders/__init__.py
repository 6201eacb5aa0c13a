"""Decoders: combined vector → prediction, with their losses and metrics. A new one: a file and a union member here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeAlias

from torch import Tensor

from trainer.decoders.binary import BinaryDecoder, BinaryRegressor, BinaryWeightedCrossEntropy
from trainer.decoders.category import CategoryClassifier, Classifier, SoftmaxCrossEntropy
from trainer.decoders.number import (
    Huber,
    MeanAbsoluteError,
    MeanSquaredError,
    NumberDecoder,
    NumberLoss,
    NumberRegressor,
)


class Decoder(Protocol):
    """What the loop needs of a decoder module; ``rows`` are those of one batch unless said otherwise."""

    default_metric: str
    metric_names: tuple[str, ...]  # "loss" first

    def __call__(self, combined: Tensor) -> Tensor: ...

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """A scalar: the mean over the batch."""

    def loss_weight(self, targets: Tensor) -> Tensor | int:
        """A scalar: what that mean is divided by. Weighted with it, the means of batches average to the mean over a split."""

    def observe(self, scores: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """What the metrics need, a few numbers a row."""

    def metrics(self, observed: Mapping[str, Tensor]) -> dict[str, float]:
        """Every metric but the loss, of what was observed, joined over all rows of a split."""

    def predict(self, scores: Tensor) -> Tensor:
        """Probabilities or values, float32."""


DecoderModule: TypeAlias = Classifier | BinaryDecoder | NumberDecoder

__all__ = [
    "BinaryDecoder",
    "BinaryRegressor",
    "BinaryWeightedCrossEntropy",
    "CategoryClassifier",
    "Classifier",
    "Decoder",
    "DecoderModule",
    "Huber",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "NumberDecoder",
    "NumberLoss",
    "NumberRegressor",
    "SoftmaxCrossEntropy",
]
