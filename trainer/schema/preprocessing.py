"""How the cells of a feature are read: one frozen class per type, with Ludwig's names and defaults.

``missing_value_indicator`` is ours: one more input that is 1 where the cell was missing, and 0 elsewhere.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from trainer.frozen import Frozen

Normalization: TypeAlias = Literal["zscore", "minmax", "log1p", "iq"]
Filling: TypeAlias = Literal["fill_with_const", "fill_with_mode", "bfill", "ffill", "drop_row"]
NumberFilling: TypeAlias = Literal["fill_with_const", "fill_with_mean", "fill_with_mode", "bfill", "ffill", "drop_row"]
Tokenizer: TypeAlias = Literal["space", "comma", "semicolon", "pipe", "underscore", "untokenized"]

_DIRECTIVES: Final = frozenset("aAwdbBmyYHIpMSfzZjUWcxXGuV%")  # of datetime.strptime


class TextPreprocessing(Frozen):
    """``indicator``: an empty cell is a zero vector and an indicator input says so, which Ludwig has not."""

    cache_encoder_embeddings: bool | None = None
    missing_value_strategy: Literal["indicator", "drop_row", "fill_with_const", "fill_with_mode", "bfill", "ffill"] = (
        "indicator"
    )
    fill_value: str | None = None
    missing_value_indicator: bool = False

    @model_validator(mode="after")
    def _fill_value_given(self) -> TextPreprocessing:
        if self.missing_value_strategy == "fill_with_const" and self.fill_value is None:
            raise PydanticCustomError("fill_value", "fill_with_const needs a fill_value, the text to embed instead")
        return self


class ImagePreprocessing(Frozen):
    """As of text. Size, channels and scale are the encoder's, which knows what its weights were trained on."""

    cache_encoder_embeddings: bool | None = None
    missing_value_strategy: Literal["indicator", "drop_row", "fill_with_mode", "bfill", "ffill"] = "indicator"
    missing_value_indicator: bool = False


class NumberPreprocessing(Frozen):
    """Of a number input. An outlier is further than ``outlier_threshold`` standard deviations from the mean."""

    normalization: Normalization | None = "zscore"
    missing_value_strategy: NumberFilling = "fill_with_const"
    fill_value: float = 0.0
    missing_value_indicator: bool = False
    outlier_strategy: NumberFilling | None = None
    outlier_threshold: PositiveFloat = 3.0
    outlier_replacement_value: float = 0.0


class CategoryPreprocessing(Frozen):
    """Of a category input; values beyond the ``most_common``, and those first seen later, are ``<UNK>``."""

    missing_value_strategy: Filling = "fill_with_const"
    fill_value: str = "<UNK>"
    missing_value_indicator: bool = False
    most_common: PositiveInt = 10_000
    lowercase: bool = False


class BinaryPreprocessing(Frozen):
    """Of a binary input; ``fallback_true_label`` says which of two unusual values means true."""

    missing_value_strategy: Literal[
        "fill_with_false", "fill_with_true", "fill_with_mode", "bfill", "ffill", "drop_row"
    ] = "fill_with_false"
    missing_value_indicator: bool = False
    fallback_true_label: str | None = None


class SetPreprocessing(Frozen):
    """Of a set input; items beyond the ``most_common``, and those first seen later, are ``<UNK>``."""

    tokenizer: Tokenizer = "space"
    lowercase: bool = False
    most_common: PositiveInt = 10_000
    missing_value_strategy: Filling = "fill_with_const"
    fill_value: str = "<UNK>"
    missing_value_indicator: bool = False


class SetTargetPreprocessing(Frozen):
    """Of a set output, whose classes are all items, or the ``most_common``: rarer ones are then predicted by nothing."""

    tokenizer: Tokenizer = "space"
    lowercase: bool = False
    most_common: PositiveInt = 10_000
    missing_value_strategy: Filling = "drop_row"
    fill_value: str | None = None

    @model_validator(mode="after")
    def _fill_value_given(self) -> SetTargetPreprocessing:
        if self.missing_value_strategy == "fill_with_const" and self.fill_value is None:
            raise PydanticCustomError("fill_value", "fill_with_const needs a fill_value, the items to take instead")
        return self


class VectorPreprocessing(Frozen):
    """Of a vector input; ``vector_size`` is that of the first training row unless given."""

    vector_size: PositiveInt | None = None
    missing_value_strategy: Filling = "fill_with_const"
    fill_value: float | str = 0.0
    missing_value_indicator: bool = False


class VectorTargetPreprocessing(Frozen):
    """Of a vector output."""

    vector_size: PositiveInt | None = None
    missing_value_strategy: Filling = "drop_row"
    fill_value: float | str = 0.0


def _check_format(value: str) -> str:
    written = re.findall(r"%(.?)", value)
    wrong = [letter for letter in written if letter not in _DIRECTIVES]
    twice = [letter for letter in set(written) - {"%"} if written.count(letter) > 1]
    if not wrong and not twice and set(written) - {"%"}:
        return value
    why = f"%{wrong[0]} is none" if wrong else f"%{min(twice)} is there twice" if twice else "there is none"
    raise PydanticCustomError(
        "datetime_format", "must be made of Python's directives, such as %Y-%m-%d %H:%M, and {why}", {"why": why}
    )


DatetimeFormat: TypeAlias = Annotated[str, AfterValidator(_check_format)]


class DatePreprocessing(Frozen):
    """Of a date input. ``datetime_format`` is Python's, as in ``%d.%m.%Y``; unset, cells are in ISO 8601."""

    datetime_format: DatetimeFormat | None = None
    missing_value_strategy: Filling = "fill_with_mode"
    fill_value: Annotated[str, Field(min_length=1)] | None = None
    missing_value_indicator: bool = False

    @model_validator(mode="after")
    def _fill_value_given(self) -> DatePreprocessing:
        if self.missing_value_strategy == "fill_with_const" and self.fill_value is None:
            raise PydanticCustomError("fill_value", "fill_with_const needs a fill_value, the date to take instead")
        return self
