"""Build: a dataset's rows → keys → what the store lacks → encode → put → manifest. Killed anywhere, running it again finishes it."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachestore import dataset as datasets
from cachestore import manifest as manifests
from cachestore.built import Build, Counts, Progress, recognise, record, source_key
from cachestore.cells import CellReader, Part
from cachestore.dataset import KEPT_SKIPPED, Dataset, SkippedCell
from cachestore.encoders import Encoder, EncoderLike, template_of
from cachestore.encoders.together import together
from cachestore.errors import StoreNotWritable, UsageError
from cachestore.fill import Fill, Limits
from cachestore.keys import SIZE, Fingerprint, Json, Key, fingerprint
from cachestore.manifest import (
    CHUNK_ROWS,
    MISSING,
    PRESENT,
    SKIPPED,
    Chunk,
    Manifest,
    ManifestColumn,
    chunk_id,
    write_chunk,
)
from cachestore.naming import derived_name
from cachestore.sources import Source, payloads, several, sources
from cachestore.sources import wanted as needed
from cachestore.store import Store

_NO_KEY = bytes(SIZE)
_RECORDED = ("cachestore", "torch", "transformers", "tokenizers", "numpy", "pyarrow")


def build(
    store: Store, data: Any, columns: Mapping[str, EncoderLike | Sequence[EncoderLike]], name: str | None = None
) -> Manifest:
    """Make sure that every row's vectors are in the store; returns the manifest that lists them.

    ``data`` is a path (CSV, TSV, Parquet, JSON Lines, Arrow, Feather, or a directory of pictures by class), a pandas or pyarrow
    table, or a mapping of columns; ``columns`` maps each column to embed to its encoder, or to several, which then have a
    manifest column each. Without a ``name``, a file goes by its stem, with the name of its folder before it where another file
    has that name; a table in memory has none.
    """
    return run(store, data, columns, name=name).manifest


def run(
    store: Store,
    data: Any,
    columns: Mapping[str, EncoderLike | Sequence[EncoderLike]],
    *,
    name: str | None = None,
    named: bool = True,
    progress: Callable[[Progress], None] | None = None,
    limits: Limits | None = None,
) -> Build:
    """As ``build``, and tells what it did; with ``named`` false, no name is made to lead to the manifest.

    On a store open for reading, which must hold every vector then, nothing is written and the manifest is in memory alone.
    Raises DataError, ColumnNotFound, EncoderError, UsageError and StoreError.
    """
    began = time.monotonic()
    dataset, wanted = open_sources(data, columns, store.open_encoder)
    if name is not None:
        manifests.check_name(name)
    elif named and dataset.path is not None and not store.readonly:
        name = derived_name(store, dataset.path.absolute())
    source = source_key(dataset, wanted)
    finished = recognise(store, source)
    if store.readonly and not name:
        if finished is None:
            finished = _Running(store, dataset, wanted, progress, limits or Limits(), began).finish()
    elif finished is None or (name and not store.leads(name, finished.manifest)):
        with store.writing():
            if finished is not None:
                finished = recognise(store, source)  # it may have been collected before this held the store
            if finished is None:
                running = _Running(store, dataset, wanted, progress, limits or Limits(), began)
                finished = running.finish()
                if not running.cells.outside:  # files that cells name may change while the data does not
                    record(store, source, finished)
            if name:
                store.point(name, finished.manifest, partial(_provenance, store, dataset, wanted, finished))
    return replace(finished, name=name, sources=tuple(wanted), seconds=time.monotonic() - began)


@dataclass
class _Column:
    """A column on its way into a manifest: keys and reasons of the rows of the open chunk."""

    source: Source
    fingerprint: Fingerprint
    fill: Fill
    keys: list[NDArray[np.void]] = field(default_factory=list)
    reasons: list[NDArray[np.uint8]] = field(default_factory=list)


class _Running:
    """One build while it runs."""

    def __init__(
        self,
        store: Store,
        dataset: Dataset,
        wanted: Sequence[Source],
        progress: Callable[[Progress], None] | None,
        limits: Limits,
        began: float,
    ) -> None:
        self.store = store
        self.dataset = dataset
        self.progress = progress
        self.began = began
        self.fills: dict[Fingerprint, Fill] = {}
        self.columns: list[_Column] = []
        encoders = {fingerprint(source.encoder.spec): source.encoder for source in wanted}
        for identity, encoder in zip(encoders, together(list(encoders.values())), strict=True):
            self.fills[identity] = store.fill(encoder, limits, self.report)
        for source in wanted:
            identity = fingerprint(source.encoder.spec)
            self.columns.append(_Column(source, identity, self.fills[identity]))
        self.cells = CellReader(dataset, needed(wanted), store.index)
        self.rows = self.open_rows = self.hits = self.missing = self.skipped = 0
        self.skipped_cells: list[SkippedCell] = []
        self.chunks: list[tuple[str, int]] = []
        self.held: dict[str, Chunk] = {}
        self.lacking = 0
        """cells without a vector, on a store open for reading"""

    def finish(self) -> Build:
        with contextlib.ExitStack() as stack:
            for fill in self.fills.values():
                stack.enter_context(fill)
            self.read()
        self.report()
        described = [
            ManifestColumn(source.name, column.fingerprint, source.encoder.spec, source.encoder.dim)
            for column in self.columns
            for source in [column.source]
        ]
        if self.store.readonly:
            self.require_all()
            manifest = manifests.hold_manifest(described, self.chunks, self.held)
        else:
            manifest = self.store.write_manifest(described, self.chunks)
        encoded = sum(fill.encoded for fill in self.fills.values())
        hits = self.hits + sum(fill.found for fill in self.fills.values())
        duplicates = self.rows * len(self.columns) - encoded - hits - self.missing - self.skipped
        counts = Counts(self.rows, encoded, hits, duplicates, self.missing, self.skipped)
        written = sum(fill.bytes_written for fill in self.fills.values())
        seconds = time.monotonic() - self.began
        return Build(manifest, None, counts, tuple(self.skipped_cells), written, seconds, recognised=False)

    def read(self) -> None:
        """Take every row, encode what the store lacks, write the chunks."""
        for part in self.cells.parts(CHUNK_ROWS):
            self.take(part)
            self.report()
        if self.open_rows or not self.chunks:
            self.close_chunk()

    def take(self, part: Part) -> None:
        """Add some rows, all of which fit the open chunk."""
        for column in self.columns:
            cells = payloads(column.source, part.cells)
            names = cells.keys(column.fingerprint)
            self.missing += int((cells.reasons == MISSING).sum())
            self.skip([replace(cell, column=column.source.name) for cell in cells.skipped])
            self.fill(column.fill, names, cells.payloads)
            column.keys.append(np.frombuffer(b"".join([key or _NO_KEY for key in names]), f"V{SIZE}"))
            column.reasons.append(cells.reasons)
        self.rows += part.rows
        self.open_rows += part.rows
        if self.open_rows == CHUNK_ROWS:
            self.close_chunk()

    def fill(self, fill: Fill, names: Sequence[Key | None], payloads: Sequence[bytes | None]) -> None:
        """Hand the payloads that the store lacks to the column's fill, each once."""
        numbers = self.store.index.lookup(names).shards
        self.hits += int(((numbers >= 0) & ~np.isin(numbers, list(fill.shards))).sum())
        if self.store.readonly:
            self.lacking += sum(names[row] is not None for row in np.flatnonzero(numbers < 0).tolist())
            return
        lacking: dict[Key, bytes] = {}
        for row in np.flatnonzero(numbers < 0).tolist():
            key, payload = names[row], payloads[row]
            if key is not None and payload is not None:
                lacking[key] = payload
        fill.add(lacking)
        if fill.crowded:
            self.store_all()

    def close_chunk(self) -> None:
        """Store what is pending, then write the open rows as a chunk: a manifest never names a vector that is not durable."""
        self.store_all()
        chunk_keys, chunk_reasons = [], []
        for column in self.columns:
            chunk_keys.append(np.concatenate([*column.keys, np.empty(0, f"V{SIZE}")]))
            chunk_reasons.append(np.concatenate([*column.reasons, np.empty(0, np.uint8)]))
            column.keys, column.reasons = [], []
            self.refuse(column, chunk_keys[-1], chunk_reasons[-1])
        names = [column.source.name for column in self.columns]
        if self.store.readonly:
            identity = chunk_id(names, chunk_keys, chunk_reasons)
            self.held[identity] = chunk_keys, chunk_reasons
        else:
            identity = write_chunk(self.store.root, names, chunk_keys, chunk_reasons)
        self.chunks.append((identity, self.open_rows))
        self.open_rows = 0

    def require_all(self) -> None:
        """Raises StoreNotWritable when the store, open for reading, lacks vectors."""
        if self.lacking:
            raise StoreNotWritable(
                f"The store at {self.store.root} is open for reading only, and lacks the vectors of {self.lacking:,} cells of "
                f"{self.dataset.label}. Build it as a user who may write, or name another store with --store."
            )

    def store_all(self) -> None:
        """Have everything taken so far stored, by this build or by the others that encode it."""
        if self.store.readonly:
            return
        for fill in self.fills.values():
            fill.flush()
        for fill in self.fills.values():  # not before all are flushed: who waits must hold no claims
            fill.settle()

    def refuse(self, column: _Column, chunk_keys: NDArray[np.void], reasons: NDArray[np.uint8]) -> None:
        """Turn the rows whose vector could not be stored into skipped ones, in place."""
        refused = column.fill.refused
        first_row = self.rows - self.open_rows
        rows = [row for row, key in enumerate(chunk_keys.tolist()) if key in refused] if refused else []
        for row in rows:
            why = refused[Key(chunk_keys[row].tobytes())]
            told = self.cells.told(column.source.columns[0], first_row + row, why)
            self.skip([SkippedCell(first_row + row, column.source.name, told)])
        chunk_keys[rows] = np.zeros(len(rows), f"V{SIZE}")
        reasons[rows] = SKIPPED

    def skip(self, cells: Sequence[SkippedCell]) -> None:
        self.skipped += len(cells)
        self.skipped_cells += cells[: KEPT_SKIPPED - len(self.skipped_cells)]

    def report(self) -> None:
        if self.progress:
            encoded = sum(fill.encoded for fill in self.fills.values())
            waiting = sum(fill.waiting for fill in self.fills.values())
            seconds = time.monotonic() - self.began
            self.progress(Progress(self.rows, self.dataset.rows, encoded, self.hits, seconds, waiting))


def open_sources(
    data: Any,
    columns: Mapping[str, EncoderLike | Sequence[EncoderLike]],
    open_one: Callable[[EncoderLike], Encoder],
) -> tuple[Dataset, list[Source]]:
    """The dataset, which has the columns that are needed, and what its cached columns are to be."""
    if not columns:
        raise UsageError("A build needs at least one column with an encoder.")
    dataset = datasets.open_dataset(data)
    if not any(template_of(like) for asked in columns.values() for like in several(asked)):
        dataset.require(columns)  # before any model is looked for
    wanted = sources(columns, open_one)
    dataset.require(needed(wanted))
    return dataset, wanted


def _provenance(store: Store, dataset: Dataset, wanted: Sequence[Source], finished: Build) -> Mapping[str, Json]:
    manifest = finished.manifest
    versions: dict[str, Json] = {"python": platform.python_version()}
    for package in _RECORDED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "source": {
            "label": str(dataset.path.absolute()) if dataset.path else dataset.label,
            "digest": dataset.digest(),
            "options": dict(dataset.options),
        },
        "columns": {source.name: source.described for source in wanted},
        "counts": vars(finished.counts),
        "vectors": {
            column.name: int((store.reasons(manifest, column.name) == PRESENT).sum()) for column in manifest.columns
        },
        "seconds": round(finished.seconds, 3),
        "versions": versions,
    }
