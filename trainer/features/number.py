"""Numbers: text or typed cells → float32, normalised by what the training rows hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from cachestore.errors import DataError
from trainer.features import cells as c
from trainer.features.filling import Filled, fill
from trainer.schema.inputs import NumberInput
from trainer.schema.outputs import NumberOutput
from trainer.schema.preprocessing import Normalization

_LARGEST: Final = float(np.finfo(np.float32).max)


@final
@dataclass(frozen=True)
class FittedNumber:
    """(x - ``shift``) / ``scale``, or log(1 + x) for log1p; ``fill`` is in the column's own units."""

    normalization: Normalization | None
    shift: float
    scale: float
    fill: float | None

    def normalize(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The column's own units → what the model sees."""
        if self.normalization == "log1p":
            return np.log1p(values)
        return (values - self.shift) / self.scale

    def restore(self, values: Any) -> Any:
        """What the model sees → the column's own units, of an array or a tensor."""
        if self.normalization == "log1p":
            return values.expm1() if hasattr(values, "expm1") else np.expm1(values)
        return values * self.scale + self.shift

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {"type": "number", **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FittedNumber:
        """What ``to_json`` gave."""
        return cls(value["normalization"], value["shift"], value["scale"], value["fill"])


def fit(
    feature: NumberInput | NumberOutput, cells: c.Column, train: NDArray[np.bool_], where: str, *, target: bool
) -> FittedNumber:
    """Statistics are those of the cells that are there in the training rows: what is filled in does not move them.

    Raises DataError when the training rows hold no value to learn from, or a cell is no number.
    """
    preprocessing = feature.preprocessing
    values = _numbers(feature, cells, where)
    seen = values[train & ~np.isnan(values)]
    strategy = preprocessing.missing_value_strategy
    if not len(seen) and (target or strategy not in ("fill_with_const", "drop_row")):
        raise DataError(f"{where}, column {feature.column!r} has no number in any training row to learn from")
    normalization = preprocessing.normalization
    if normalization == "log1p":
        _check_log1p(values, where, feature.column)
    stand_in: float | None = None
    match strategy:
        case "fill_with_const":
            stand_in = preprocessing.fill_value
        case "fill_with_mean" | "bfill" | "ffill":
            stand_in = float(seen.mean())
        case "fill_with_mode":
            distinct, counts = np.unique(seen, return_counts=True)
            stand_in = float(distinct[counts.argmax()])
    shift, scale = _statistics(normalization, seen)
    return FittedNumber(normalization, shift, scale, stand_in)


def transform(feature: NumberInput | NumberOutput, state: FittedNumber, cells: c.Column, where: str) -> Filled:
    """float32 (rows,). Raises DataError at the first cell that is no number."""
    numbers = _numbers(feature, cells, where)
    if state.normalization == "log1p":
        _check_log1p(numbers, where, feature.column)
    filled = fill(numbers, ~np.isnan(numbers), feature.preprocessing.missing_value_strategy, state.fill)
    with np.errstate(over="ignore"):  # looked for in the next line
        values = state.normalize(filled.values).astype(np.float32)
    if not np.isfinite(values).all():
        row = int((~np.isfinite(values)).argmax())
        c.refuse(where, feature.column, row, f"{numbers[row]:g} is too large for a 32-bit float")
    return replace(filled, values=values)


def _numbers(feature: NumberInput | NumberOutput, cells: c.Column, where: str) -> NDArray[np.float64]:
    """The cells, each within the range of a 32-bit float: beyond it even their mean and deviation overflow."""
    values = c.numbers(cells, where, feature.column)
    large = np.abs(values) > _LARGEST
    if large.any():
        row = int(large.argmax())
        c.refuse(where, feature.column, row, f"{values[row]:g} is too large for a 32-bit float")
    return values


def _statistics(normalization: Normalization | None, seen: NDArray[np.float64]) -> tuple[float, float]:
    """(shift, scale); scale is 1 for a constant column, which so becomes zeros."""
    if normalization not in ("zscore", "minmax") or not len(seen):
        return 0.0, 1.0
    low, high = float(seen.min()), float(seen.max())
    if low == high:  # asked of the values: their standard deviation need not be exactly 0
        return low, 1.0
    if normalization == "minmax":
        return low, high - low
    return float(seen.mean()), float(seen.std())


def _check_log1p(values: NDArray[np.float64], where: str, column: str) -> None:
    negative = values < 0
    if negative.any():
        row = int(negative.argmax())
        c.refuse(where, column, row, f"{values[row]:g} is negative, which log1p does not take; use zscore or minmax")
