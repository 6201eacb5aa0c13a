"""Tables in memory as record batches of bounded size, and what every reader shares."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cachestore.errors import DataError

READER = "1"  # raised when the same bytes would give other cells than before
ROWS = 1 << 15
BATCH_BYTES = 64 << 20

_SIZED = {pa.string(), pa.large_string(), pa.binary(), pa.large_binary()}


@dataclass(frozen=True)
class Reader:
    """One opened input: its columns, its rows where known without parsing, and how to read it any number of times."""

    columns: tuple[str, ...]
    rows: int | None
    options: Mapping[str, str]
    read: Callable[[Sequence[str]], Iterator[pa.RecordBatch]]
    all_columns: Callable[[], tuple[str, ...]] | None = None  # where ``columns`` comes from a sample of the rows
    digest: Callable[[], str] | None = None  # where there is no file whose bytes say what is read


@contextmanager
def reading(label: str) -> Iterator[None]:
    """Turns what pyarrow and the system raise while reading into a DataError that names the data."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"{label} cannot be read: {reason}. Is it complete, and what its name says?") from error


def open_memory(source: Any) -> Reader | None:
    """Opens a pyarrow table, pandas frame, mapping of columns or ``__arrow_c_stream__``; None for any other thing."""
    options = {"format": "memory", "reader": READER}
    if isinstance(source, pa.RecordBatch):
        source = pa.Table.from_batches([source])
    if isinstance(source, pa.Table):
        return _table(source, options)
    if isinstance(source, pa.RecordBatchReader):
        return Reader(tuple(source.schema.names), None, options, _once(source))
    if is_frame(source) or isinstance(source, Mapping):  # frames by column: one odd column must not spoil the others
        return _columns(source, options)
    if hasattr(source, "__arrow_c_stream__"):
        with reading("the table"):
            names = tuple(pa.RecordBatchReader.from_stream(source).schema.names)
        return Reader(names, None, options, lambda columns: _stream(pa.RecordBatchReader.from_stream(source), columns))
    return None


def _table(source: pa.Table, options: Mapping[str, str]) -> Reader:
    def read(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        kept = list(columns) or source.column_names[:1]
        yield from slices(batch.select(columns) for batch in source.select(kept).to_batches())

    return Reader(tuple(source.column_names), source.num_rows, options, read)


def strings(cells: Sequence[str | bytes | None]) -> pa.StringArray:
    """A string array of the cells. A lone surrogate becomes bytes that are no UTF-8, so its cell alone is skipped."""
    # by hand: pa.array refuses surrogates, and imports pandas (0.3 s) to see whether it was given a pandas object
    data = [cell.encode("utf-8", "surrogatepass") if isinstance(cell, str) else cell or b"" for cell in cells]
    offsets = np.zeros(len(data) + 1, dtype=np.int64)
    np.cumsum([len(cell) for cell in data], out=offsets[1:])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise DataError(f"{len(data)} texts of {int(offsets[-1]) >> 20} MiB together are too large for one batch.")
    valid = np.packbits([cell is not None for cell in cells], bitorder="little")
    buffers = [pa.py_buffer(valid), pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(b"".join(data))]
    return pa.Array.from_buffers(pa.string(), len(data), buffers)


def slices(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of at most ROWS rows and, down to one row, about BATCH_BYTES bytes."""
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS):
            yield from _halves(batch.slice(start, ROWS))


def _halves(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    # a slice of a dictionary or a view counts all its buffers, and would be halved down to single rows
    sized = sum(column.nbytes for column in batch.columns if column.type in _SIZED)
    if batch.num_rows <= 1 or sized <= BATCH_BYTES:
        yield batch
        return
    half = batch.num_rows // 2
    yield from _halves(batch.slice(0, half))
    yield from _halves(batch.slice(half))


def _stream(stream: pa.RecordBatchReader, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with reading("the table"), stream:
        yield from slices(batch.select(columns) for batch in stream)


def _once(stream: pa.RecordBatchReader) -> Callable[[Sequence[str]], Iterator[pa.RecordBatch]]:
    used = False

    def read(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        nonlocal used
        if used:
            raise DataError("The record batch reader is at its end: it can be read once. Pass a table or a file.")
        used = True
        yield from _stream(stream, columns)

    return read


def is_frame(source: Any) -> bool:
    """Whether it is a frame of pandas, which need not be installed."""
    return type(source).__module__.split(".")[0] == "pandas" and hasattr(source, "columns")


def _columns(source: Any, options: Mapping[str, str]) -> Reader:
    """A reader over a pandas frame or a mapping of columns; a column is converted when it is read."""
    names = list(source.columns if is_frame(source) else source)
    if odd := [name for name in names if not isinstance(name, str)]:
        raise DataError(f"Column names are text; {odd[0]!r} is {type(odd[0]).__name__}. Rename the columns.")
    lengths: dict[str, int] = {}
    for name in names:
        column = source[name] if isinstance(source, Mapping) else source
        if isinstance(column, str | bytes) or not hasattr(column, "__len__"):
            raise DataError(f"Column {name!r} is {type(column).__name__}, not a list of cells. Give one cell per row.")
        lengths[name] = len(column)
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name!r} has {count}" for name, count in lengths.items())
        raise DataError(f"Columns differ in length: {shown}. Give every column one cell per row.")

    def read(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        kept = list(dict.fromkeys(columns)) or names[:1]
        table = pa.Table.from_arrays([_converted(name, source[name]) for name in kept], names=kept)
        yield from slices(batch.select(columns) for batch in table.to_batches())

    return Reader(tuple(names), max(lengths.values(), default=0), options, read)


def _converted(name: str, column: Any) -> pa.ChunkedArray:
    if not isinstance(column, list | tuple) or any(type(cell) is not str and cell is not None for cell in column):
        try:
            array = pa.array(column, from_pandas=True)
            return array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])
        except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError, ValueError):
            pass  # mixed cells or a lone surrogate: cell by cell below, which says what is wrong and where
    absent = column.isna().tolist() if hasattr(column, "isna") else [_absent(cell) for cell in column]
    cells: list[str | bytes | None] = []
    for row, (given, missing) in enumerate(zip(column, absent, strict=True)):
        cell = os.fspath(given) if isinstance(given, os.PathLike) else given
        if not missing and not isinstance(cell, str | bytes):
            held = type(cell).__name__
            raise DataError(
                f"Column {name!r}: data row {row} (counted from 0) holds {held} among other types. Give all cells one type."
            )
        cells.append(None if missing else cell)
    parts = [strings(cells[start : start + ROWS]) for start in range(0, len(cells), ROWS)]
    return pa.chunked_array(parts, type=pa.string())


def _absent(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))
