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
class Outliers:
    """Values below ``low`` or above ``high`` are replaced as the feature's ``outlier_strategy`` says; by ``fill``, if it does."""

    low: float
    high: float
    fill: float | None

    def among(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(rows,) True where a value is one."""
        return (values < self.low) | (values > self.high)


@final
@dataclass(frozen=True)
class FittedNumber:
    """(x - ``shift``) / ``scale``, or log(1 + x) for log1p; ``fill`` and ``outliers`` are in the column's own units.

    ``missing``: an indicator input follows.
    """

    normalization: Normalization | None
    shift: float
    scale: float
    fill: float | None
    missing: bool = False
    outliers: Outliers | None = None

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
        outliers = value.get("outliers")  # runs of before there were outliers have neither key
        return cls(
            value["normalization"],
            value["shift"],
            value["scale"],
            value["fill"],
            value.get("missing", False),
            None if outliers is None else Outliers(**outliers),
        )


def fit(
    feature: NumberInput | NumberOutput, cells: c.Column, train: NDArray[np.bool_], where: str, *, target: bool
) -> FittedNumber:
    """Statistics are those of the cells that are there in the training rows and are no outliers, before any is filled in.

    Raises DataError when the training rows hold no value to learn from, or a cell is no number.
    """
    preprocessing = feature.preprocessing
    values = _numbers(feature, cells, where)
    there = train & ~np.isnan(values)
    strategy = preprocessing.missing_value_strategy
    if not there.any() and (target or strategy not in ("fill_with_const", "drop_row")):
        raise DataError(f"{where}, column {feature.column!r} has no number in any training row to learn from")
    bounds = _bounds(feature, values[there])
    seen = values[there] if bounds is None else values[there & ~bounds.among(values)]
    if there.any() and not len(seen):
        raise DataError(
            f"{where}, column {feature.column!r}: outlier_threshold makes an outlier of every number in the training rows; "
            "raise it"
        )
    outliers = None
    if bounds is not None and isinstance(feature, NumberInput):
        strategy_of_outliers = feature.preprocessing.outlier_strategy or ""
        constant = feature.preprocessing.outlier_replacement_value
        outliers = replace(bounds, fill=_stand_in(strategy_of_outliers, constant, seen))
    normalization = preprocessing.normalization
    if normalization == "log1p":
        _check_log1p(values if bounds is None else values[~bounds.among(values)], where, feature.column)
    shift, scale = _statistics(normalization, seen, where, feature.column)
    stand_in = _stand_in(strategy, preprocessing.fill_value, seen)
    indicator = isinstance(feature, NumberInput) and feature.preprocessing.missing_value_indicator
    missing = indicator and bool((train & np.isnan(values)).any())
    return FittedNumber(normalization, shift, scale, stand_in, missing, outliers)


def transform(feature: NumberInput | NumberOutput, state: FittedNumber, cells: c.Column, where: str) -> Filled:
    """float32 (rows,). Raises DataError at the first cell that is no number."""
    numbers = _numbers(feature, cells, where)
    missing = np.isnan(numbers)
    filled = _filled(feature, state, numbers, missing)
    if state.normalization == "log1p":
        _check_log1p(np.where(missing, 0, filled.values), where, feature.column)
    with np.errstate(over="ignore"):  # looked for in the next line
        values = state.normalize(filled.values).astype(np.float32)
    if not np.isfinite(values).all():
        row = int((~np.isfinite(values)).argmax())
        c.refuse(where, feature.column, row, f"{numbers[row]:g} is too large for a 32-bit float")
    return replace(filled, values=values)


def _filled(
    feature: NumberInput | NumberOutput, state: FittedNumber, numbers: NDArray[np.float64], missing: NDArray[np.bool_]
) -> Filled:
    """Missing cells and outliers each by their own strategy; neither is filled with the other."""
    strategy = feature.preprocessing.missing_value_strategy
    if state.outliers is None or not isinstance(feature, NumberInput):
        return fill(numbers, ~missing, strategy, state.fill)
    outlying = state.outliers.among(numbers)
    sound = ~missing & ~outlying
    of_missing = fill(numbers, sound, strategy, state.fill)
    of_outliers = fill(numbers, sound, feature.preprocessing.outlier_strategy or "", state.outliers.fill)
    return Filled(
        np.where(outlying, of_outliers.values, of_missing.values),
        np.where(outlying, of_outliers.keep, of_missing.keep),
        missing,
    )


def _bounds(feature: NumberInput | NumberOutput, seen: NDArray[np.float64]) -> Outliers | None:
    """``outlier_threshold`` standard deviations about the mean, as Ludwig has it, of the training rows alone."""
    if not isinstance(feature, NumberInput) or feature.preprocessing.outlier_strategy is None or not len(seen):
        return None
    mean, reach = float(seen.mean()), float(seen.std()) * feature.preprocessing.outlier_threshold
    return Outliers(mean - reach, mean + reach, None)


def _stand_in(strategy: str, constant: float, seen: NDArray[np.float64]) -> float | None:
    """What a strategy fills with, None where it drops; the mean where ``bfill`` and ``ffill`` find no neighbour."""
    match strategy:
        case "fill_with_const":
            return constant
        case "fill_with_mean" | "bfill" | "ffill":
            return float(seen.mean())
        case "fill_with_mode":
            distinct, counts = np.unique(seen, return_counts=True)
            return float(distinct[counts.argmax()])
    return None


def _numbers(feature: NumberInput | NumberOutput, cells: c.Column, where: str) -> NDArray[np.float64]:
    """The cells, each within the range of a 32-bit float: beyond it even their mean and deviation overflow."""
    values = c.numbers(cells, where, feature.column)
    large = np.abs(values) > _LARGEST
    if large.any():
        row = int(large.argmax())
        c.refuse(where, feature.column, row, f"{values[row]:g} is too large for a 32-bit float")
    return values


def _statistics(
    normalization: Normalization | None, seen: NDArray[np.float64], where: str, column: str
) -> tuple[float, float]:
    """(shift, scale); scale is 1 for a constant column, which so becomes zeros."""
    if normalization in (None, "log1p") or not len(seen):
        return 0.0, 1.0
    low, high = float(seen.min()), float(seen.max())
    if low == high:  # asked of the values: their standard deviation need not be exactly 0
        return low, 1.0
    if normalization == "minmax":
        return low, high - low
    if normalization == "zscore":
        return float(seen.mean()), float(seen.std())
    first, median, third = np.quantile(seen, (0.25, 0.5, 0.75)).tolist()
    if first == third:
        raise DataError(
            f"{where}, column {column!r}: half of its values or more are {median:g}, so that normalization iq has nothing "
            "to divide by; use zscore or minmax"
        )
    return median, third - first


def _check_log1p(values: NDArray[np.float64], where: str, column: str) -> None:
    negative = values < 0
    if negative.any():
        row = int(negative.argmax())
        c.refuse(where, column, row, f"{values[row]:g} is negative, which log1p does not take; use zscore or minmax")
