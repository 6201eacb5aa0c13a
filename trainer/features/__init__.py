"""Features of a table: cells → arrays. What a type learns from the training rows is its state, plain enough for JSON.

Text and images do not pass here: their vectors come from the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trainer.features import binary, category, dates, number, sets, vectors
from trainer.features.binary import FittedBinary
from trainer.features.category import FittedCategory
from trainer.features.cells import Column
from trainer.features.dates import FittedDate
from trainer.features.filling import Filled
from trainer.features.number import FittedNumber
from trainer.features.sets import FittedSet
from trainer.features.vectors import FittedVector
from trainer.schema.inputs import BinaryInput, CategoryInput, DateInput, NumberInput, SetInput, VectorInput
from trainer.schema.outputs import BinaryOutput, CategoryOutput, NumberOutput, SetOutput, VectorOutput

__all__ = [
    "Filled",
    "Fitted",
    "FittedBinary",
    "FittedCategory",
    "FittedDate",
    "FittedNumber",
    "FittedSet",
    "FittedVector",
    "fit_input",
    "fit_output",
    "fitted_from_json",
    "transform_input",
    "transform_output",
]

Fitted: TypeAlias = FittedNumber | FittedCategory | FittedBinary | FittedSet | FittedVector | FittedDate
TableInput: TypeAlias = NumberInput | CategoryInput | BinaryInput | SetInput | VectorInput | DateInput
Output: TypeAlias = CategoryOutput | BinaryOutput | NumberOutput | SetOutput | VectorOutput


def fit_input(feature: TableInput, cells: Column, train: NDArray[np.bool_], where: str) -> Fitted:
    """What ``feature`` learns from the rows that ``train`` (rows,) marks; ``where`` names the data in messages.

    Raises DataError naming column and row when a cell is not what the feature's type takes.
    """
    match feature:
        case NumberInput():
            return number.fit(feature, cells, train, where, target=False)
        case CategoryInput():
            return category.fit_input(feature, cells, train, where)
        case BinaryInput():
            return binary.fit(feature, cells, train, where, target=False)
        case SetInput():
            return sets.fit_input(feature.column, feature.preprocessing, cells, train, where)
        case VectorInput():
            return vectors.fit(feature.column, feature.preprocessing, cells, train, where)
        case DateInput():
            return dates.fit(feature.column, feature.preprocessing, cells, train, where)


def transform_input(feature: TableInput, state: Fitted, cells: Column, where: str) -> Filled:
    """Every row: int64 (rows,) places of a category, float32 (rows,), or (rows, dim). Raises DataError as ``fit_input``."""
    match feature, state:
        case NumberInput(), FittedNumber():
            return number.transform(feature, state, cells, where)
        case CategoryInput(), FittedCategory():
            return category.transform_input(feature, state, cells, where)
        case BinaryInput(), FittedBinary():
            return binary.transform(feature, state, cells, where)
        case SetInput(), FittedSet():
            return sets.transform_input(feature.column, feature.preprocessing, state, cells, where)
        case VectorInput(), FittedVector():
            return vectors.transform(feature.column, feature.preprocessing, state, cells, where)
        case DateInput(), FittedDate():
            return dates.transform(feature.column, feature.preprocessing, state, cells, where)
    raise TypeError(f"the state of {feature.name!r} is a {type(state).__name__}, which is no {feature.type}'s")


def fit_output(
    feature: Output, cells: Column, train: NDArray[np.bool_], where: str, known: NDArray[np.bool_] | None = None
) -> Fitted:
    """What ``feature`` learns from the training rows. Raises DataError where they hold nothing to learn.

    A category or set output also has the classes that only rows of ``known`` (rows,) have; nothing else follows from these.
    """
    known = train if known is None else known
    match feature:
        case NumberOutput():
            return number.fit(feature, cells, train, where, target=True)
        case CategoryOutput():
            return category.fit_output(feature, cells, train, known, where)
        case BinaryOutput():
            return binary.fit(feature, cells, train, where, target=True)
        case SetOutput():
            return sets.fit_output(feature.column, feature.preprocessing, cells, train, known, where)
        case VectorOutput():
            return vectors.fit(feature.column, feature.preprocessing, cells, train, where)


def transform_output(
    feature: Output, state: Fitted, cells: Column, where: str, used: NDArray[np.bool_] | None = None
) -> Filled:
    """Every row's target. Raises DataError as ``fit_output`` does, and for a class that no training row has.

    A missing cell is no fault where ``used`` (rows,) is False: its row is not used.
    """
    match feature, state:
        case NumberOutput(), FittedNumber():
            return number.transform(feature, state, cells, where)
        case CategoryOutput(), FittedCategory():
            return category.transform_output(feature, state, cells, where, used)
        case BinaryOutput(), FittedBinary():
            return binary.transform(feature, state, cells, where)
        case SetOutput(), FittedSet():
            return sets.transform_output(feature.column, feature.preprocessing, state, cells, where, used)
        case VectorOutput(), FittedVector():
            return vectors.transform(feature.column, feature.preprocessing, state, cells, where)
    raise TypeError(f"the state of {feature.name!r} is a {type(state).__name__}, which is no {feature.type}'s")


def fitted_from_json(value: Mapping[str, Any]) -> Fitted:
    """The state that ``to_json`` wrote."""
    match value["type"]:
        case "number":
            return FittedNumber.from_json(value)
        case "category":
            return FittedCategory.from_json(value)
        case "binary":
            return FittedBinary.from_json(value)
        case "set":
            return FittedSet.from_json(value)
        case "vector":
            return FittedVector.from_json(value)
        case "date":
            return FittedDate.from_json(value)
    raise ValueError(f"{value['type']!r} is no type of a fitted feature")
