"""What an output feature of a config is made of: one frozen class per type, with Ludwig's names and defaults.

The settings of decoders and losses stand with those.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from trainer.decoders import (
    BinaryDecoderSettings,
    BinaryLoss,
    BinaryRegressor,
    BinaryWeightedCrossEntropy,
    CategoryClassifier,
    CategoryDecoder,
    CategoryLoss,
    MeanSquaredError,
    NumberLoss,
    NumberRegressor,
    SetClassifier,
    SetDecoderSettings,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    VectorLoss,
    VectorProjector,
)
from trainer.frozen import Frozen
from trainer.schema.names import Column, Name, Share
from trainer.schema.preprocessing import Normalization, SetTargetPreprocessing, VectorTargetPreprocessing


class NumberTargetPreprocessing(Frozen):
    """Of a number output: neither filled nor scaled unless asked."""

    normalization: Normalization | None = None
    missing_value_strategy: Literal[
        "drop_row", "fill_with_const", "fill_with_mean", "fill_with_mode", "bfill", "ffill"
    ] = "drop_row"
    fill_value: float = 0.0


class CategoryTargetPreprocessing(Frozen):
    """Of a category output."""

    missing_value_strategy: Literal["drop_row", "fill_with_const", "fill_with_mode", "bfill", "ffill"] = "drop_row"
    fill_value: str | None = None

    @model_validator(mode="after")
    def _fill_value_given(self) -> CategoryTargetPreprocessing:
        if self.missing_value_strategy == "fill_with_const" and self.fill_value is None:
            raise PydanticCustomError("fill_value", "fill_with_const needs a fill_value, the class to take instead")
        return self


class BinaryTargetPreprocessing(Frozen):
    """Of a binary output."""

    missing_value_strategy: Literal[
        "drop_row", "fill_with_false", "fill_with_true", "fill_with_mode", "bfill", "ffill"
    ] = "drop_row"
    fallback_true_label: str | None = None


class CategoryOutput(Frozen):
    """One of many classes; ``top_k`` is the k of the metric hits_at_k.

    ``calibration``: after training, one temperature is fitted on the validation rows so that probabilities are honest.
    """

    name: Name
    type: Literal["category"] = "category"
    column: Column
    active: bool = True
    decoder: CategoryDecoder = CategoryClassifier()
    loss: CategoryLoss = SoftmaxCrossEntropy()
    top_k: PositiveInt = 3
    calibration: bool = False
    preprocessing: CategoryTargetPreprocessing = CategoryTargetPreprocessing()


class BinaryOutput(Frozen):
    """True or false; a probability of at least ``threshold`` is predicted true. ``calibration`` as of a category."""

    name: Name
    type: Literal["binary"] = "binary"
    column: Column
    active: bool = True
    decoder: BinaryDecoderSettings = BinaryRegressor()
    loss: BinaryLoss = BinaryWeightedCrossEntropy()
    threshold: Share = 0.5
    calibration: bool = False
    preprocessing: BinaryTargetPreprocessing = BinaryTargetPreprocessing()


class NumberOutput(Frozen):
    """A number; predictions are cut to the range ``clip``."""

    name: Name
    type: Literal["number"] = "number"
    column: Column
    active: bool = True
    decoder: NumberRegressor = NumberRegressor()
    loss: NumberLoss = MeanSquaredError()
    clip: tuple[float, float] | None = None
    preprocessing: NumberTargetPreprocessing = NumberTargetPreprocessing()

    @model_validator(mode="after")
    def _clip_in_order(self) -> NumberOutput:
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise PydanticCustomError("clip", "clip needs the least value first, then the greatest, as in [0, 5]")
        return self


class SetOutput(Frozen):
    """Any number of labels; those of a probability of at least ``threshold`` are predicted. ``calibration`` as of a category."""

    name: Name
    type: Literal["set"] = "set"
    column: Column
    active: bool = True
    decoder: SetDecoderSettings = SetClassifier()
    loss: SigmoidCrossEntropy = SigmoidCrossEntropy()
    threshold: Share = 0.5
    calibration: bool = False
    preprocessing: SetTargetPreprocessing = SetTargetPreprocessing()


class VectorOutput(Frozen):
    """As many numbers as the column's vectors have."""

    name: Name
    type: Literal["vector"] = "vector"
    column: Column
    active: bool = True
    decoder: VectorProjector = VectorProjector()
    loss: VectorLoss = MeanSquaredError()
    preprocessing: VectorTargetPreprocessing = VectorTargetPreprocessing()


OutputFeature: TypeAlias = Annotated[
    CategoryOutput | BinaryOutput | NumberOutput | SetOutput | VectorOutput, Field(discriminator="type")
]
