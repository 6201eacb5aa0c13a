"""Categories: the text form of a cell → its place in a vocabulary made from the training rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cachestore.errors import DataError, nearest
from trainer.features import cells as c
from trainer.features.filling import Filled, fill
from trainer.schema.inputs import CategoryInput
from trainer.schema.outputs import CategoryOutput

UNKNOWN: Final = "<UNK>"
_SHOWN: Final = 10


@final
@dataclass(frozen=True)
class FittedCategory:
    """``vocabulary`` by frequency in the training rows, then by code point; an input's begins with ``<UNK>``, an output's are its
    classes, those that no training row has behind the others.

    ``unknown``: training rows have a value that is ``<UNK>``, so that something is learnt of it; else it is the zero vector.
    ``missing``: an indicator input follows.
    """

    vocabulary: tuple[str, ...]
    fill: int | None
    unknown: bool = True
    missing: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "type": "category",
            "vocabulary": list(self.vocabulary),
            "fill": self.fill,
            "unknown": self.unknown,
            "missing": self.missing,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FittedCategory:
        """What ``to_json`` gave."""
        # runs of before there were unknown and missing have neither key
        return cls(tuple(value["vocabulary"]), value["fill"], value.get("unknown", True), value.get("missing", False))


def fit_input(feature: CategoryInput, cells: c.Column, train: NDArray[np.bool_], where: str) -> FittedCategory:
    """Vocabulary of the ``most_common`` values in the training rows, a constant fill counted as a value."""
    preprocessing = feature.preprocessing
    strategy = preprocessing.missing_value_strategy
    text = _texts(feature, cells, where)
    counts = _counts(text, train, strategy, _constant(feature), preprocessing.most_common + 1)  # one may be <UNK>
    known = [value for value, _ in counts if value != UNKNOWN][: preprocessing.most_common]
    vocabulary = (UNKNOWN, *known)
    if strategy in ("fill_with_mode", "bfill", "ffill") and not known:
        raise DataError(
            f"{where}, column {feature.column!r} has no value in any training row to fill missing ones with"
        )
    match strategy:
        case "fill_with_const":
            constant = _constant(feature)
            stand_in: int | None = vocabulary.index(constant) if constant in vocabulary else 0
        case "drop_row":
            stand_in = None
        case _:
            stand_in = 1
    absent = bool((~c.valid(text) & train).any())
    unknown = len(counts) > len(known) or (absent and stand_in == 0) or not known
    return FittedCategory(vocabulary, stand_in, unknown, absent and preprocessing.missing_value_indicator)


def transform_input(feature: CategoryInput, state: FittedCategory, cells: c.Column, where: str) -> Filled:
    """int64 (rows,): places in the vocabulary, 0 for a value it does not hold."""
    text = _texts(feature, cells, where)
    places = np.maximum(c.indices(text, state.vocabulary), 0)
    return fill(places, c.valid(text), feature.preprocessing.missing_value_strategy, state.fill)


def fit_output(
    feature: CategoryOutput, cells: c.Column, train: NDArray[np.bool_], known: NDArray[np.bool_], where: str
) -> FittedCategory:
    """The classes of the rows that ``train`` or ``known`` marks. Raises DataError when there are fewer than two."""
    preprocessing = feature.preprocessing
    strategy, constant = preprocessing.missing_value_strategy, preprocessing.fill_value
    text = c.texts(cells, where, feature.column)
    seen, others = (_seen(text, rows, strategy, constant) for rows in (train, known))
    classes = tuple(c.counted_first(seen, others))
    if len(classes) < 2:
        held = f"only the class {classes[0]!r}" if classes else "no class"
        raise DataError(f"{where}, column {feature.column!r} has {held}; a category output needs two")
    if strategy == "drop_row":
        return FittedCategory(classes, None)
    if strategy == "fill_with_const":
        return FittedCategory(classes, classes.index(constant) if constant in classes else None)
    return FittedCategory(classes, 0)  # the most frequent one in the training rows


def transform_output(
    feature: CategoryOutput, state: FittedCategory, cells: c.Column, where: str, used: NDArray[np.bool_] | None = None
) -> Filled:
    """int64 (rows,): class indices. Raises DataError at the first class not seen in training."""
    preprocessing = feature.preprocessing
    text = c.texts(cells, where, feature.column)
    present = c.valid(text)
    places = c.indices(text, state.vocabulary)
    unseen = (places < 0) & present
    if unseen.any():
        row = int(unseen.argmax())
        _refuse_class(feature, state, where, row, text[row].as_py())
    absent = ~present if used is None else ~present & used
    if preprocessing.missing_value_strategy == "fill_with_const" and state.fill is None and absent.any():
        _refuse_class(feature, state, where, int(absent.argmax()), str(preprocessing.fill_value))
    stand_in = 0 if state.fill is None else state.fill  # then only rows that are not used, or dropped, take it
    return fill(places, present, preprocessing.missing_value_strategy, stand_in)


def _refuse_class(feature: CategoryOutput, state: FittedCategory, where: str, row: int, name: str) -> None:
    classes = ", ".join(map(repr, state.vocabulary[:_SHOWN])) + (", …" if len(state.vocabulary) > _SHOWN else "")
    why = f"the class {c.shown(name)} is in no row of the training data{nearest(name, state.vocabulary)}"
    c.refuse(where, feature.column, row, f"{why}. The model knows {classes}")


def _constant(feature: CategoryInput) -> str:
    constant = feature.preprocessing.fill_value
    return constant.lower() if feature.preprocessing.lowercase and constant != UNKNOWN else constant


def _texts(feature: CategoryInput, cells: c.Column, where: str) -> pa.StringArray:
    text = c.texts(cells, where, feature.column)
    return pc.utf8_lower(text) if feature.preprocessing.lowercase else text


def _counts(
    text: pa.StringArray, train: NDArray[np.bool_], strategy: str, constant: str | None, most: int | None = None
) -> list[tuple[str, int]]:
    return c.counted(_seen(text, train, strategy, constant), most)


def _seen(text: pa.StringArray, rows: NDArray[np.bool_], strategy: str, constant: str | None) -> pa.StringArray:
    """The texts of the rows that ``rows`` marks, with a constant fill in the place of missing ones."""
    seen = text.filter(c.where_true(rows))
    return c.filled(seen, constant) if strategy == "fill_with_const" and constant is not None else seen
