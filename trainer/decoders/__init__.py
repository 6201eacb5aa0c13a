"""Decoders: combined vector → prediction, with their losses and metrics. A new one: a file and a union member here."""

from __future__ import annotations

from trainer.decoders.base import Decoder
from trainer.decoders.binary import (
    BinaryDecoder,
    BinaryDecoderSettings,
    BinaryFocal,
    BinaryLoss,
    BinaryMlpClassifier,
    BinaryRegressor,
    BinaryWeightedCrossEntropy,
)
from trainer.decoders.category import (
    CategoryClassifier,
    CategoryDecoder,
    CategoryLoss,
    CategoryMlpClassifier,
    Classifier,
    Focal,
    Poly,
    SoftmaxCrossEntropy,
)
from trainer.decoders.number import (
    Huber,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    NumberDecoder,
    NumberLoss,
    NumberRegressor,
    RootMeanSquaredError,
    RootMeanSquaredPercentageError,
)
from trainer.decoders.sets import SetClassifier, SetDecoder, SetDecoderSettings, SetMlpClassifier, SigmoidCrossEntropy
from trainer.decoders.vector import VectorDecoder, VectorLoss, VectorProjector

__all__ = [
    "BinaryDecoder",
    "BinaryDecoderSettings",
    "BinaryFocal",
    "BinaryLoss",
    "BinaryMlpClassifier",
    "BinaryRegressor",
    "BinaryWeightedCrossEntropy",
    "CategoryClassifier",
    "CategoryDecoder",
    "CategoryLoss",
    "CategoryMlpClassifier",
    "Classifier",
    "Decoder",
    "Focal",
    "Huber",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanSquaredError",
    "NumberDecoder",
    "NumberLoss",
    "NumberRegressor",
    "Poly",
    "RootMeanSquaredError",
    "RootMeanSquaredPercentageError",
    "SetClassifier",
    "SetDecoder",
    "SetDecoderSettings",
    "SetMlpClassifier",
    "SigmoidCrossEntropy",
    "SoftmaxCrossEntropy",
    "VectorDecoder",
    "VectorLoss",
    "VectorProjector",
]
