"""A manifest: one immutable version of a dataset's features, and the names that lead to manifests.

A manifest lists, per cached column, the key of every row in dataset order, in chunks of at most CHUNK_ROWS rows that later versions
share. A row without a key carries its reason. Ids are SHA-256 of logical content, so the same rows and encoders give the same id
however the build went. A name is an append-only log of manifests with their provenance.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cachestore import files, layout
from cachestore.errors import DamageError, ManifestNotFound, StoreFormatError, UsageError, nearest
from cachestore.keys import SIZE, Fingerprint, Json, canonical, fingerprint
from cachestore.sealed import seal, unseal

PRESENT, MISSING, SKIPPED, FORGOTTEN = 0, 1, 2, 3

FORMAT = 1
CHUNK_ROWS = 1 << 18
_CHUNKS, _MANIFESTS, _NAMES = "chunks", "manifests", "names"


Chunk: TypeAlias = tuple[list[NDArray[np.void]], list[NDArray[np.uint8]]]
"""By column the keys (rows,), zeroed where there is none, and the reasons (rows,)."""


@dataclass(frozen=True)
class ManifestColumn:
    """A cached column: its name, and the encoder its vectors come from."""

    name: str
    fingerprint: Fingerprint
    spec: Mapping[str, Json]
    dim: int


@dataclass(frozen=True)
class Manifest:
    """One version of a dataset's features; ``chunks`` are (id, rows) in dataset order.

    ``held``: chunks in memory by id, of a manifest that was built on a store open for reading and so is not in it.
    """

    id: str
    rows: int
    columns: tuple[ManifestColumn, ...]
    chunks: tuple[tuple[str, int], ...]
    held: Mapping[str, Chunk] = field(default_factory=dict, compare=False, repr=False)

    def column(self, name: str) -> ManifestColumn:
        """The cached column of that name. Raises UsageError naming the nearest."""
        for column in self.columns:
            if column.name == name:
                return column
        names = [column.name for column in self.columns]
        raise UsageError(
            f"Manifest {self.id[:12]} caches no column {name!r}{nearest(name, names) or '.'} It has: {', '.join(names)}."
        )


@dataclass(frozen=True)
class Version:
    """One line of a name's log: which manifest, when, from what, and what the build did."""

    version: int
    manifest: str
    parent: str | None
    created: str
    provenance: Mapping[str, Json]


def write_chunk(
    root: Path, columns: Sequence[str], keys: Sequence[NDArray[np.void]], reasons: Sequence[NDArray[np.uint8]]
) -> str:
    """Write one chunk: per column the keys (rows,), zeroed where there is none, and the reasons (rows,). Returns its id."""
    rows = len(reasons[0])
    identity = chunk_id(columns, keys, reasons)
    arrays: list[pa.Array] = []
    for key, reason in zip(keys, reasons, strict=True):
        valid = np.packbits(reason == PRESENT, bitorder="little")
        arrays.append(
            pa.Array.from_buffers(pa.binary(SIZE), rows, [pa.py_buffer(valid), pa.py_buffer(np.ascontiguousarray(key))])
        )
        arrays.append(pa.Array.from_buffers(pa.uint8(), rows, [None, pa.py_buffer(np.ascontiguousarray(reason))]))
    schema = _chunk_schema(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    return files.write_once(root, _CHUNKS, memoryview(sink.getvalue()), ".arrow", identity)


def chunk_id(columns: Sequence[str], keys: Sequence[NDArray[np.void]], reasons: Sequence[NDArray[np.uint8]]) -> str:
    """SHA-256 of a chunk's logical content: column names, row count, then each column's key bytes and reason bytes."""
    digest = sha256(b"cachestore.chunk.1" + canonical([list(columns), len(reasons[0])]))
    for key, reason in zip(keys, reasons, strict=True):
        digest.update(np.ascontiguousarray(key).tobytes())
        digest.update(np.ascontiguousarray(reason).tobytes())
    return digest.hexdigest()


def read_chunks(root: Path, manifest: Manifest, name: str) -> Iterator[tuple[NDArray[np.void], NDArray[np.uint8]]]:
    """Keys (rows,) of a column, zeroed where a row has none, and reasons (rows,), chunk by chunk, checked against the chunks' ids."""
    at = [column.name for column in manifest.columns].index(manifest.column(name).name)
    for place in range(len(manifest.chunks)):
        keys, reasons = chunk_of(root, manifest, place)
        yield keys[at], reasons[at]


def chunk_of(root: Path, manifest: Manifest, place: int) -> Chunk:
    """One chunk of a manifest, all its columns, in memory or on disk.

    Raises ManifestNotFound when the manifest was removed since it was read, DamageError when the chunk alone is not as it was.
    """
    identity, rows = manifest.chunks[place]
    if identity in manifest.held:
        return manifest.held[identity]
    try:
        return read_chunk(root, identity, rows, [column.name for column in manifest.columns])
    except DamageError:
        if is_there(root, manifest.id):
            raise
        raise ManifestNotFound(
            f"Manifest {manifest.id} was rewritten or removed from the store at {root} while it was read. Run again."
        ) from None


def has_chunks(root: Path, manifest: Manifest) -> bool:
    """Whether the file of every chunk is there."""
    return all(layout.exists(layout.content_path(root, _CHUNKS, identity, ".arrow")) for identity, _ in manifest.chunks)


def write_manifest(root: Path, columns: Sequence[ManifestColumn], chunks: Sequence[tuple[str, int]]) -> Manifest:
    """Write a manifest of those chunks; its id is the SHA-256 of the file."""
    data = _content(columns, chunks)
    return _parse(files.write_once(root, _MANIFESTS, data, ".json"), data)


def hold_manifest(
    columns: Sequence[ManifestColumn], chunks: Sequence[tuple[str, int]], held: Mapping[str, Chunk]
) -> Manifest:
    """The manifest that ``write_manifest`` would write, with its chunks, in memory alone."""
    data = _content(columns, chunks)
    return replace(_parse(sha256(data).hexdigest(), data), held=held)


def read_manifest(root: Path, identity: str) -> Manifest:
    """The manifest of that id. Raises ManifestNotFound, DamageError when the bytes are not the ones the id names."""
    if not layout.is_id(identity):
        raise UsageError(f"{identity!r} is not a manifest id, which has 64 hexadecimal digits.")
    path = manifest_path(root, identity)
    try:
        data = files.read_small(path)
    except FileNotFoundError:
        raise ManifestNotFound(
            f"The store at {root} holds no manifest {identity}. Build its data set again, or name another."
        ) from None
    if sha256(data).hexdigest() != identity:
        raise DamageError(f"Manifest {path} was damaged on disk. Build its data set again to write it anew.")
    return _parse(identity, data)


def manifest_path(root: Path, identity: str) -> Path:
    """Where the manifest of that id lies, when the store has it."""
    return layout.content_path(root, _MANIFESTS, identity, ".json")


def is_there(root: Path, identity: str) -> bool:
    """Whether the store has the file of that manifest."""
    return layout.exists(manifest_path(root, identity))


def all_manifests(root: Path) -> list[str]:
    """Ids of all manifests, sorted, whether anything refers to them or not."""
    return sorted(layout.content_sizes(root, _MANIFESTS, ".json"))


def all_chunks(root: Path) -> dict[str, int]:
    """All chunks, whether anything refers to them or not: id → bytes of the file."""
    return layout.content_sizes(root, _CHUNKS, ".arrow")


def check_name(name: str) -> str:
    """The name itself. Raises UsageError when it cannot be one."""
    if not layout.is_name(name):
        raise UsageError(
            f"{name!r} cannot be a name: use up to 128 letters, digits, '.', '_' and '-', beginning with a letter or digit."
        )
    return name


def names(root: Path) -> list[str]:
    """All names of the store, sorted."""
    return layout.names(root)


def read_log(root: Path, name: str) -> list[Version]:
    """The versions of a name, oldest first. Raises ManifestNotFound when there is no such name."""
    path = root / _NAMES / f"{check_name(name)}.jsonl"
    try:
        data = files.read_small(path)
    except FileNotFoundError:
        known = names(root)
        if tagged := [f"{name}@{tag}" for owner, tag in layout.tags(root) if owner == name]:
            raise ManifestNotFound(
                f"The log of {name!r} is gone from the store at {root}, and with it what its versions are. "
                f"What is tagged can still be named: {', '.join(tagged[:10])}. See: cachestore verify"
            ) from None
        listed = f" Names here: {', '.join(known[:10])}." if known else " It holds no names yet."
        raise ManifestNotFound(
            f"The store at {root} has no name {name!r}{nearest(name, known) or '.'}{listed}"
        ) from None
    try:
        lines = data.decode().splitlines()
        if not lines:
            raise ValueError("it is empty")
        return [parse_version(json.loads(line)) for line in lines]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamageError(
            f"The log {path} cannot be read ({error}). Run `cachestore repair`: it keeps the lines that can be read."
        ) from error


def append_version(root: Path, name: str, manifest: Manifest, created: str, provenance: Mapping[str, Json]) -> Version:
    """Add a version to a name's log and return it. The caller holds the lock ``names``."""
    path = root / _NAMES / f"{check_name(name)}.jsonl"
    versions = read_log(root, name) if path.exists() else []
    head = versions[-1] if versions else None
    added = Version(head.version + 1 if head else 1, manifest.id, head.manifest if head else None, created, provenance)
    write_log(root, name, [*versions, added])
    return added


def write_log(root: Path, name: str, versions: Sequence[Version]) -> None:
    """Replace the log of a name. The caller holds the lock ``names``."""
    lines = [
        json.dumps(seal({"format": FORMAT, **vars(version)}), sort_keys=True, ensure_ascii=False)
        for version in versions
    ]
    files.replace_small(root, root / _NAMES / f"{check_name(name)}.jsonl", ("\n".join(lines) + "\n").encode())


def parse_version(line: Mapping[str, Any]) -> Version:
    """A line of a log whose check is right.

    Raises ValueError, KeyError or TypeError when it is none, StoreFormatError when a newer version wrote it.
    """
    found = salvage_version(line)
    unseal(line)
    return found


def salvage_version(line: Mapping[str, Any]) -> Version:
    """As ``parse_version``, of a line whose check may be wrong."""
    if line["format"] > FORMAT:
        raise StoreFormatError(
            f"A log has format {line['format']}; this version reads up to {FORMAT}. Upgrade cachestore."
        )
    found = Version(line["version"], line["manifest"], line["parent"], line["created"], line["provenance"])
    ids = [found.manifest] if found.parent is None else [found.manifest, found.parent]
    if not all(layout.is_id(identity) for identity in ids) or type(found.version) is not int:
        raise ValueError("a line names no manifest or no version")
    if not isinstance(found.created, str) or not isinstance(found.provenance, dict):
        raise ValueError("a line does not say where it is from")
    return found


def _parse(identity: str, data: bytes) -> Manifest:
    try:
        content = json.loads(data)
        if content["format"] > FORMAT:
            raise StoreFormatError(
                f"Manifest {identity} has format {content['format']}; this version reads up to {FORMAT}. Upgrade cachestore."
            )
        columns = tuple(_parse_column(column) for column in content["columns"])
        if not columns:
            raise ValueError("it has no columns")
        chunks = tuple((chunk["id"], chunk["rows"]) for chunk in content["chunks"])
        if not all(type(rows) is int and 0 <= rows <= CHUNK_ROWS for _, rows in chunks):
            raise ValueError("a chunk has a number of rows that none can have")
        if not all(layout.is_id(chunk) for chunk, _ in chunks) or content["rows"] != sum(rows for _, rows in chunks):
            raise ValueError("its rows are not those of its chunks")
        return Manifest(identity, content["rows"], columns, chunks)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamageError(f"Manifest {identity} cannot be read ({error}). Build its data set again.") from error


def _parse_column(column: Mapping[str, Any]) -> ManifestColumn:
    found = ManifestColumn(
        column["name"], Fingerprint(bytes.fromhex(column["fingerprint"])), column["spec"], column["dim"]
    )
    if not isinstance(found.name, str) or type(found.dim) is not int or found.dim < 1:
        raise ValueError("a column has no name or no dimension")
    if not isinstance(found.spec, dict) or fingerprint(found.spec) != found.fingerprint:
        raise ValueError(f"the spec of column {found.name!r} is not that of its fingerprint")
    return found


def _content(columns: Sequence[ManifestColumn], chunks: Sequence[tuple[str, int]]) -> bytes:
    content = {
        "format": FORMAT,
        "rows": sum(rows for _, rows in chunks),
        "columns": [
            {"name": column.name, "fingerprint": column.fingerprint.hex(), "spec": column.spec, "dim": column.dim}
            for column in columns
        ],
        "chunks": [{"id": identity, "rows": rows} for identity, rows in chunks],
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _chunk_schema(columns: Sequence[str]) -> pa.Schema:
    fields: list[pa.Field] = []
    for name in columns:
        fields += [pa.field(f"key.{name}", pa.binary(SIZE)), pa.field(f"reason.{name}", pa.uint8(), nullable=False)]
    return pa.schema(fields, metadata={"cachestore.format": str(FORMAT)})


def read_chunk(
    root: Path, identity: str, rows: int, names: Sequence[str]
) -> tuple[list[NDArray[np.void]], list[NDArray[np.uint8]]]:
    """Per column of a chunk the keys (rows,), zeroed where a row has none, and the reasons (rows,).

    Raises DamageError when it is gone, cannot be read, or does not hold what its id names, StoreFormatError when a newer version wrote it.
    """
    path = layout.content_path(root, _CHUNKS, identity, ".arrow")
    try:
        reader = pa.ipc.open_file(pa.py_buffer(files.map_file(path)))
        number = (reader.schema.metadata or {}).get(b"cachestore.format", b"")
        if number.isdigit() and int(number) > FORMAT:
            raise StoreFormatError(
                f"{path} has format {int(number)}; this version reads up to {FORMAT}. Upgrade cachestore."
            )
        if not reader.schema.equals(_chunk_schema(names), check_metadata=True) or reader.num_record_batches != 1:
            raise ValueError("its columns or format are not those of its manifest")
        batch = reader.get_batch(0)
        batch.validate()  # Arrow aborts the process over lengths that cannot be
        if batch.num_rows != rows:
            raise ValueError(f"it has {batch.num_rows} rows instead of {rows}")
        keys = [np.frombuffer(batch.column(f"key.{name}").buffers()[1], f"V{SIZE}", count=rows) for name in names]
        reasons = [np.frombuffer(batch.column(f"reason.{name}").buffers()[1], np.uint8, count=rows) for name in names]
        for name, reason in zip(names, reasons, strict=True):
            _check_nulls(batch.column(f"key.{name}"), reason)
    except FileNotFoundError:
        raise DamageError(f"Chunk {path} is gone. Build its data set again to write it anew.") from None
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise DamageError(
            f"Chunk {path} cannot be read ({error}). Build its data set again to write it anew."
        ) from error
    if chunk_id(names, keys, reasons) != identity:
        raise DamageError(f"Chunk {path} was damaged on disk. Build its data set again to write it anew.")
    return keys, reasons


def _check_nulls(keys: pa.Array, reasons: NDArray[np.uint8]) -> None:
    """Raises ValueError unless exactly the rows with a reason have no key; the bits that say so are not in the chunk's id."""
    rows = len(reasons)
    bits = keys.buffers()[0]
    valid = np.unpackbits(np.frombuffer(bits, np.uint8), count=rows, bitorder="little") if bits else np.ones(rows)
    if not np.array_equal(valid.astype(np.bool_), reasons == PRESENT) or keys.null_count != int(
        (reasons != PRESENT).sum()
    ):
        raise ValueError("rows without a key and reasons for that do not agree")
