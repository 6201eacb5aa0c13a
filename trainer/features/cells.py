"""Arrow columns → numbers and texts, and the wording of what a cell cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NoReturn, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cachestore.dataset import text_column
from cachestore.errors import DataError

Column: TypeAlias = pa.Array | pa.ChunkedArray
StringArray: TypeAlias = pa.StringArray

NUMBER: Final = r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$"
MISSING_NUMBERS: Final = ("nan", "na", "n/a", "null", "none")  # in any case: what spreadsheets and pandas write
_SHOWN: Final = 40


def refuse(where: str, column: str, row: int, why: str) -> NoReturn:
    """Raises DataError naming the file, the column, the data row counted from 0, and what is wrong there."""
    raise DataError(f"{where}, column {column!r}, data row {row} (counted from 0): {why}")


def shown(cell: str) -> str:
    """A cell as a message shows it, cut when long."""
    return repr(cell if len(cell) <= _SHOWN else cell[: _SHOWN - 1] + "…")


def numbers(cells: Column, where: str, column: str, *, finite: bool = True) -> NDArray[np.float64]:
    """(rows,), NaN where the cell is missing: null, blank, NaN, or one of ``MISSING_NUMBERS``.

    Text is rounded to the nearest float64. Raises DataError at the first cell that is no number, or, with ``finite``, no
    finite one.
    """
    array = plain(cells)
    kind = array.type
    if pa.types.is_boolean(kind):
        raise DataError(f"{where}, column {column!r} holds true and false, not numbers; make it a binary feature")
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind):
        values = _floats(array)
    elif is_text(kind):
        values = _parsed(texts(array, where, column), where, column)
    else:
        raise DataError(f"{where}, column {column!r} has type {kind}, not numbers; convert it or leave it out")
    infinite = np.isinf(values)
    if finite and infinite.any():
        row = int(infinite.argmax())
        refuse(where, column, row, f"{shown(str(array[row].as_py()))} is not a finite number")
    return values


def texts(cells: Column, where: str, column: str) -> pa.StringArray:
    """(rows,), null where the cell is missing: null, blank or NaN. White space around a text is dropped.

    A number is written as short as it can be (3 for 3.0), a boolean as True or False, as Python and pandas write them.
    Raises DataError for cells that are not UTF-8 and for types that have no one text.
    """
    array = plain(cells)
    kind = array.type
    if is_text(kind):
        array, invalid = text_column(array, column)
        if invalid.any():
            refuse(where, column, int(invalid.argmax()), "is not UTF-8 text; save the file as UTF-8")
        array = pc.utf8_trim_whitespace(array)
        return without(array, (values(pc.binary_length(array)) == 0) & valid(array))
    if pa.types.is_boolean(kind):
        return strings(["False", "True"]).take(array.cast(pa.uint8()))
    if pa.types.is_floating(kind):
        encoded = array.dictionary_encode()
        number = np.dtype(kind.to_pandas_dtype()).type  # 0.1 is 0.1 in float32 too
        written = [None if value is None else _written(number(value)) for value in encoded.dictionary.to_pylist()]
        return strings(written).take(encoded.indices)
    if pa.types.is_nested(kind) or pa.types.is_duration(kind):
        raise DataError(f"{where}, column {column!r} has type {kind}; a category or binary feature needs plain values")
    return array.cast(pa.string())


def plain(cells: Column) -> pa.Array:
    """One array, with dictionaries decoded and extension types as what they store."""
    array = pa.concat_arrays(cells.chunks) if isinstance(cells, pa.ChunkedArray) and cells.num_chunks else cells
    if isinstance(array, pa.ChunkedArray):
        array = pa.nulls(0, array.type)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array.dictionary.take(array.indices) if pa.types.is_dictionary(array.type) else array


def is_text(kind: pa.DataType) -> bool:
    """Whether cells of this type are texts, or bytes that may be."""
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    data = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    return bool(text or data or pa.types.is_binary_view(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether each cell is a list of values."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def lengths(array: pa.Array) -> NDArray[np.int64]:
    """(rows,) how many values the list of each row has; a missing one has none."""
    counts = pc.list_value_length(array)
    return np.where(valid(counts), values(counts), 0).astype(np.int64)


def valid(array: pa.Array) -> NDArray[np.bool_]:
    """(rows,) True where ``array`` is not null."""
    return values(array.is_valid().cast(pa.uint8())).astype(np.bool_)


def values(array: pa.Array) -> NDArray[Any]:
    """A numeric array as numpy, nulls as anything.

    Neither ``to_numpy`` nor, elsewhere here, ``pa.array`` and ``pa.scalar``: they import pandas where it is, 0.3 s.
    """
    dtype = np.dtype(array.type.to_pandas_dtype())
    if len(array) == 0:
        return np.zeros(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize)


def strings(texts: Sequence[str | None]) -> pa.StringArray:
    """Texts for Arrow."""
    encoded = [(text or "").encode() for text in texts]
    offsets = np.zeros(len(encoded) + 1, np.int32)
    np.cumsum([len(text) for text in encoded], out=offsets[1:])
    there = pa.py_buffer(np.packbits([text is not None for text in texts], bitorder="little"))
    return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)), there)


def where_true(mask: NDArray[np.bool_]) -> pa.BooleanArray:
    """A numpy mask for Arrow's filters."""
    bits = pa.py_buffer(np.packbits(mask, bitorder="little"))
    return pa.Array.from_buffers(pa.bool_(), len(mask), [None, bits])


def indices(array: pa.StringArray, vocabulary: tuple[str, ...]) -> NDArray[np.int64]:
    """(rows,) the place of each text in ``vocabulary``, -1 for null and for texts not in it."""
    found = pc.index_in(array, value_set=strings(vocabulary), skip_nulls=True)
    return np.where(valid(found), values(found), -1).astype(np.int64)


def filled(array: pa.StringArray, text: str) -> pa.StringArray:
    """``text`` for every null."""
    return pc.fill_null(array, strings([text])[0])


def as_bytes(array: pa.StringArray) -> list[bytes | None]:
    """The texts in UTF-8."""
    cells: list[bytes | None] = array.cast(pa.binary()).to_pylist()
    return cells


def counted(array: pa.StringArray, most: int | None = None) -> list[tuple[str, int]]:
    """The ``most`` frequent texts and how often they occur, ties by code point; nulls do not count."""
    counts = pc.value_counts(array.drop_null())
    order = pc.sort_indices(counts, sort_keys=[("counts", "descending"), ("values", "ascending")])
    top = counts.take(order[:most])
    return list(zip(top.field("values").to_pylist(), top.field("counts").to_pylist(), strict=True))


def counted_first(first: pa.StringArray, others: pa.StringArray) -> list[str]:
    """The texts of ``first`` as ``counted`` orders them, then those that only ``others`` has."""
    return list(dict.fromkeys(text for array in (first, others) for text, _ in counted(array)))


def without(array: pa.Array, mask: NDArray[np.bool_]) -> pa.Array:
    """Null where ``mask`` (rows,) is True."""
    return pc.if_else(where_true(~mask), array, pa.nulls(len(array), array.type)) if mask.any() else array


def _written(value: np.floating[Any]) -> str | None:
    if np.isnan(value):
        return None
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else str(value)


def true(array: pa.BooleanArray) -> NDArray[np.bool_]:
    """(rows,) True where ``array`` is true, and not null."""
    return values(array.cast(pa.uint8())).astype(np.bool_) & valid(array)


def _floats(array: pa.Array) -> NDArray[np.float64]:
    floats = (
        pa.nulls(len(array), pa.float64()) if pa.types.is_null(array.type) else array.cast(pa.float64(), safe=False)
    )
    return np.where(valid(floats), values(floats), np.nan)


def _parsed(array: pa.StringArray, where: str, column: str) -> NDArray[np.float64]:
    other = valid(array) & ~true(pc.match_substring_regex(array, NUMBER))
    if other.any():
        wrong = other & ~true(pc.is_in(pc.utf8_lower(array), value_set=strings(MISSING_NUMBERS)))
        if wrong.any():
            row = int(wrong.argmax())
            why = "is not a number; correct it, or empty it if missing"
            refuse(where, column, row, f"{shown(array[row].as_py())} {why}")
        array = without(array, other)
    return _floats(array.cast(pa.float64()))
