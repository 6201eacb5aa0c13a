"""The preprocessing section: which rows are used, and how they are split."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from trainer.frozen import Frozen
from trainer.schema.names import Name, Share
from trainer.schema.preprocessing import DatetimeFormat


def _check_probabilities(value: tuple[float, ...]) -> tuple[float, ...]:
    if abs(sum(value) - 1) > 1e-6 or value[0] == 0:
        raise PydanticCustomError(
            "probabilities", "the shares of train, validation and test must sum to 1, train above 0"
        )
    return value


Probabilities: TypeAlias = Annotated[tuple[Share, Share, Share], AfterValidator(_check_probabilities)]


class RandomSplit(Frozen):
    """Rows at random; ``seed`` is the config's ``random_seed`` unless given."""

    type: Literal["random"] = "random"
    probabilities: Probabilities = (0.7, 0.1, 0.2)
    seed: NonNegativeInt | None = None

    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        return ()


class FixedSplit(Frozen):
    """As a column says: 0, 1, 2 or train, validation, test."""

    type: Literal["fixed"] = "fixed"
    column: Name = "split"

    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        return (self.column,)


class StratifySplit(Frozen):
    """At random within each value of a column."""

    type: Literal["stratify"] = "stratify"
    column: Name
    probabilities: Probabilities = (0.7, 0.1, 0.2)
    seed: NonNegativeInt | None = None

    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        return (self.column,)


class HashSplit(Frozen):
    """By the hash of a column's value: equal values together, stable when rows are added or reordered."""

    type: Literal["hash"] = "hash"
    column: Name
    probabilities: Probabilities = (0.7, 0.1, 0.2)

    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        return (self.column,)


class DatetimeSplit(Frozen):
    """By time: the first rows train, the last test; rows of one moment stay together. ``datetime_format`` as of a date input."""

    type: Literal["datetime"] = "datetime"
    column: Name
    probabilities: Probabilities = (0.7, 0.1, 0.2)
    datetime_format: DatetimeFormat | None = None

    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        return (self.column,)


class GroupSplit(Frozen):
    """Whole groups at random: rows of equal value in a column, an entity, are in one part; those that lack it are a group too."""

    type: Literal["group"] = "group"
    column: Name
    probabilities: Probabilities = (0.7, 0.1, 0.2)
    seed: NonNegativeInt | None = None

    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        return (self.column,)


class KFoldSplit(Frozen):
    """Rows, or whole groups, dealt into ``folds``; ``fold`` tests, and the share ``validation`` of the others validates.

    Every fold of one seed comes of the same deal. ``column`` stratifies.
    """

    type: Literal["kfold"] = "kfold"
    folds: Annotated[int, Field(ge=2)] = 5
    fold: NonNegativeInt = 0
    column: Name | None = None
    group: Name | None = None
    validation: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    seed: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _fold_is_one(self) -> KFoldSplit:
        if self.fold >= self.folds:
            raise PydanticCustomError("fold", "fold must be less than folds; the first is 0")
        return self

    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        return tuple(name for name in (self.column, self.group) if name is not None)


SplitConfig: TypeAlias = Annotated[
    RandomSplit | FixedSplit | StratifySplit | HashSplit | DatetimeSplit | GroupSplit | KFoldSplit,
    Field(discriminator="type"),
]
Ratio: TypeAlias = Annotated[float, Field(gt=0.0, le=1.0)]


class Preprocessing(Frozen):
    """``split`` is None when the user wrote none.

    ``sample_ratio`` or ``sample_size`` of the rows are used. ``oversample_minority``: every class of the one output has at least
    this ratio of the largest class's training rows, by repeating rows; ``undersample_majority``: the smallest class has at least
    this ratio of every other's, by leaving rows out.
    """

    split: SplitConfig | None = None
    sample_ratio: Ratio = 1.0
    sample_size: PositiveInt | None = None
    oversample_minority: Ratio | None = None
    undersample_majority: Ratio | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Preprocessing:
        if self.oversample_minority is not None and self.undersample_majority is not None:
            raise PydanticCustomError("balance", "oversample_minority and undersample_majority exclude each other")
        if self.sample_ratio < 1 and self.sample_size is not None:
            raise PydanticCustomError("sample", "sample_ratio and sample_size exclude each other")
        return self
