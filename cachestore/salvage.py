"""Salvage: what is left of a damaged shard. Only rows whose check is right are taken, so where they lie may be guessed.

A shard is read as Arrow describes it, from its footer or from its beginning, and where that is damaged as one of the encoders that the
store knows would have laid it out. Whatever reading gives the most sound rows counts.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cachestore import shard
from cachestore.index import ShardEntry
from cachestore.keys import SIZE, Fingerprint, Json, fingerprint
from cachestore.shard import Shard

_READ = 1 << 20
_MOST = 4 << 30
_EDGE = 1 << 16  # the metadata of a shard lie within so many bytes of its beginning and of its end


@dataclass(frozen=True)
class Origin:
    """An encoder that the store knows, and the length of its vectors."""

    spec: Mapping[str, Json]
    dim: int


@dataclass(frozen=True)
class Salvaged:
    """Sound rows of one encoder: keys (n,), vectors (n, dim)."""

    spec: Mapping[str, Json]
    keys: NDArray[np.void]
    vectors: NDArray[Any]


def salvage(path: Path, known: Mapping[Fingerprint, Origin], entry: ShardEntry | None) -> Salvaged | None:
    """The sound rows of the file of a shard, None when there are none; ``entry`` is what the index knows of it.

    A vector that is not finite is not sound. Raises nothing for damage of any kind.
    """
    data = _read(path)
    best: Salvaged | None = None
    for found in _readings(data, known, entry):
        rows = found.faults().sound(len(found.keys))
        if len(rows) > (len(best.keys) if best else 0):
            best = Salvaged(found.spec, found.keys[rows], found.vectors[rows])
        if len(rows) == len(found.keys):
            break
    return best


def _read(path: Path) -> bytes:
    """The bytes of a file, zeros where the disk cannot read it; nothing for what is no file."""
    try:
        if not path.is_file() or path.is_symlink() or path.stat().st_size > _MOST:
            return b""
        parts = []
        with path.open("rb", buffering=0) as file:
            for at in range(0, path.stat().st_size, _READ):
                try:
                    file.seek(at)
                    part = file.read(_READ) or b""
                except OSError:
                    part = b""
                parts.append(part.ljust(_READ, b"\0"))
        return b"".join(parts)[: path.stat().st_size]
    except OSError:
        return b""


def _readings(data: bytes, known: Mapping[Fingerprint, Origin], entry: ShardEntry | None) -> Iterator[Shard]:
    """The rows of a shard, read in every way there is."""
    origins = _origins(data, known, entry)
    for open_reader in (_from_footer, _from_beginning):
        try:
            schema, batch = open_reader(data)
            column = schema.field("vector").type
            recorded = _recorded(schema.metadata or {}, column.list_size)
        except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, AttributeError, struct.error, MemoryError):
            continue
        for origin in ([recorded] if recorded else []) + origins:
            dtype = shard.stored_dtype(origin.spec)
            if (origin.dim, dtype.itemsize * 8) == (column.list_size, getattr(column.value_type, "bit_width", 0)):
                yield from _tried(partial(shard.view, "", origin.spec, origin.dim, batch, len(data)))
    for origin in origins:
        for rows in _row_counts(len(data), origin, entry):
            yield from _tried(partial(_laid_out, data, origin, rows))


def _tried(read: Callable[[], Shard]) -> Iterator[Shard]:
    try:
        yield read()
    except (pa.ArrowException, ValueError, KeyError, TypeError, AttributeError, MemoryError):
        return


def _from_footer(data: bytes) -> tuple[pa.Schema, pa.RecordBatch]:
    reader = pa.ipc.open_file(pa.py_buffer(data))
    return reader.schema, reader.get_batch(0)


def _from_beginning(data: bytes) -> tuple[pa.Schema, pa.RecordBatch]:
    """As a stream, after the eight bytes of the file's magic; what is missing at the end counts as zeros, which no check fits."""
    at = 8 + _message(data, 8)[0]
    length, body = _message(data, at)
    if not 0 <= body <= _MOST:
        raise ValueError("it claims to be larger than a shard can be")
    reader = pa.ipc.open_stream(pa.py_buffer(data[8:].ljust(at + length + body - 8 + 8, b"\0")))
    return reader.schema, reader.read_next_batch()


def _message(data: bytes, at: int) -> tuple[int, int]:
    """Of an encapsulated Arrow message: bytes of its prefix and metadata, and the length of its body, a field of the flatbuffer."""
    mark, size = struct.unpack_from("<Ii", data, at)
    if mark != 0xFFFFFFFF or not 0 < size < _EDGE:
        raise ValueError("it is no Arrow message")
    start = at + 8
    root = start + struct.unpack_from("<I", data, start)[0]
    table = root - struct.unpack_from("<i", data, root)[0]
    field = struct.unpack_from("<H", data, table + 4 + 2 * 3)[0]
    return 8 + size, struct.unpack_from("<q", data, root + field)[0] if field else 0


def _recorded(metadata: Mapping[bytes, bytes], dim: int) -> Origin | None:
    """The encoder that a schema names, if its spec is that of its fingerprint."""
    try:
        spec = json.loads(metadata[b"cachestore.spec"])
        if fingerprint(spec).hex() == metadata[b"cachestore.fingerprint"].decode() and spec["dtype"] in shard.DTYPES:
            return Origin(spec, dim)
    except (KeyError, ValueError, TypeError):
        pass
    return None


def _origins(data: bytes, known: Mapping[Fingerprint, Origin], entry: ShardEntry | None) -> list[Origin]:
    """Encoders it may be of: the one that the index says, else those whose fingerprint stands in its metadata."""
    if entry is not None and entry.fingerprint in known:
        return [known[entry.fingerprint]]
    edges = data[:_EDGE] + data[-_EDGE:]
    return [origin for identity, origin in known.items() if identity.hex().encode() in edges]


def _row_counts(nbytes: int, origin: Origin, entry: ShardEntry | None) -> list[int]:
    """How many rows it may have."""
    if entry is not None:
        return [entry.rows]
    width = SIZE + 8 + origin.dim * shard.stored_dtype(origin.spec).itemsize
    overhead = len(_serialised(origin, 0))
    guess = max(0, nbytes - overhead) // width
    return list(range(max(1, guess - 2), guess + 3))


def _laid_out(data: bytes, origin: Origin, rows: int) -> Shard:
    """The rows at the places where a shard of that encoder and size has them."""
    template = _serialised(origin, rows)
    base = pa.py_buffer(template)
    batch = pa.ipc.open_file(base).get_batch(0)
    padded = pa.py_buffer(data[: len(template)].ljust(len(template), b"\0"))
    vectors = batch.column("vector").flatten()

    def moved(buffer: pa.Buffer) -> pa.Buffer:
        return padded.slice(buffer.address - base.address, buffer.size)

    keys, values, checks = (array.buffers()[1] for array in (batch.column("key"), vectors, batch.column("check")))
    dtype = shard.stored_dtype(origin.spec)
    return Shard(
        name="",
        fingerprint=fingerprint(origin.spec),
        spec=origin.spec,
        keys=np.frombuffer(moved(keys), f"V{SIZE}", count=rows),
        vectors=np.frombuffer(moved(values), dtype, count=rows * origin.dim).reshape(rows, origin.dim),
        checks=np.frombuffer(moved(checks), "<u8", count=rows),
        nbytes=len(data),
    )


def _serialised(origin: Origin, rows: int) -> memoryview:
    if rows * origin.dim * 4 > _MOST:
        raise ValueError("it claims more rows than a shard can have")
    vectors = np.zeros((rows, origin.dim), shard.stored_dtype(origin.spec))
    return shard.serialise(origin.spec, np.zeros(rows, f"V{SIZE}"), vectors)
