"""The preprocessing section: how rows are split."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field, NonNegativeInt
from pydantic_core import PydanticCustomError

from trainer.frozen import Frozen
from trainer.schema.names import Name, Share


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


class FixedSplit(Frozen):
    """As a column says: 0, 1, 2 or train, validation, test."""

    type: Literal["fixed"] = "fixed"
    column: Name = "split"


class StratifySplit(Frozen):
    """At random within each value of a column."""

    type: Literal["stratify"] = "stratify"
    column: Name
    probabilities: Probabilities = (0.7, 0.1, 0.2)


class HashSplit(Frozen):
    """By the hash of a column's value: equal values together, stable when rows are added or reordered."""

    type: Literal["hash"] = "hash"
    column: Name
    probabilities: Probabilities = (0.7, 0.1, 0.2)


SplitConfig: TypeAlias = Annotated[RandomSplit | FixedSplit | StratifySplit | HashSplit, Field(discriminator="type")]


class Preprocessing(Frozen):
    """``split`` is None when the user wrote none."""

    split: SplitConfig | None = None
