"""A dataset: a file, a folder of pictures or a table in memory, read as record batches of bounded size, and its cells as payloads.

CSV and TSV need a header. An unquoted empty cell is null and ``""`` is an empty text; blank lines are passed over, also
in a file of one column. JSON Lines: a key that a line lacks is null. Files are UTF-8.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from cachestore.errors import ColumnNotFound, DataError, nearest
from cachestore.formats import COMPRESSED, TEXT, TYPED, open_file
from cachestore.keys import Fingerprint, Key, keys
from cachestore.manifest import MISSING, PRESENT, SKIPPED
from cachestore.picture_folders import open_folder
from cachestore.tables import Reader, open_memory, reading

MAX_CELL_BYTES = 16 << 20
KEPT_SKIPPED = 1000  # of the cells that are skipped, the first so many are told one by one
_SHOWN_COLUMNS = 30


@dataclass(frozen=True)
class SkippedCell:
    """A cell that is there and cannot be used; ``row`` counts data rows from 0, ``where`` is the dataset's label where known."""

    row: int
    column: str
    why: str
    where: str = ""


@dataclass(frozen=True)
class Cells:
    """One column of one batch: a payload per row or None, uint8 reasons (rows,), and the skipped cells."""

    payloads: Sequence[bytes | None]
    reasons: NDArray[np.uint8]
    skipped: list[SkippedCell]
    named: Mapping[Fingerprint, Sequence[Key | None]] = field(default_factory=dict)
    """keys that are known already, by fingerprint"""

    def keys(self, identity: Fingerprint) -> Sequence[Key | None]:
        """The key of every payload under a fingerprint, None where there is no payload."""
        known = self.named.get(identity)
        return keys(identity, self.payloads) if known is None else known


@final
class Dataset:
    """Rows of named columns in a fixed order; made by ``open_dataset``.

    A file is expected to stay as it was when it was opened: ``digest`` and every pass of ``batches`` end with a DataError when it
    changed, so that nothing joins two states of one file.
    """

    def __init__(self, label: str, path: Path | None, reader: Reader, seen: tuple[int, ...] | None) -> None:
        self.label = label
        self.path = path
        self.columns = reader.columns
        self.rows = reader.rows
        self.options = reader.options
        self._reader = reader
        self._seen = seen
        self._digest: str | None = None

    @property
    def folder(self) -> Path | None:
        """Where paths in its cells count from; None for a table in memory."""
        if self.path is None or self.options["format"] == "folder":
            return self.path
        return self.path.parent

    def digest(self) -> str | None:
        """xxh3_128 of the file's bytes in hexadecimal, read once, or of a folder's paths; None for a table in memory."""
        if self._reader.digest is not None:
            self._digest = self._reader.digest()
        elif self.path is not None and self._digest is None:
            digest = xxhash.xxh3_128()
            with reading(self.label), self.path.open("rb", buffering=0) as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            self._digest = digest.hexdigest()
        self._unchanged()
        return self._digest

    def require(self, columns: Iterable[str]) -> None:
        """Raises ColumnNotFound naming the columns that the data lacks, DataError for one it has twice."""
        wanted = list(dict.fromkeys(columns))
        lacking, there = self.lacking(wanted)
        if lacking:
            shown = ", ".join(map(repr, there[:_SHOWN_COLUMNS])) + (", …" if len(there) > _SHOWN_COLUMNS else "")
            hint = ", ".join(f"{name!r}{nearest(name, there).rstrip('?')}" for name in lacking)
            hint += "?" if "did you mean" in hint else "."
            if len(there) == 1 and (other := next((mark for mark in ";\t|" if mark in there[0]), None)):
                hint = f"{lacking[0]!r}; it seems to separate its columns by {other!r}, not by commas (tabs in a .tsv file)."
            noun = "column" if len(lacking) == 1 else "columns"
            raise ColumnNotFound(f"{self.label} has no {noun} {hint} Its columns: {shown}.")
        for name in wanted:
            if there.count(name) > 1:
                raise DataError(f"{self.label} has {there.count(name)} columns named {name!r}. Rename all but one.")

    def lacking(self, columns: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
        """Which of ``columns`` the data lacks, and the columns it has."""
        there = self.columns
        if self._reader.all_columns and any(name not in there for name in columns):
            there = self._reader.all_columns()
        return [name for name in columns if name not in there], there

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Exactly these columns in dataset order, at most 32,768 rows and about 64 MiB, or one larger row, at a time.

        CSV, TSV and JSON Lines give string columns whose bytes may not be UTF-8: read them with ``payloads`` or
        ``text_column``.
        Raises ColumnNotFound, and DataError naming file and line for rows that cannot be read.
        """
        self.require(columns)
        rows = 0
        for batch in self._reader.read(columns):
            rows += batch.num_rows
            yield batch
        self._unchanged()
        if rows == 0:
            raise DataError(f"{self.label} has no rows.")

    def _unchanged(self) -> None:
        if self._seen is not None and self.path is not None and _status(self.path) != self._seen:
            raise DataError(f"{self.label} changed while it was read. Run again; what was encoded is kept.")


def open_dataset(source: str | os.PathLike[str] | Any) -> Dataset:
    """Opens a file by its suffix, a folder of pictures, or a table in memory (pyarrow, pandas, ``__arrow_c_stream__``, a mapping of lists).

    A Dataset passes through.

    Raises DataError when it cannot be read, has no rows, or repeats a column name. ``batches`` finds bad rows, later.
    """
    if isinstance(source, Dataset):
        return source
    path = Path(source) if isinstance(source, str | os.PathLike) else None
    seen = None
    if path is not None:
        _check_encodable(path)
        label, is_folder = str(path), os.path.isdir(path)
        seen = None if is_folder else _status(path)  # a folder is what was listed when it was opened
        reader = open_folder(path) if is_folder else open_file(path)
    else:
        label, found = f"the {type(source).__name__}", open_memory(source)
        if found is None:
            held = type(source).__name__
            raise DataError(f"Data cannot be read from {held}. Give a path, a table, or a mapping of columns to lists.")
        reader = found
    named = [name for name in reader.columns if name]  # spreadsheets leave several names empty
    if len(set(named)) < len(named):
        repeated = next(name for name in named if named.count(name) > 1)
        raise DataError(f"{label} has {named.count(repeated)} columns named {repeated!r}. Rename all but one.")
    if not reader.columns:
        raise DataError(f"{label} has no columns.")
    if reader.rows == 0:
        raise DataError(f"{label} has no rows.")
    return Dataset(label, path, reader, seen)


def _check_encodable(path: Path) -> None:
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path.absolute())
        raise DataError(
            f"The path {shown!r} has no UTF-8 form here, so it could not be kept with what is built of it. Rename the file or its folder."
        ) from None


def stem(path: Path) -> str:
    """The name of a data file without the suffixes that say how to read it: ``reviews.2024`` of ``reviews.2024.csv.gz``."""
    name = path.name
    for suffixes in (COMPRESSED, TEXT | TYPED):
        suffix = Path(name).suffix
        if suffix.lower() in suffixes:
            name = name.removesuffix(suffix)
    return name


def payloads(batch: pa.RecordBatch, column: str, first_row: int) -> Cells:
    """The bytes of a text column's cells as given: no normalisation, nothing stripped.

    ``first_row`` is the dataset row of the batch's first.
    Integers and booleans count as their text. Raises DataError for a column of another type.
    """
    array = binary_cells(batch.column(column), column)
    present = _mask(array.is_valid())
    cells: list[bytes | None] = array.to_pylist()
    skipped: list[SkippedCell] = []
    for row in np.flatnonzero((_lengths(array) > MAX_CELL_BYTES) & present).tolist():
        size = len(cells[row] or b"") / (1 << 20)
        why = f"is {size:.1f} MiB, over the limit of {MAX_CELL_BYTES >> 20} MiB"
        skipped.append(SkippedCell(first_row + row, column, why))
        cells[row] = None
    if not _is_utf8(array):
        for row, why in _invalid(cells):
            skipped.append(SkippedCell(first_row + row, column, why))
            cells[row] = None
    reasons = np.where(present, np.uint8(PRESENT), np.uint8(MISSING))
    reasons[[cell.row - first_row for cell in skipped]] = SKIPPED
    return Cells(cells, reasons, sorted(skipped, key=lambda cell: cell.row))


def text_column(array: pa.Array | pa.ChunkedArray, column: str = "text") -> tuple[pa.StringArray, NDArray[np.bool_]]:
    """A column as strings, and a mask (rows,) of the cells that are not UTF-8, which are null among the strings.

    Texts, bytes, integers and booleans are taken. Raises DataError, naming ``column``, for other types.
    """
    if isinstance(array, pa.ChunkedArray):
        with reading(f"Column {column!r}"):
            array = array.combine_chunks()
    binary = binary_cells(array, column)
    invalid = np.zeros(len(binary), dtype=np.bool_)
    if not _is_utf8(binary):
        rows = [row for row, _ in _invalid(binary.to_pylist())]
        invalid[rows] = True
        bits = pa.py_buffer(np.packbits(invalid, bitorder="little"))
        flags = pa.Array.from_buffers(pa.bool_(), len(invalid), [None, bits])
        binary = pc.if_else(flags, pa.nulls(len(invalid), binary.type), binary)
    with reading(f"Column {column!r}"):
        return binary.cast(pa.string()), invalid


def _status(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None  # opening it says what is wrong
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def binary_cells(array: pa.Array, column: str) -> pa.Array:
    """The cells' bytes as a binary or large binary array. Raises DataError for a column of another type than ``payloads`` takes."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = binary_cells(array.dictionary, column).take(array.indices)
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        array = array.cast(pa.string())
    if pa.types.is_binary_view(array.type) or pa.types.is_string_view(array.type):
        return array.cast(pa.large_binary())
    if pa.types.is_large_string(array.type):
        return array.view(pa.large_binary())
    if pa.types.is_string(array.type):
        return array.view(pa.binary())
    if pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
        return array
    if pa.types.is_fixed_size_binary(array.type):
        return array.cast(pa.binary())
    raise DataError(f"Column {column!r} has type {kind}, not text. Name a text column, or write its values as text.")


def _lengths(array: pa.Array) -> NDArray[np.int64]:
    width = np.dtype(np.int64 if pa.types.is_large_binary(array.type) else np.int32)
    buffer = array.buffers()[1]
    if len(array) == 0 or buffer is None:
        return np.zeros(len(array), dtype=np.int64)
    offsets = np.frombuffer(buffer, dtype=width, count=len(array) + 1, offset=array.offset * width.itemsize)
    return np.diff(offsets).astype(np.int64)


def _mask(flags: pa.BooleanArray) -> NDArray[np.bool_]:
    # not to_numpy: it imports pandas where that is installed, 0.3 s
    values = flags.cast(pa.uint8())
    if len(values) == 0:
        return np.zeros(0, dtype=np.bool_)
    mask: NDArray[np.bool_] = np.frombuffer(values.buffers()[1], np.uint8, len(values), values.offset).astype(np.bool_)
    return mask


def _is_utf8(array: pa.Array) -> bool:
    try:
        array.cast(pa.large_string() if pa.types.is_large_binary(array.type) else pa.string())
    except pa.ArrowInvalid:
        return False
    return True


def _invalid(cells: Sequence[bytes | None]) -> Iterator[tuple[int, str]]:
    """(row, why) of the cells that are not UTF-8."""
    for row, cell in enumerate(cells):
        if cell is not None:
            try:
                cell.decode()
            except UnicodeDecodeError as error:
                yield row, f"is not UTF-8 at byte {error.start} (0x{cell[error.start]:02x})"
