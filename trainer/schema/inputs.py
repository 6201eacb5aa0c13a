"""What an input feature of a config is made of: one frozen class per type, with Ludwig's names and defaults.

The settings of encoders of text and images stand with those.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from cachestore.encoders.image_settings import ImageSettings
from cachestore.encoders.spec import Settings as EncoderSettings
from trainer.frozen import Frozen
from trainer.schema.names import Column, Name

Normalization: TypeAlias = Literal["zscore", "minmax", "log1p"]


class TextPreprocessing(Frozen):
    """``indicator``: an empty cell is a zero vector and an indicator input says so, which Ludwig has not."""

    cache_encoder_embeddings: bool | None = None
    missing_value_strategy: Literal["indicator", "drop_row", "fill_with_const"] = "indicator"
    fill_value: str | None = None

    @model_validator(mode="after")
    def _fill_value_given(self) -> TextPreprocessing:
        if self.missing_value_strategy == "fill_with_const" and self.fill_value is None:
            raise PydanticCustomError("fill_value", "fill_with_const needs a fill_value, the text to embed instead")
        return self


class ImagePreprocessing(Frozen):
    """As of text. Size, channels and scale are the encoder's, which knows what its weights were trained on."""

    cache_encoder_embeddings: bool | None = None
    missing_value_strategy: Literal["indicator", "drop_row"] = "indicator"


class NumberPreprocessing(Frozen):
    """Of a number input."""

    normalization: Normalization | None = "zscore"
    missing_value_strategy: Literal[
        "fill_with_const", "fill_with_mean", "fill_with_mode", "bfill", "ffill", "drop_row"
    ] = "fill_with_const"
    fill_value: float = 0.0


class CategoryPreprocessing(Frozen):
    """Of a category input; values beyond the ``most_common``, and those first seen later, are ``<UNK>``."""

    missing_value_strategy: Literal["fill_with_const", "fill_with_mode", "bfill", "ffill", "drop_row"] = (
        "fill_with_const"
    )
    fill_value: str = "<UNK>"
    most_common: PositiveInt = 10_000
    lowercase: bool = False


class BinaryPreprocessing(Frozen):
    """Of a binary input; ``fallback_true_label`` says which of two unusual values means true."""

    missing_value_strategy: Literal[
        "fill_with_false", "fill_with_true", "fill_with_mode", "bfill", "ffill", "drop_row"
    ] = "fill_with_false"
    fallback_true_label: str | None = None


class DenseCategory(Frozen):
    """An embedding per value, learned."""

    type: Literal["dense"] = "dense"
    embedding_size: PositiveInt = 50


class OnehotCategory(Frozen):
    """One input per value."""

    type: Literal["onehot"] = "onehot"


CategoryEncoder: TypeAlias = Annotated[DenseCategory | OnehotCategory, Field(discriminator="type")]


class TextInput(Frozen):
    """Text through a frozen encoder and the store."""

    name: Name
    type: Literal["text"] = "text"
    column: Column
    encoder: EncoderSettings
    preprocessing: TextPreprocessing = TextPreprocessing()


class ImageInput(Frozen):
    """A picture through a frozen encoder and the store: never trainable, which Ludwig's are unless told."""

    name: Name
    type: Literal["image"] = "image"
    column: Column
    encoder: Annotated[ImageSettings, Field(discriminator="type")]
    preprocessing: ImagePreprocessing = ImagePreprocessing()


class NumberInput(Frozen):
    """A number, normalised."""

    name: Name
    type: Literal["number"] = "number"
    column: Column
    preprocessing: NumberPreprocessing = NumberPreprocessing()


class CategoryInput(Frozen):
    """One of many values."""

    name: Name
    type: Literal["category"] = "category"
    column: Column
    encoder: CategoryEncoder = DenseCategory()
    preprocessing: CategoryPreprocessing = CategoryPreprocessing()


class BinaryInput(Frozen):
    """True or false."""

    name: Name
    type: Literal["binary"] = "binary"
    column: Column
    preprocessing: BinaryPreprocessing = BinaryPreprocessing()


StoredInput: TypeAlias = TextInput | ImageInput
"""Inputs whose vectors come from the store."""
InputFeature: TypeAlias = Annotated[
    TextInput | ImageInput | NumberInput | CategoryInput | BinaryInput, Field(discriminator="type")
]
