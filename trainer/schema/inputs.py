"""What an input feature of a config is made of: one frozen class per type, with Ludwig's names and defaults.

How cells are read stands in ``trainer.schema.preprocessing``, the settings of encoders of text and images with those.
An input that is not ``active`` is checked, and then left out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer

from cachestore.encoders.image_settings import ImageSettings
from cachestore.encoders.spec import HashingSettings, ImportedSettings
from cachestore.encoders.text_settings import TextSettings
from trainer.frozen import NOT_WRITTEN, Frozen
from trainer.layers import Activation, DropoutRate, FcLayer, Norm
from trainer.schema.names import Column, Name
from trainer.schema.preprocessing import (
    BinaryPreprocessing,
    CategoryPreprocessing,
    DatePreprocessing,
    ImagePreprocessing,
    NumberPreprocessing,
    SetPreprocessing,
    TextPreprocessing,
    VectorPreprocessing,
)
from trainer.schema.tuning import Tuning


class DenseCategory(Frozen):
    """An embedding per value, learned."""

    type: Literal["dense"] = "dense"
    embedding_size: PositiveInt = 50


class OnehotCategory(Frozen):
    """One input per value; Ludwig's ``sparse`` is the same vectors."""

    type: Literal["onehot", "sparse"] = "onehot"


class EmbedSet(Frozen):
    """An embedding per item, learned; a set is the sum of its items'."""

    type: Literal["embed"] = "embed"
    embedding_size: PositiveInt = 50


class OnehotSet(Frozen):
    """One input per item, 1 where the set has it."""

    type: Literal["onehot"] = "onehot"


class DenseVector(Frozen):
    """Fully connected layers of the vector's own."""

    type: Literal["dense"] = "dense"
    num_layers: PositiveInt = 1
    output_size: PositiveInt = 256
    activation: Activation = "relu"
    norm: Norm | None = None
    dropout: DropoutRate = 0.0

    def layers(self) -> tuple[FcLayer, ...]:
        """The stack itself."""
        layer = FcLayer(output_size=self.output_size, activation=self.activation, dropout=self.dropout, norm=self.norm)
        return (layer,) * self.num_layers


class PassthroughVector(Frozen):
    """The vector as it is."""

    type: Literal["passthrough"] = "passthrough"


TextEncoder: TypeAlias = Annotated[HashingSettings | TextSettings | ImportedSettings, Field(discriminator="type")]
ImageEncoder: TypeAlias = Annotated[ImageSettings, Field(discriminator="type")]
CategoryEncoder: TypeAlias = Annotated[DenseCategory | OnehotCategory, Field(discriminator="type")]
SetEncoder: TypeAlias = Annotated[EmbedSet | OnehotSet, Field(discriminator="type")]
VectorEncoder: TypeAlias = Annotated[DenseVector | PassthroughVector, Field(discriminator="type")]


class TextInput(Frozen):
    """Text through an encoder: a frozen one and the store, or one that is trained."""

    name: Name
    type: Literal["text"] = "text"
    column: Column
    active: bool = True
    encoder: TextEncoder
    tuning: Tuning = Field(default=Tuning(), json_schema_extra=NOT_WRITTEN)
    preprocessing: TextPreprocessing = TextPreprocessing()

    @property
    def live(self) -> bool:
        """Whether its encoder runs in the loop; else its vectors come from the store."""
        return _live(self)

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _under_encoder(handler(self))


class ImageInput(Frozen):
    """A picture through an encoder: frozen unless told, which Ludwig's are not."""

    name: Name
    type: Literal["image"] = "image"
    column: Column
    active: bool = True
    encoder: ImageEncoder
    tuning: Tuning = Field(default=Tuning(), json_schema_extra=NOT_WRITTEN)
    preprocessing: ImagePreprocessing = ImagePreprocessing()

    @property
    def live(self) -> bool:
        """Whether its encoder runs in the loop; else its vectors come from the store."""
        return _live(self)

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _under_encoder(handler(self))


class NumberInput(Frozen):
    """A number, normalised."""

    name: Name
    type: Literal["number"] = "number"
    column: Column
    active: bool = True
    preprocessing: NumberPreprocessing = NumberPreprocessing()


class CategoryInput(Frozen):
    """One of many values."""

    name: Name
    type: Literal["category"] = "category"
    column: Column
    active: bool = True
    encoder: CategoryEncoder = DenseCategory()
    preprocessing: CategoryPreprocessing = CategoryPreprocessing()


class BinaryInput(Frozen):
    """True or false."""

    name: Name
    type: Literal["binary"] = "binary"
    column: Column
    active: bool = True
    preprocessing: BinaryPreprocessing = BinaryPreprocessing()


class SetInput(Frozen):
    """Several of many items: a list, or a text that holds them one after another."""

    name: Name
    type: Literal["set"] = "set"
    column: Column
    active: bool = True
    encoder: SetEncoder = EmbedSet()
    preprocessing: SetPreprocessing = SetPreprocessing()


class VectorInput(Frozen):
    """As many numbers in every row: a list, or a text that holds them one after another."""

    name: Name
    type: Literal["vector"] = "vector"
    column: Column
    active: bool = True
    encoder: VectorEncoder = DenseVector()
    preprocessing: VectorPreprocessing = VectorPreprocessing()


class DateInput(Frozen):
    """A date, with or without a time of day."""

    name: Name
    type: Literal["date"] = "date"
    column: Column
    active: bool = True
    preprocessing: DatePreprocessing = DatePreprocessing()


EncodedInput: TypeAlias = TextInput | ImageInput
"""Inputs that go through an encoder: their vectors come from the store, or from a module that runs in the loop."""
InputFeature: TypeAlias = Annotated[
    TextInput | ImageInput | NumberInput | CategoryInput | BinaryInput | SetInput | VectorInput | DateInput,
    Field(discriminator="type"),
]


def _live(feature: EncodedInput) -> bool:
    return feature.tuning.mode != "frozen" or feature.preprocessing.cache_encoder_embeddings is False


def _under_encoder(feature: dict[str, Any]) -> dict[str, Any]:
    tuning = {key: value for key, value in feature.pop("tuning").items() if value is not None}
    feature["encoder"] = {**feature["encoder"], **tuning}
    return feature
