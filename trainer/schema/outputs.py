"""What an output feature of a config is made of: one frozen class per type, with Ludwig's names and defaults.

The settings of decoders and losses stand with those.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from trainer.decoders import (
    BinaryRegressor,
    BinaryWeightedCrossEntropy,
    CategoryClassifier,
    MeanSquaredError,
    NumberLoss,
    NumberRegressor,
    SoftmaxCrossEntropy,
)
from trainer.frozen import Frozen
from trainer.schema.names import Column, Name, Share
from trainer.schema.preprocessing import Normalization


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
    """One of many classes; ``top_k`` is the k of the metric hits_at_k."""

    name: Name
    type: Literal["category"] = "category"
    column: Column
    decoder: CategoryClassifier = CategoryClassifier()
    loss: SoftmaxCrossEntropy = SoftmaxCrossEntropy()
    top_k: PositiveInt = 3
    preprocessing: CategoryTargetPreprocessing = CategoryTargetPreprocessing()


class BinaryOutput(Frozen):
    """True or false; a probability of at least ``threshold`` is predicted true."""

    name: Name
    type: Literal["binary"] = "binary"
    column: Column
    decoder: BinaryRegressor = BinaryRegressor()
    loss: BinaryWeightedCrossEntropy = BinaryWeightedCrossEntropy()
    threshold: Share = 0.5
    preprocessing: BinaryTargetPreprocessing = BinaryTargetPreprocessing()


class NumberOutput(Frozen):
    """A number."""

    name: Name
    type: Literal["number"] = "number"
    column: Column
    decoder: NumberRegressor = NumberRegressor()
    loss: NumberLoss = MeanSquaredError()
    preprocessing: NumberTargetPreprocessing = NumberTargetPreprocessing()


OutputFeature: TypeAlias = Annotated[CategoryOutput | BinaryOutput | NumberOutput, Field(discriminator="type")]
