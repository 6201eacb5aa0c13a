"""A shard: one immutable Arrow file of vectors from one encoder, named by the SHA-256 of its bytes.

It carries its own keys and, in the schema metadata, the encoder's resolved spec, so the index can be rebuilt from shards alone.
``check`` is xxh3_64 over the 32 key bytes followed by the vector's bytes: it finds a rotten row without reading the whole file.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from cachestore import files, layout
from cachestore.errors import DamageError, StoreFormatError
from cachestore.keys import SIZE, Fingerprint, Json, Key, fingerprint

FOLDER = "shards"
SUFFIX = ".arrow"
FORMAT = 1
DTYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
_MEND = "Run `cachestore repair`: it keeps the sound rows and tells what to build again."
_CANNOT_SEND = {
    errno.EINVAL,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.ENOTSOCK,
}  # systems where a file is sent to sockets only
_BLOCK = 256 << 10  # bytes of rows at a time: what is checked stays in the processor's cache


@dataclass(frozen=True)
class Shard:
    """A mapped shard; its arrays are read-only views of the file.

    keys: (rows,) of 32-byte void; vectors: (rows, dim) float16 or float32; checks: (rows,) uint64.
    """

    name: str
    fingerprint: Fingerprint
    spec: Mapping[str, Json]
    keys: NDArray[np.void]
    vectors: NDArray[Any]
    checks: NDArray[np.uint64]
    nbytes: int

    def take(self, rows: NDArray[np.int64], expected: NDArray[np.void]) -> NDArray[Any]:
        """Copies of the vectors at ``rows``, (len(rows), dim).

        Raises DamageError when a row is not there, holds another key than ``expected``, or fails its check.
        """
        if len(rows) and int(rows.max()) >= len(self.keys):
            raise DamageError(
                f"The index points at row {int(rows.max())} of shard {self.name}, which has {len(self.keys)}."
            )
        if not np.array_equal(self.keys[rows], expected):
            raise DamageError(
                f"Shard {self.name} holds other keys than the index says. Run `cachestore repair` to fill a new index."
            )
        vectors = self.vectors[rows]
        bad = np.flatnonzero(_checks(expected, vectors) != self.checks[rows])
        if len(bad):
            raise DamageError(
                f"Row {int(rows[bad[0]])} of shard {self.name} fails its check: the file was damaged on disk. {_MEND}"
            )
        return vectors

    def faults(self) -> Faults:
        """Rows whose check is wrong, whose vector is not finite, or whose vector is zero; reads every byte of the rows."""
        rows, dim = self.vectors.shape
        bits = self.vectors.view(np.uint16 if self.vectors.dtype.itemsize == 2 else np.uint32)
        # without its sign bit, a number with this bit pattern or a higher one is an infinity or NaN; a tenth of isfinite's time
        limit = 0xF800 if self.vectors.dtype.itemsize == 2 else 0xFF000000
        block = max(1, _BLOCK // max(bits.itemsize * dim, 1))
        unsigned = np.empty((block, dim), bits.dtype)
        infinite, zero = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for start in range(0, rows, block):
            part = unsigned[: min(block, rows - start)]
            np.left_shift(bits[start : start + block], 1, out=part)
            if part.max(initial=0) >= limit:
                infinite.append(start + np.flatnonzero(part.max(axis=1) >= limit))
            if len(maybe := np.flatnonzero(part[:, :1].max(axis=1, initial=0) == 0)):
                zero.append(start + maybe[~part[maybe].any(axis=1)])
        return Faults(
            wrong=np.flatnonzero(_checks(self.keys, self.vectors) != self.checks),
            infinite=np.concatenate(infinite),
            zero=np.concatenate(zero),
        )


@dataclass(frozen=True)
class Faults:
    """Rows of a shard that are not as they should be; a zero vector may be meant."""

    wrong: NDArray[np.int64]
    infinite: NDArray[np.int64]
    zero: NDArray[np.int64]

    def sound(self, rows: int) -> NDArray[np.int64]:
        """The rows of ``rows`` whose check is right and whose vector is finite."""
        kept = np.ones(rows, np.bool_)
        kept[self.wrong] = kept[self.infinite] = False
        return np.flatnonzero(kept)


def stored_dtype(spec: Mapping[str, Json]) -> np.dtype[Any]:
    """The NumPy dtype in which vectors of a spec are stored, little-endian. Raises DamageError when it has none."""
    dtype = DTYPES.get(str(spec.get("dtype")))
    if dtype is None:
        raise DamageError(f"A spec says that its vectors are stored as {spec.get('dtype')!r}, which no store does.")
    return dtype


def write(
    root: Path, spec: Mapping[str, Json], keys: Sequence[Key] | NDArray[np.void], vectors: NDArray[Any]
) -> tuple[str, int]:
    """Write ``vectors`` (len(keys), dim), of the spec's stored dtype, as one shard; returns its name and size in bytes."""
    dtype = stored_dtype(spec)
    if len(vectors) != len(keys) or vectors.dtype != dtype:
        raise ValueError(
            f"{len(keys)} keys of dtype {dtype} cannot name vectors of shape {vectors.shape} and dtype {vectors.dtype}"
        )
    column = keys if isinstance(keys, np.ndarray) else np.frombuffer(b"".join(keys), f"V{SIZE}")
    data = serialise(spec, column, vectors)
    return files.write_once(root, FOLDER, data, SUFFIX), data.nbytes


def serialise(spec: Mapping[str, Json], keys: NDArray[np.void], vectors: NDArray[Any]) -> memoryview:
    """The bytes of a shard of keys (rows,) and vectors (rows, dim)."""
    rows, dim = vectors.shape
    contiguous = np.ascontiguousarray(vectors)
    schema = _schema(spec, dim)
    # from buffers: pa.array would import pandas where it is installed, 0.3 s
    values = pa.Array.from_buffers(schema.field("vector").type.value_type, rows * dim, [None, pa.py_buffer(contiguous)])
    columns = [
        pa.Array.from_buffers(pa.binary(SIZE), rows, [None, pa.py_buffer(np.ascontiguousarray(keys))]),
        pa.Array.from_buffers(pa.uint64(), rows, [None, pa.py_buffer(_checks(keys, contiguous))]),
        pa.Array.from_buffers(schema.field("vector").type, rows, [None], children=[values]),
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    return memoryview(sink.getvalue())


def open_shard(root: Path, name: str) -> Shard:
    """Map a shard. Raises DamageError when it is missing or torn, StoreFormatError when a newer version wrote it."""
    path = layout.content_path(root, FOLDER, name, SUFFIX)
    try:
        data = files.map_file(path)
        reader = pa.ipc.open_file(pa.py_buffer(data))
        metadata = reader.schema.metadata or {}
        _check_format(metadata, path)
        spec = json.loads(metadata[b"cachestore.spec"])
        dim = reader.schema.field("vector").type.list_size
        if reader.schema != _schema(spec, dim) or reader.num_record_batches != 1:
            raise ValueError("its columns are not those of a shard")
        if metadata[b"cachestore.fingerprint"].decode() != fingerprint(spec).hex():
            raise ValueError("its fingerprint is not that of its spec")
        return view(name, spec, dim, reader.get_batch(0), data.nbytes)
    except FileNotFoundError:
        raise DamageError(f"Shard {path} is gone. {_MEND}") from None
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise DamageError(f"Shard {path} cannot be read ({error}). {_MEND}") from error


def make_durable(root: Path, name: str) -> None:
    """Sync a shard that another process published, and the folders that lead to it."""
    files.make_durable(layout.content_path(root, FOLDER, name, SUFFIX))


def digest(root: Path, name: str) -> str:
    """SHA-256 of a shard's bytes in hexadecimal, which is its name if it is undamaged. Gives up the GIL meanwhile.

    Raises FileNotFoundError, DamageError for a file that the disk cannot read.
    """
    path = layout.content_path(root, FOLDER, name, SUFFIX)
    try:
        data = files.map_file(path)
    except ValueError:  # an empty file
        return sha256().hexdigest()
    _touch(path, data.nbytes)
    return sha256(data).hexdigest()


def sound(root: Path, name: str) -> bool:
    """Whether the bytes of a shard are those that its name is the SHA-256 of."""
    return digest(root, name) == name


def _touch(path: Path, nbytes: int) -> None:
    """Have the system read a file: what the disk cannot read is an error here, and would end the process in a mapping."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        with path.open("rb", buffering=0) as file:
            at = 0
            while at < nbytes and (sent := os.sendfile(nowhere, file.fileno(), at, nbytes - at)):
                at += sent  # no byte is copied
    except OSError as error:
        if error.errno in _CANNOT_SEND:
            return
        raise DamageError(f"Shard {path} cannot be read from the disk ({error.strerror}). {_MEND}") from error
    finally:
        os.close(nowhere)
    if at < nbytes:
        raise DamageError(f"Shard {path} was cut short while it was read. {_MEND}")


def view(name: str, spec: Mapping[str, Json], dim: int, batch: pa.RecordBatch, nbytes: int) -> Shard:
    """A shard of the arrays of a record batch, without a copy. Raises ValueError or ArrowInvalid when they do not fit each other."""
    batch.validate()  # Arrow aborts the process over lengths that cannot be
    key_column, vector_column, check_column = (batch.column(field) for field in ("key", "vector", "check"))
    rows = batch.num_rows  # one batch read whole: no array has an offset
    return Shard(
        name=name,
        fingerprint=fingerprint(spec),
        spec=spec,
        keys=np.frombuffer(key_column.buffers()[1], f"V{SIZE}", count=rows),
        vectors=np.frombuffer(vector_column.flatten().buffers()[1], stored_dtype(spec), count=rows * dim).reshape(
            rows, dim
        ),
        checks=np.frombuffer(check_column.buffers()[1], "<u8", count=rows),
        nbytes=nbytes,
    )


def _schema(spec: Mapping[str, Json], dim: int) -> pa.Schema:
    values = pa.float16() if spec["dtype"] == "float16" else pa.float32()
    return pa.schema(
        [
            pa.field("key", pa.binary(SIZE), nullable=False),
            # before the vectors, so that of a file cut short those rows can be checked that are there
            pa.field("check", pa.uint64(), nullable=False),
            pa.field("vector", pa.list_(pa.field("item", values, nullable=False), dim), nullable=False),
        ],
        metadata={
            "cachestore.format": str(FORMAT),
            "cachestore.fingerprint": fingerprint(spec).hex(),
            "cachestore.spec": json.dumps(spec, sort_keys=True, ensure_ascii=False),
        },
    )


def _check_format(metadata: Mapping[bytes, bytes], path: Path) -> None:
    number = metadata.get(b"cachestore.format", b"")
    if not number.isdigit():
        raise KeyError("no cachestore.format in its metadata")
    if int(number) > FORMAT:
        raise StoreFormatError(
            f"{path} has format {int(number)}; this version reads up to {FORMAT}. Upgrade cachestore."
        )


def _checks(keys: NDArray[np.void], vectors: NDArray[Any]) -> NDArray[np.uint64]:
    """xxh3_64 (rows,) of each key followed by its vector's bytes."""
    rows, nbytes = len(keys), vectors.shape[1] * vectors.itemsize
    key_bytes, vector_bytes = keys.view(np.uint8).reshape(rows, SIZE), vectors.view(np.uint8).reshape(rows, nbytes)
    width = SIZE + nbytes
    block = max(1, min(rows, _BLOCK // width))
    joined = np.empty((block, width), np.uint8)
    data = joined.reshape(-1).data
    places = [data[at : at + width] for at in range(0, block * width, width)]
    found: list[bytes] = []
    for start in range(0, rows, block):
        here = min(block, rows - start)
        joined[:here, :SIZE] = key_bytes[start : start + here]
        joined[:here, SIZE:] = vector_bytes[start : start + here]
        found += map(xxhash.xxh3_64_digest, places[:here])  # as bytes: numbers of Python would take a third longer
    return np.frombuffer(b"".join(found), ">u8").astype(np.uint64)
