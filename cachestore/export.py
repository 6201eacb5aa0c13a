"""Export: the vectors of a dataset, in its order, as a Parquet, Arrow stream, NumPy or safetensors file that needs no store.

A row without a vector is null in Parquet and Arrow; in the others it is zeros, which a safetensors file tells apart by a
tensor ``<column>.mask``. Parquet and Arrow may carry columns of the file that the dataset was built from, and have a column
``event_timestamp``. They and safetensors say in their metadata which manifest and encoders the vectors are of.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cachestore import manifest as manifests
from cachestore import outside
from cachestore.carried import TIMESTAMP, Carried, built_from, version_of
from cachestore.errors import DataError, MissingVector, UsageError, nearest
from cachestore.manifest import PRESENT, Manifest, ManifestColumn
from cachestore.shard import stored_dtype
from cachestore.store import Store

Dtype: TypeAlias = Literal["float32", "float16"]

_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
_BLOCK_BYTES: Final = 32 << 20
_BLOCK_ROWS: Final = 1 << 15


@dataclass(frozen=True)
class Export:
    """A written file. ``vectors``: by column, the rows that have one; ``carried``: the other columns in it."""

    path: Path
    manifest: str
    rows: int
    vectors: Mapping[str, int]
    carried: tuple[str, ...]
    undecodable: int
    """cells of carried columns that are not UTF-8, which are null"""
    nbytes: int


def export(
    store: Store,
    source: Manifest | str,
    path: str | PathLike[str],
    *,
    columns: Sequence[str] = (),
    carry: Sequence[str] = (),
    dtype: Dtype = "float32",
    timestamp_column: str | None = None,
) -> Export:
    """Write the vectors of ``columns``, or of all, to ``path``, whose suffix is the format; a file there is replaced.

    ``carry`` are columns of the data file that the version was built from, which must be as it was then; ``timestamp_column``
    is the one of them to take ``event_timestamp`` from, which is else the time of the version.
    Raises UsageError, DataError when that file changed or a value does not fit, and errors of the store. Then nothing is written.
    """
    path = Path(path)
    write = FORMATS.get(path.suffix.lower())
    if write is None:
        raise UsageError(
            f"{path}: {path.suffix or 'a name without suffix'} is no format to export{nearest(path.suffix, FORMATS) or '.'} "
            f"Choose one of {', '.join(FORMATS)}."
        )
    if dtype not in _DTYPES:
        raise UsageError(f"Vectors are exported as {' or '.join(_DTYPES)}, not {dtype!r}.")
    if path.resolve().is_relative_to(store.root.resolve()):
        raise UsageError(f"{path} lies in the store, which holds nothing but its own files. Name a place outside it.")
    manifest = store.manifest(source) if isinstance(source, str) else source
    chosen = [manifest.column(name) for name in dict.fromkeys(columns)] or list(manifest.columns)
    tables = write in (_parquet, _arrow)
    if not tables and (carry or timestamp_column):
        raise UsageError(
            f"{path.suffix} holds vectors only. Export to .parquet or .arrow to have other columns beside."
        )
    version = version_of(store, source, manifest)
    if version is not None and built_from(version[1], path):
        raise UsageError(f"{path} is the file that the vectors were built from. Name another to export to.")
    carried = Carried.of(version, manifest, carry, timestamp_column) if tables else None
    job = _Job(store, manifest, chosen, _DTYPES[dtype], carried)
    with outside.written(path) as file:
        write(file, job)
        nbytes = file.tell()
    try:
        outside.sync(path.resolve().parent)
    except OSError as error:
        raise outside.unwritable(path, error) from error
    return Export(
        path=path,
        manifest=manifest.id,
        rows=manifest.rows,
        vectors={column.name: job.counts[column.name] for column in chosen},
        carried=carried.names if carried else (),
        undecodable=carried.undecodable if carried else 0,
        nbytes=nbytes,
    )


class _Job:
    """What is to be written, as blocks of bounded size. ``counts``: by column, the vectors taken so far."""

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        columns: Sequence[ManifestColumn],
        dtype: np.dtype[Any],
        carried: Carried | None,
    ) -> None:
        self.store = store
        self.manifest = manifest
        self.columns = columns
        self.dtype = dtype
        self.carried = carried
        self.counts = dict.fromkeys((column.name for column in columns), 0)
        self.metadata = {
            "cachestore.manifest": manifest.id,
            "cachestore.columns": json.dumps(
                {
                    column.name: {"fingerprint": column.fingerprint.hex(), "dim": column.dim, "spec": column.spec}
                    for column in columns
                },
                sort_keys=True,
            ),
        }

    def block_rows(self, dim: int) -> int:
        """So many rows at once that ``dim`` float32 numbers of each stay near _BLOCK_BYTES."""
        return max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // (dim * 4)))

    def vectors(self, column: ManifestColumn) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
        """The vectors (n, dim) in blocks, zeros where a row has none, and the mask (n,) of rows with one."""
        taker = _Taker(self, column)
        at, step = 0, self.block_rows(column.dim)
        while at < self.manifest.rows:
            yield taker.take(min(step, self.manifest.rows - at))
            at += step


class _Taker:
    """Takes a column's vectors from first to last, as many at a time as are asked for."""

    def __init__(self, job: _Job, column: ManifestColumn) -> None:
        self._job = job
        self._column = column
        self._chunks = manifests.read_chunks(job.store.root, job.manifest, column.name)
        self._keys, self._reasons = np.empty(0, "V32"), np.empty(0, np.uint8)
        self._row = 0

    def take(self, rows: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The next ``rows`` vectors (rows, dim), zeros where there is none, and their mask (rows,)."""
        while len(self._keys) < rows:
            keys, reasons = next(self._chunks)
            self._keys = np.concatenate([self._keys, keys])
            self._reasons = np.concatenate([self._reasons, reasons])
        mask = self._reasons[:rows] == PRESENT
        wanted = self._keys[:rows][mask]
        column, store = self._column, self._job.store
        found = store.index.lookup(wanted.tolist())
        lost = np.flatnonzero(found.shards < 0)
        if len(lost):
            raise MissingVector(
                f"Data row {self._row + int(np.flatnonzero(mask)[lost[0]])} (counted from 0) of column {column.name!r} has no "
                f"vector in the store at {store.root}. Build the data set again to encode it; nothing was exported."
            )
        stored = np.empty((len(wanted), column.dim), stored_dtype(column.spec))
        store.gather(wanted, found, stored)
        with np.errstate(over="ignore"):
            taken = stored.astype(self._job.dtype)
        self._check(taken, mask)
        self._keys, self._reasons = self._keys[rows:], self._reasons[rows:]
        self._row += rows
        self._job.counts[column.name] += len(taken)
        if len(taken) == rows:
            return taken, mask
        vectors = np.zeros((rows, column.dim), self._job.dtype)
        vectors[mask] = taken
        return vectors, mask

    def _check(self, taken: NDArray[Any], mask: NDArray[np.bool_]) -> None:
        bad = np.flatnonzero(~np.isfinite(taken).all(axis=1))
        if len(bad):
            raise DataError(
                f"The vector of data row {self._row + int(np.flatnonzero(mask)[bad[0]])} (counted from 0) of column "
                f"{self._column.name!r} has a number beyond {self._job.dtype.name}. Export it with --dtype float32."
            )


def _npy(file: BinaryIO, job: _Job) -> None:
    if len(job.columns) > 1:
        names = ", ".join(column.name for column in job.columns)
        raise UsageError(f"A .npy file holds one column of vectors, and there are {names}. Choose one with --column.")
    (column,) = job.columns
    header = {
        "descr": np.lib.format.dtype_to_descr(job.dtype),
        "fortran_order": False,
        "shape": (job.manifest.rows, column.dim),
    }
    np.lib.format.write_array_header_1_0(file, header)
    for vectors, _ in job.vectors(column):
        file.write(vectors.data)


def _safetensors(file: BinaryIO, job: _Job) -> None:
    # all vectors before all masks, so that no mask of odd length puts vectors at an odd place
    rows, end = job.manifest.rows, 0
    tensors: dict[str, Any] = {"__metadata__": job.metadata}
    for suffix, name, itemsize in (
        ("", job.dtype.name.replace("float", "F"), job.dtype.itemsize),
        (".mask", "BOOL", 1),
    ):
        for column in job.columns:
            shape = [rows] if suffix else [rows, column.dim]
            begin, end = end, end + int(np.prod(shape)) * itemsize
            if column.name + suffix in tensors:
                raise UsageError(
                    f"A tensor {column.name + suffix!r} would stand twice in the file. Choose columns with --column."
                )
            tensors[column.name + suffix] = {"dtype": name, "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(tensors, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    file.write(struct.pack("<Q", len(header)) + header)
    masks: list[NDArray[np.bool_]] = []
    for column in job.columns:
        for vectors, mask in job.vectors(column):
            file.write(vectors.data)
            masks.append(mask)
    for mask in masks:
        file.write(mask.data)


def _parquet(file: BinaryIO, job: _Job) -> None:
    from pyarrow import parquet

    def opened(schema: pa.Schema) -> Any:
        # vectors repeat too seldom for a dictionary, which would be built in vain
        texts = [field.name for field in schema if not pa.types.is_list(field.type)]
        return parquet.ParquetWriter(file, schema, use_dictionary=texts)

    _tables(job, opened)


def _arrow(file: BinaryIO, job: _Job) -> None:
    # a stream, not a file: datasets.Dataset.from_file of Hugging Face reads streams
    _tables(job, lambda schema: pa.ipc.new_stream(file, schema))


def _tables(job: _Job, opened: Callable[[pa.Schema], Any]) -> None:
    """Write record batches: carried columns, vectors, timestamps."""
    carried = job.carried
    assert carried is not None  # of these formats
    names = [*carried.names, *(f"{column.name}_vector" for column in job.columns)]
    names += [TIMESTAMP] if carried.timestamped else []
    repeated = next((name for at, name in enumerate(names) if name in names[:at]), None)
    if repeated:
        raise UsageError(f"A column {repeated!r} would stand twice in the file. Leave --with {repeated} out.")
    takers = [_Taker(job, column) for column in job.columns]
    step = job.block_rows(sum(column.dim for column in job.columns))
    writer: Any = None
    try:
        with ExitStack() as stack:
            for rows, beside, stamps in carried.blocks(job.manifest.rows, step):
                arrays = [*beside, *(_lists(*taker.take(rows)) for taker in takers), *stamps]
                if writer is None:
                    fields = [pa.field(name, array.type) for name, array in zip(names, arrays, strict=True)]
                    schema = pa.schema(fields, metadata=job.metadata)
                    writer = stack.enter_context(opened(schema))
                writer.write_batch(pa.record_batch(arrays, schema=schema))
    except pa.ArrowException as error:
        raise DataError(f"A column to carry cannot be written: {error}. Leave it out of --with.") from error


def _lists(vectors: NDArray[Any], mask: NDArray[np.bool_]) -> pa.Array:
    """A list array (n,) of the vectors (n, dim), null where the mask is false."""
    rows, dim = vectors.shape
    values = vectors if mask.all() else vectors[mask]
    offsets = np.zeros(rows + 1, np.int32)
    np.cumsum(mask * np.int32(dim), out=offsets[1:])
    items = pa.float16() if vectors.dtype.itemsize == 2 else pa.float32()
    child = pa.Array.from_buffers(items, values.size, [None, pa.py_buffer(np.ascontiguousarray(values))])
    valid = None if mask.all() else pa.py_buffer(np.packbits(mask, bitorder="little"))
    return pa.Array.from_buffers(pa.list_(items), rows, [valid, pa.py_buffer(offsets)], children=[child])


FORMATS: Final[Mapping[str, Callable[[BinaryIO, _Job], None]]] = {
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".npy": _npy,
    ".safetensors": _safetensors,
}
