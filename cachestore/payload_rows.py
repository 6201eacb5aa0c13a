"""Vectors in a file that are found by the key of their text: rows of a .npy array, or of a temporary copy.

Memory holds some 24 bytes per row, whatever the dimension. Files are read, not mapped: one that is cut while it is mapped ends
the process.
"""

from __future__ import annotations

import itertools
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import numpy as np
from numpy.typing import NDArray

from cachestore.errors import DataError, UsageError
from cachestore.keys import SIZE, Key

_PAIRS_BYTES: Final = 16 << 20
_TURNED_BYTES: Final = 64 << 20


class VectorFile:
    """An open file of ``rows`` vectors of one length and dtype; a context manager that closes it."""

    def __init__(self, file: BinaryIO, label: str, dim: int, dtype: np.dtype[Any], rows: int, offset: int) -> None:
        self.label = label
        self.dim = dim
        self.dtype = dtype
        self.rows = rows
        self._file = file
        self._offset = offset
        self._seen = _seen(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The vectors (len(rows), dim) at those rows. Raises DataError when the file changed since it was opened."""
        out = bytearray()
        for first, count in _runs(rows):
            place, end = self._place(first), self._place(first + count)
            while place < end and (block := os.pread(self._file.fileno(), end - place, place)):
                out += block
                place += len(block)
        if _seen(self._file) != self._seen or len(out) < len(rows) * self.dim * self.dtype.itemsize:
            raise DataError(f"{self.label} changed while it was read. Run again; what was imported is kept.")
        return np.frombuffer(out, self.dtype).reshape(len(rows), self.dim)

    def write(self, rows: NDArray[np.int64], vectors: NDArray[Any]) -> None:
        """Put vectors (len(rows), dim) of the dtype at those rows; the file has holes where none are put."""
        at = 0
        try:
            for first, count in _runs(rows):
                data, place = memoryview(vectors[at : at + count].tobytes()), self._place(first)
                while data:
                    written = os.pwrite(self._file.fileno(), data, place)
                    data, place = data[written:], place + written
                at += count
        except OSError as error:
            raise UsageError(
                f"Vectors are copied to {tempfile.gettempdir()} on their way, and that cannot be written ({error.strerror}). "
                "Set TMPDIR to a folder with room for them."
            ) from error
        self._seen = _seen(self._file)

    def _place(self, row: int) -> int:
        return self._offset + row * self.dim * self.dtype.itemsize


def open_npy(path: Path) -> VectorFile:
    """The vectors of a .npy array (rows, dim) of floats; of one in Fortran order a temporary copy. Raises DataError for anything else."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait
            raise DataError(f"{path} is not a regular file. Name a .npy file.")
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {error.strerror}.") from None
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, by_columns, dtype = read(file)
        offset, size = file.tell(), os.fstat(file.fileno()).st_size
    except (ValueError, KeyError, EOFError) as error:
        file.close()
        raise DataError(
            f"{path} is no .npy file of numbers ({' '.join(str(error).split())}). Write it with numpy.save."
        ) from None
    fault = ""
    if dtype.kind != "f" or dtype.itemsize > 8:
        fault = f"holds {dtype}, and vectors are float16, float32 or float64"
    elif len(shape) != 2 or shape[1] < 1:
        fault = f"has the shape {shape}, and vectors are (rows, dim)"
    elif size < offset + shape[0] * shape[1] * dtype.itemsize:
        fault = "is cut short"
    if fault:
        file.close()
        raise DataError(f"{path} {fault}.")
    if by_columns and min(shape) > 1:
        with file:
            return _by_rows(file, str(path), shape[0], shape[1], dtype, offset)
    return VectorFile(file, str(path), shape[1], dtype, shape[0], offset)


def _by_rows(file: BinaryIO, label: str, rows: int, dim: int, dtype: np.dtype[Any], offset: int) -> VectorFile:
    """A copy, row by row, of an array (rows, dim) that lies column by column in a file. Raises DataError when that changes."""
    seen, size = _seen(file), dtype.itemsize
    copy = temporary(dim, dtype, rows, label)
    step = max(1, _TURNED_BYTES // (dim * size))
    try:
        for first in range(0, rows, step):
            block = np.empty((min(step, rows - first), dim), dtype)
            for column in range(dim):
                part = os.pread(file.fileno(), len(block) * size, offset + (column * rows + first) * size)
                if len(part) < len(block) * size:
                    raise DataError(f"{label} changed while it was read. Run again; nothing was imported.")
                block[:, column] = np.frombuffer(part, dtype)
            copy.write(np.arange(first, first + len(block)), block)
        if _seen(file) != seen:
            raise DataError(f"{label} changed while it was read. Run again; nothing was imported.")
    except BaseException:
        with copy:
            raise
    return copy


def temporary(dim: int, dtype: np.dtype[Any], rows: int = 0, label: str = "the temporary copy") -> VectorFile:
    """A file to write vectors to, without a name, gone when it is closed."""
    try:
        file: Any = tempfile.TemporaryFile()  # noqa: SIM115  # closed by the VectorFile
    except OSError as error:
        raise UsageError(
            f"No temporary file can be made ({error.strerror}). Set TMPDIR to a folder with room."
        ) from error
    return VectorFile(file, label, dim, dtype, rows, 0)


class PayloadRows:
    """Which row of a file holds the vector of a key. Rows are added, then ``sort`` is called once, then they are found."""

    def __init__(self, file: VectorFile, dtype: np.dtype[Any]) -> None:
        self.file = file
        self.dtype = dtype
        self._added: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []
        self._high = self._low = np.empty(0, np.uint64)
        self._rows = np.empty(0, np.int64)

    def add(self, keys: Sequence[Key], rows: NDArray[np.int64]) -> None:
        """Row ``rows[i]`` of the file holds the vector of ``keys[i]``."""
        # half a SHA-256 still tells any two texts apart
        halves = np.frombuffer(b"".join(keys), ">u8").reshape(-1, SIZE // 8)[:, :2].astype(np.uint64)
        self._added.append((halves, rows.astype(np.int64)))

    def sort(self) -> None:
        """Make what was added findable."""
        halves = np.concatenate([np.empty((0, 2), np.uint64), *(halves for halves, _ in self._added)])
        rows = np.concatenate([np.empty(0, np.int64), *(rows for _, rows in self._added)])
        self._added = []
        order = np.lexsort((rows, halves[:, 1], halves[:, 0]))
        self._high, self._low, self._rows = halves[order, 0], halves[order, 1], rows[order]

    def find(self, keys: Sequence[Key]) -> NDArray[Any]:
        """The vectors (len(keys), dim) of keys that were added."""
        halves = np.frombuffer(b"".join(keys), ">u8").reshape(-1, SIZE // 8).astype(np.uint64)
        places = np.searchsorted(self._high, halves[:, 0])
        while True:
            inside = places < len(self._high)
            at = np.where(inside, places, 0)
            alike = inside & (self._high[at] == halves[:, 0]) if len(self._high) else inside
            later = alike & (self._low[at] != halves[:, 1]) if len(self._high) else inside
            if not later.any():
                break
            places = places + later
        if not alike.all():
            raise DataError("The texts changed while they were read. Run again; what was imported is kept.")
        return self.file.read(self._rows[places]).astype(self.dtype)

    def contradiction(self) -> tuple[int, int] | None:
        """Two rows of one key whose vectors differ, if there are any; the first row of a key counts."""
        if not len(self._rows):
            return None
        begins = np.ones(len(self._rows), np.bool_)
        begins[1:] = (self._high[1:] != self._high[:-1]) | (self._low[1:] != self._low[:-1])
        first = np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0))
        repeats = np.flatnonzero(~begins)
        step = max(1, _PAIRS_BYTES // (self.file.dim * self.file.dtype.itemsize))
        for start in range(0, len(repeats), step):
            part = repeats[start : start + step]
            one, other = (self.file.read(self._rows[at]).astype(self.dtype) for at in (first[part], part))
            differing = np.flatnonzero(~same(one, other))
            if len(differing):
                at = part[differing[0]]
                return int(self._rows[first[at]]), int(self._rows[at])
        return None


def same(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows (n,) of two arrays (n, dim) of a dtype are equal up to one step of its rounding."""
    # a value between two numbers of the dtype may have been rounded to either
    larger = np.maximum(np.abs(one), np.abs(other))
    step = larger - np.nextafter(larger, larger.dtype.type(0))
    equal: NDArray[np.bool_] = (np.abs(one.astype(np.float64) - other) <= step).all(axis=1)
    return equal


def _runs(rows: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Neighbouring rows as (first, how many)."""
    cuts = np.flatnonzero(np.diff(rows) != 1) + 1
    bounds = [0, *cuts.tolist(), len(rows)]
    for start, end in itertools.pairwise(bounds):
        if end > start:
            yield int(rows[start]), end - start


def _seen(file: BinaryIO) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
