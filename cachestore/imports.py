"""Import: vectors made elsewhere become rows of the store, under a spec that their owner declares.

All rows are checked before anything is written; then they go the way of every build, whose encoder looks a text's vector up
where it was read. So an import is recognised, named and resumed as a build is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cachestore import dataset as datasets
from cachestore import locks
from cachestore.build import run
from cachestore.built import Build, Progress
from cachestore.dataset import Dataset
from cachestore.encoders import imported
from cachestore.errors import DataError, UsageError, nearest
from cachestore.header import LOCK_SECONDS
from cachestore.index import Locations
from cachestore.keys import SIZE, Fingerprint, Json, Key, fingerprint, keys
from cachestore.payload_rows import PayloadRows, VectorFile, open_npy, same, temporary
from cachestore.shard import stored_dtype
from cachestore.store import Store

TABLES: Final = (".parquet", ".arrow", ".ipc", ".feather")
_BLOCK_BYTES: Final = 32 << 20
_MOST_LOST: Final = 1e-2
"""Of a vector's length, how long what its rounding to the stored dtype takes away may be; in float16's range it is at most 0.0005."""


def import_vectors(
    store: Store,
    vectors: str | PathLike[str],
    spec: str | PathLike[str] | Mapping[str, Any],
    *,
    data: Any = None,
    text_column: str = "text",
    vector_column: str = "vector",
    name: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Build:
    """Store vectors from elsewhere as those of their texts, and point ``name`` at them in their order.

    ``vectors`` is a Parquet, Arrow or Feather file with a column of texts and one of vectors, or a .npy array (rows, dim) whose
    rows are those of ``data`` (anything that ``build`` takes). ``spec`` is a mapping, or the path of a YAML file: ``dim``,
    perhaps ``dtype`` (float16 unless said), and whatever tells these vectors from others.

    Raises ConfigError for the spec; DataError naming the row for a vector that has another length, is missing, not finite, beyond
    the dtype or lost to its rounding, for one of nothing but zeros whose text has words, and for a text with two different
    vectors, in the data or in the store. Nothing is written then.
    StoreLocked while another import goes on for longer than half a minute; ``tell`` is called once when this waits for one.
    """
    declared = imported.declare(spec if isinstance(spec, Mapping) else imported.read_declared(Path(spec)))
    dataset, array = _opened(Path(vectors), data, text_column, vector_column)
    dim = declared["dim"]
    assert isinstance(dim, int)
    with (
        array or temporary(dim, stored_dtype(declared)) as file,
        store.writing(),
        # one at a time: of two that disagree, the second must find what the first stored
        locks.held(store.root, "imports", exclusive=True, timeout=LOCK_SECONDS, tell=tell),
    ):
        checking = _Checking(store, dataset, declared, dim, file, text_column, None if array else vector_column)
        encoder = _Lookup(declared, dim, fingerprint(declared), checking.read())
        return run(store, dataset, {text_column: encoder}, name=name, progress=progress)


@dataclass(frozen=True)
class _Lookup:
    """An Encoder that finds the vectors of payloads among imported rows."""

    spec: Mapping[str, Json]
    dim: int
    identity: Fingerprint
    rows: PayloadRows

    def encode(self, payloads: Sequence[bytes]) -> NDArray[Any]:
        return self.rows.find([key for key in keys(self.identity, payloads) if key is not None])


def _opened(path: Path, data: Any, text_column: str, vector_column: str) -> tuple[Dataset, VectorFile | None]:
    """The texts, and the array where the vectors are in one."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        if data is None:
            raise UsageError(
                f"{path} holds vectors alone. Name the file of their texts as well: --data texts.csv --column text"
            )
        dataset = datasets.open_dataset(data)
        dataset.require([text_column])
        return dataset, open_npy(path)
    if suffix not in TABLES:
        raise UsageError(
            f"{path}: {path.suffix or 'a name without suffix'} is no format to import{nearest(suffix, (*TABLES, '.npy')) or '.'} "
            f"Choose one of {', '.join((*TABLES, '.npy'))}."
        )
    if data is not None:
        raise UsageError(
            f"{path} holds texts beside its vectors: name their column with --text-column and leave --data out."
        )
    dataset = datasets.open_dataset(path)
    dataset.require([text_column, vector_column])
    return dataset, None


@dataclass(frozen=True)
class _Checking:
    """The one pass over texts and vectors that finds every fault. ``vector_column`` is None where ``file`` is an array of theirs."""

    store: Store
    dataset: Dataset
    spec: Mapping[str, Json]
    dim: int
    file: VectorFile
    text_column: str
    vector_column: str | None

    def read(self) -> PayloadRows:
        """The rows that the store lacks, to be found by their keys."""
        identity, found, row = fingerprint(self.spec), PayloadRows(self.file, stored_dtype(self.spec)), 0
        self.agree(self.dataset.rows)
        step = max(1, _BLOCK_BYTES // (self.dim * 8))
        names = [self.text_column, *([self.vector_column] if self.vector_column else [])]
        for batch in self.dataset.batches(list(dict.fromkeys(names))):
            for start in range(0, batch.num_rows, step):
                part = batch.slice(start, step)
                if self.vector_column or row + part.num_rows <= self.file.rows:  # else only count, and say how many
                    cells = datasets.payloads(part, self.text_column, row)
                    self.take(part, cells.payloads, keys(identity, cells.payloads), row, found)
                row += part.num_rows
        self.agree(row)
        found.sort()
        rows = found.contradiction()
        if rows:
            raise DataError(
                f"{self.dataset.label}: data rows {rows[0]} and {rows[1]} (counted from 0) hold the same text and different "
                "vectors. Keep one of them; nothing was imported."
            )
        return found

    def agree(self, rows: int | None) -> None:
        """Raises DataError when an array has other vectors than those of ``rows`` texts; None is not known yet."""
        if self.vector_column is not None:
            return
        if self.file.dim != self.dim:
            raise DataError(
                f"{self.file.label} has vectors of {self.file.dim} numbers, and the spec says dim: {self.dim}. Nothing was imported."
            )
        if rows is not None and rows != self.file.rows:
            raise DataError(
                f"{self.file.label} has {self.file.rows} rows and {self.dataset.label} has {rows}. "
                "Give one vector per text, in their order; nothing was imported."
            )

    def take(
        self,
        part: pa.RecordBatch,
        payloads: Sequence[bytes | None],
        names: Sequence[Key | None],
        row: int,
        found: PayloadRows,
    ) -> None:
        """Check the rows of a batch whose first is data row ``row``, and add those whose key is new to ``found``."""
        there = np.flatnonzero([name is not None for name in names])
        wanted = [name for name in names if name is not None]
        column = None if self.vector_column is None else part.column(self.vector_column)
        given = self.file.read(row + there) if column is None else self.of_column(column, there, row)
        with np.errstate(over="ignore"):
            vectors = given.astype(found.dtype)
        for at, why in _faults(given, vectors, [payloads[at] or b"" for at in there.tolist()]):
            raise self.fault(row + int(there[at]), why)
        places = self.store.index.lookup(wanted)
        self.compare(wanted, places, row + there, vectors)
        new = np.flatnonzero(places.shards < 0)
        if column is not None:
            self.file.write(row + there[new], vectors[new])
        found.add([wanted[at] for at in new.tolist()], row + there[new])

    def compare(self, wanted: Sequence[Key], places: Locations, rows: NDArray[np.int64], vectors: NDArray[Any]) -> None:
        """Raises DataError where the store holds another vector under one of the keys."""
        known = np.flatnonzero(places.shards >= 0)
        stored = np.empty((len(known), self.dim), vectors.dtype)
        names = np.frombuffer(b"".join([wanted[at] for at in known.tolist()]), f"V{SIZE}")
        self.store.gather(names, Locations(places.shards[known], places.rows[known]), stored)
        other = np.flatnonzero(~same(stored, vectors[known]))
        if len(other):
            raise DataError(
                f"{self.dataset.label}: the text of data row {int(rows[known[other[0]]])} (counted from 0) is stored under this "
                "spec with another vector, which is kept; nothing was imported. If these vectors come from another model or "
                "other settings, say so in the spec: that makes them vectors of their own."
            )

    def of_column(self, column: pa.Array, there: NDArray[np.int64], row: int) -> NDArray[Any]:
        """The vectors (len(there), dim) of those rows of a list column."""
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        kind = column.type
        lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        if not any(test(kind) for test in lists) or not pa.types.is_floating(kind.value_type):
            raise DataError(
                f"{self.dataset.label}: column {self.vector_column!r} has type {kind}. Vectors are lists of float16, float32 or float64."
            )
        if len(there) < len(column):
            indices = pa.Array.from_buffers(pa.int64(), len(there), [None, pa.py_buffer(there.astype(np.int64))])
            column = column.take(indices)  # not pa.array: it imports pandas
        lengths = pc.fill_null(pc.list_value_length(column), -1).cast(pa.int32())
        counts = np.frombuffer(lengths.buffers()[1], np.int32, len(lengths)) if len(there) else np.empty(0, np.int32)
        wrong = np.flatnonzero(counts != self.dim)
        if len(wrong):
            length = lengths[int(wrong[0])].as_py()
            why = "has a text and no vector" if length < 0 else f"has {length} numbers; the spec says dim: {self.dim}"
            raise self.fault(row + int(there[wrong[0]]), why)
        values = column.flatten()
        if values.null_count:
            first = pc.index(values.is_null(), True).as_py()
            raise self.fault(row + int(there[first // self.dim]), "holds a null among its numbers")
        dtype = np.dtype(f"<f{kind.value_type.bit_width // 8}")
        buffer = values.buffers()[1]
        flat = np.frombuffer(buffer, dtype)[values.offset :][: len(values)] if len(values) else np.empty(0, dtype)
        return flat.reshape(len(there), self.dim)

    def fault(self, row: int, why: str) -> DataError:
        where = (
            self.file.label if self.vector_column is None else f"{self.dataset.label}, column {self.vector_column!r}"
        )
        return DataError(f"{where}: the vector of data row {row} (counted from 0) {why}. Nothing was imported.")


def _faults(given: NDArray[Any], stored: NDArray[Any], payloads: Sequence[bytes]) -> Iterator[tuple[int, str]]:
    """Rows of ``given`` (n, dim) that ``stored``, the same in the stored dtype, does not tell truthfully, and why."""
    dtype = stored.dtype.name
    otherwise = "set dtype: float32 in the spec" if dtype == "float16" else "scale all vectors by a number"
    yield from ((int(at), "holds NaN or infinity") for at in np.flatnonzero(~np.isfinite(given).all(axis=1)))
    beyond = np.flatnonzero(~np.isfinite(stored).all(axis=1))
    yield from ((int(at), f"has a number beyond {dtype}; {otherwise}") for at in beyond)
    largest = np.abs(given).max(axis=1).astype(np.float64)
    for at in np.flatnonzero(largest == 0).tolist():
        if any(letter.isalnum() for letter in payloads[at].decode()):
            yield at, "is zero, as of a request that failed; leave its row out, or make it again"
    if given.dtype == stored.dtype:
        return
    scale = np.where(largest == 0, 1.0, largest)[:, None]  # squares of small numbers would vanish
    length = np.linalg.norm(given / scale, axis=1)
    lost = np.linalg.norm((given - stored.astype(np.float64)) / scale, axis=1)
    for at in np.flatnonzero(lost > _MOST_LOST * length).tolist():
        rest = f"loses {lost[at] / length[at]:.0%} of its length" if stored[at].any() else "is zero"
        yield at, f"{rest} in {dtype}; {otherwise}"
