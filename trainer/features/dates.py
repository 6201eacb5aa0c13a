"""Dates: text or typed cells → the year, and where in the year, month, week, day, hour and minute they fall.

What comes round again is a point on a circle, its sine and cosine, so that December is next to January and a linear model
can use it. Fields that are the same in every training row are left out: nothing could be learnt of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cachestore.errors import DataError
from trainer.features import cells as c
from trainer.features.filling import Filled, fill
from trainer.schema.preprocessing import DatePreprocessing

YEAR: Final = "year"
PERIODS: Final[Mapping[str, int]] = {  # Ludwig's fields, each counted from 0
    "month": 12,
    "day": 31,
    "weekday": 7,  # Monday is 0
    "yearday": 366,
    "hour": 24,
    "minute": 60,
    "second": 60,
}
_EPOCH: Final = datetime(1970, 1, 1)  # local times, as they are written
_MISSING: Final = (*c.MISSING_NUMBERS, "nat")
_FRACTION: Final = r"(:[0-9]{2})[.,][0-9]+$"
_ZONE: Final = r":[0-9]{2}(?:[.,][0-9]+)?\s*(?:Z|[-+][0-9]{2}:?(?:[0-9]{2})?)$"


@final
@dataclass(frozen=True)
class FittedDate:
    """``fields`` give two columns each, the year one: (year - ``shift``) / ``scale``. ``fill`` is in seconds since 1970."""

    fields: tuple[str, ...]
    shift: float
    scale: float
    fill: int | None
    missing: bool = False

    @property
    def dim(self) -> int:
        """How many columns there are."""
        return sum(1 if name == YEAR else 2 for name in self.fields)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "type": "date",
            "fields": list(self.fields),
            "shift": self.shift,
            "scale": self.scale,
            "fill": self.fill,
            "missing": self.missing,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FittedDate:
        """What ``to_json`` gave."""
        return cls(tuple(value["fields"]), value["shift"], value["scale"], value["fill"], value["missing"])


def fit(
    column: str, preprocessing: DatePreprocessing, cells: c.Column, train: NDArray[np.bool_], where: str
) -> FittedDate:
    """Which fields vary in the training rows. Raises DataError when those hold no date, or a cell is none."""
    seconds, present = instants(cells, preprocessing.datetime_format, where, column)
    seen = seconds[train & present]
    if not len(seen):
        raise DataError(f"{where}, column {column!r} has no date in any training row to learn from")
    found = _fields(seen)
    varying = tuple(name for name, values in found.items() if (values != values[0]).any())
    shift, scale = float(found[YEAR].mean()), float(found[YEAR].std())
    stand_in: int | None = None
    match preprocessing.missing_value_strategy:
        case "fill_with_const":
            constant = c.strings([preprocessing.fill_value])
            stand_in = int(instants(constant, preprocessing.datetime_format, "the config", "fill_value")[0][0])
        case "drop_row":
            pass
        case _:
            distinct, counts = np.unique(seen, return_counts=True)
            stand_in = int(distinct[counts.argmax()])
    indicator = preprocessing.missing_value_indicator and bool((train & ~present).any())
    fields = varying or (YEAR,)
    return FittedDate(fields, shift, scale if YEAR in varying else 1.0, stand_in, indicator)


def transform(column: str, preprocessing: DatePreprocessing, state: FittedDate, cells: c.Column, where: str) -> Filled:
    """float32 (rows, dim). Raises DataError at the first cell that is no date."""
    seconds, present = instants(cells, preprocessing.datetime_format, where, column)
    filled = fill(seconds, present, preprocessing.missing_value_strategy, state.fill)
    found = _fields(filled.values)
    columns: list[NDArray[np.float64]] = []
    for name in state.fields:
        if name == YEAR:
            columns.append((found[name] - state.shift) / state.scale)
        else:
            angle = found[name] * (2 * np.pi / PERIODS[name])
            columns += [np.sin(angle), np.cos(angle)]
    return Filled(np.stack(columns, axis=1).astype(np.float32), filled.keep, filled.missing)


def instants(cells: c.Column, form: str | None, where: str, column: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Whole seconds since 1970 (rows,) of the local times that are written, and where a cell is there (rows,).

    ``form`` is one of Python's, for texts; without it they are in ISO 8601. A typed column with a time zone is taken in that
    zone, a text with one in UTC, and only by a ``form`` that has ``%z``. Raises DataError at the first cell that is no date.
    """
    array = c.plain(cells)
    kind = array.type
    if pa.types.is_null(kind):
        return np.zeros(len(array), np.int64), np.zeros(len(array), np.bool_)
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        try:
            array = pc.local_timestamp(array)
        except pa.ArrowInvalid as error:
            raise DataError(f"{where}, column {column!r} is in the time zone {kind.tz!r}: {error}") from error
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        array = array.cast(pa.timestamp(array.type.unit) if pa.types.is_timestamp(kind) else pa.timestamp("s"))
        per = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[array.type.unit]
        present = c.valid(array)
        return np.where(present, c.values(array.cast(pa.int64())), 0) // per, present
    text = c.texts(array, where, column)
    text = c.without(text, c.true(pc.is_in(pc.utf8_lower(text), value_set=c.strings(_MISSING))))
    encoded = text.dictionary_encode()
    present = c.valid(encoded.indices)
    codes = np.where(present, c.values(encoded.indices), 0)
    parsed = _iso(encoded.dictionary) if form is None else _formed(encoded.dictionary.to_pylist(), form)
    if isinstance(parsed, int):
        row = int(((codes == parsed) & present).argmax())
        c.refuse(where, column, row, _no_date(encoded.dictionary[parsed].as_py(), form))
    return (parsed[codes] if len(parsed) else np.zeros(len(codes), np.int64)), present


def _iso(texts: pa.StringArray) -> NDArray[np.int64] | int:
    """Seconds since 1970, or the place of the first text that is no date."""
    whole = pc.replace_substring_regex(texts, _FRACTION, r"\1")
    try:
        return c.values(whole.cast(pa.timestamp("s")).cast(pa.int64()))
    except pa.ArrowInvalid:
        return next(place for place in range(len(whole)) if not _reads(whole.slice(place, 1)))


def _reads(text: pa.StringArray) -> bool:
    try:
        text.cast(pa.timestamp("s"))
    except pa.ArrowInvalid:
        return False
    return True


def _formed(texts: list[str], form: str) -> NDArray[np.int64] | int:
    """As ``_iso``. By Python: Arrow's strptime takes the 30th of February for the 1st of March."""
    found = np.zeros(len(texts), np.int64)
    for place, text in enumerate(texts):
        try:
            read = datetime.strptime(text, form)  # local times, as they are written
        except ValueError:
            return place
        if read.tzinfo is not None:
            read = read.astimezone(UTC).replace(tzinfo=None)
        found[place] = (read - _EPOCH) // timedelta(seconds=1)
    return found


def _no_date(text: str, form: str | None) -> str:
    if form is not None:
        return f"{c.shown(text)} is not a date of the form {form!r}; correct it, or empty it if missing"
    if pc.match_substring_regex(c.strings([text]), _ZONE)[0].as_py():
        return (
            f"{c.shown(text)} has a time zone; write the local time without it, or set preprocessing.datetime_format to a "
            "form with %z, which takes it in UTC"
        )
    return (
        f"{c.shown(text)} is not a date such as 2024-01-31 or 2024-01-31 13:05; correct it, empty it if missing, or set "
        "preprocessing.datetime_format to its form, such as %d.%m.%Y"
    )


def _fields(seconds: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Every field (rows,), counted from 0 but the year."""
    moments = seconds.astype("datetime64[s]")
    days, months, years = (moments.astype(f"datetime64[{unit}]") for unit in "DMY")
    of_day = seconds - days.astype("datetime64[s]").astype(np.int64)
    found = {
        YEAR: years.astype(np.int64) + 1970,
        "month": (months - years.astype("datetime64[M]")).astype(np.int64),
        "day": (days - months.astype("datetime64[D]")).astype(np.int64),
        "weekday": (days.astype(np.int64) + 3) % 7,  # 1970 began on a Thursday
        "yearday": (days - years.astype("datetime64[D]")).astype(np.int64),
        "hour": of_day // 3600,
        "minute": of_day // 60 % 60,
        "second": of_day % 60,
    }
    return {name: values.astype(np.float64) for name, values in found.items()}
