"""Vectors: a list of numbers, or a text of several, in every cell → float32, as many numbers in every row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cachestore.errors import DataError
from trainer.features import cells as c
from trainer.features.filling import Filled, fill
from trainer.schema.preprocessing import VectorPreprocessing, VectorTargetPreprocessing

_AROUND: Final = " \t\r\n[](){}"
_BETWEEN: Final = r"[\s,;]+"


@final
@dataclass(frozen=True)
class FittedVector:
    """``dim`` numbers in every row; ``fill`` (dim,) stands in for a missing cell. ``missing``: an indicator follows."""

    dim: int
    fill: tuple[float, ...] | None
    missing: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        fill = None if self.fill is None else list(self.fill)
        return {"type": "vector", "dim": self.dim, "fill": fill, "missing": self.missing}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FittedVector:
        """What ``to_json`` gave."""
        fill = value["fill"]
        return cls(value["dim"], None if fill is None else tuple(fill), value["missing"])


def fit(
    column: str,
    preprocessing: VectorPreprocessing | VectorTargetPreprocessing,
    cells: c.Column,
    train: NDArray[np.bool_],
    where: str,
) -> FittedVector:
    """The size of the first training row, and what stands in for a missing cell.

    Raises DataError when no training row has a vector, or a cell is none.
    """
    numbers, lengths, present = _numbers(cells, where, column)
    seen = train & present
    if not seen.any():
        raise DataError(f"{where}, column {column!r} has no vector in any training row to learn from")
    dim = preprocessing.vector_size or int(lengths[int(seen.argmax())])
    values = _square(numbers, lengths, present, dim, where, column)
    stand_in: tuple[float, ...] | None = None
    match preprocessing.missing_value_strategy:
        case "fill_with_const":
            stand_in = _constant(preprocessing.fill_value, dim, column)
        case "drop_row":
            pass
        case _:
            distinct, counts = np.unique(values[seen], axis=0, return_counts=True)
            stand_in = tuple(distinct[counts.argmax()].tolist())
    indicator = isinstance(preprocessing, VectorPreprocessing) and preprocessing.missing_value_indicator
    return FittedVector(dim, stand_in, indicator and bool((train & ~present).any()))


def transform(
    column: str,
    preprocessing: VectorPreprocessing | VectorTargetPreprocessing,
    state: FittedVector,
    cells: c.Column,
    where: str,
) -> Filled:
    """float32 (rows, dim). Raises DataError at the first cell that is no vector of ``dim`` finite numbers."""
    numbers, lengths, present = _numbers(cells, where, column)
    values = _square(numbers, lengths, present, state.dim, where, column)
    stand_in = None if state.fill is None else np.asarray(state.fill, np.float32)
    return fill(values, present, preprocessing.missing_value_strategy, stand_in)


def _numbers(
    cells: c.Column, where: str, column: str
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    """All numbers one after another, how many each row has (rows,), and whether it has a cell (rows,)."""
    array = c.plain(cells)
    if pa.types.is_null(array.type):
        return np.zeros(0, np.float32), np.zeros(len(array), np.int64), np.zeros(len(array), np.bool_)
    if not c.is_list(array.type):
        text = c.texts(array, where, column)
        bare = pc.utf8_trim(text, characters=_AROUND)
        # split first: a text of brackets alone is a vector of no numbers
        array = pc.split_pattern_regex(bare, _BETWEEN)
    present, lengths = c.valid(array), c.lengths(array)
    flat = c.plain(pc.list_flatten(array))
    rows = np.repeat(np.arange(len(array)), lengths)
    values = _floats(flat, rows, where, column)
    with np.errstate(over="ignore"):  # looked for in the next line
        narrow = values.astype(np.float32)
    if not np.isfinite(narrow).all():
        at = int((~np.isfinite(narrow)).argmax())
        what = "a missing number" if np.isnan(values[at]) else f"{values[at]:g}, which is too large for a 32-bit float"
        c.refuse(where, column, int(rows[at]), f"the vector has {what}; correct it, or empty the cell if missing")
    return narrow, lengths, present


def _floats(flat: pa.Array, rows: NDArray[np.int64], where: str, column: str) -> NDArray[np.float64]:
    if not c.is_text(flat.type):
        if not len(flat):
            return np.zeros(0, np.float64)
        return c.numbers(flat, where, column, finite=False)
    try:
        values: NDArray[np.float64] = c.values(flat.cast(pa.float64()))
    except pa.ArrowInvalid:
        at = int((~c.true(pc.match_substring_regex(flat, c.NUMBER))).argmax())
        why = f"{c.shown(flat[at].as_py())} is not a number; a vector is written as in 0.5 1.2 or [0.5, 1.2]"
        c.refuse(where, column, int(rows[at]), why)
    return values


def _square(
    numbers: NDArray[np.float32],
    lengths: NDArray[np.int64],
    present: NDArray[np.bool_],
    dim: int,
    where: str,
    column: str,
) -> NDArray[np.float32]:
    """(rows, dim), zeros where there is no cell. Raises DataError at the first vector of another size."""
    wrong = present & (lengths != dim)
    if wrong.any():
        row = int(wrong.argmax())
        c.refuse(where, column, row, f"has {lengths[row]} numbers, and the vectors of this feature have {dim}")
    if present.all():
        return numbers.reshape(len(present), dim)
    values = np.zeros((len(present), dim), np.float32)
    values[present] = numbers.reshape(-1, dim)
    return values


def _constant(value: float | str, dim: int, column: str) -> tuple[float, ...]:
    """A number for every place, or a text of ``dim`` numbers."""
    if not isinstance(value, str):
        return (value,) * dim
    numbers, lengths, _ = _numbers(c.strings([value]), "the config", f"{column}.preprocessing.fill_value")
    if lengths.tolist() != [dim]:
        raise DataError(
            f"the feature of column {column!r}: preprocessing.fill_value has {int(lengths[0])} numbers, and its vectors "
            f"have {dim}; write {dim}, or one number for all"
        )
    return tuple(numbers.tolist())
