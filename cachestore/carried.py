"""Carried: columns of the file that a version of a dataset was built from, row by row beside its vectors, and a timestamp per row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cachestore import dataset as datasets
from cachestore import manifest as manifests
from cachestore import references
from cachestore.dataset import Dataset
from cachestore.errors import DataError, UsageError
from cachestore.manifest import Manifest, Version
from cachestore.store import Store

TIMESTAMP: Final = "event_timestamp"
_STAMP = pa.timestamp("us", "UTC")


@dataclass
class Carried:
    """Columns to write beside vectors, in their order. ``undecodable`` counts cells that are not UTF-8, as they are read."""

    names: tuple[str, ...]
    created: datetime | None
    """of the version; None where no name leads to the manifest"""
    dataset: Dataset | None
    timestamp_column: str | None
    undecodable: int = field(default=0)

    @classmethod
    def of(
        cls,
        version: tuple[str, Version] | None,
        manifest: Manifest,
        names: Sequence[str],
        timestamp_column: str | None,
    ) -> Carried:
        """Opens the recorded file where columns of it are wanted. Raises DataError when it is not as it was, ColumnNotFound."""
        wanted = [*names, *([timestamp_column] if timestamp_column else [])]
        dataset = None
        if wanted:
            if version is None:
                raise UsageError(
                    f"No name leads to manifest {manifest.id[:12]}, so nobody knows what it was built from. "
                    "Build its data under a name, or export without --with and --timestamp-column."
                )
            dataset = _recorded(*version)
            dataset.require(wanted)
        created = datetime.fromisoformat(version[1].created) if version else None
        return cls(tuple(dict.fromkeys(names)), created, dataset, timestamp_column)

    @property
    def timestamped(self) -> bool:
        """Whether rows have a timestamp."""
        return self.created is not None or self.timestamp_column is not None

    def blocks(self, rows: int, step: int) -> Iterator[tuple[int, list[pa.Array], list[pa.Array]]]:
        """Of every row at most ``step`` at once: how many, their columns, and their timestamps as a list of one array or none."""
        if self.dataset is None:
            for at in range(0, rows, step):
                count = min(step, rows - at)
                yield count, [], self._stamps(None, count, at)
            return
        extra = [self.timestamp_column] if self.timestamp_column else []
        at = 0
        for batch in self.dataset.batches(list(dict.fromkeys([*self.names, *extra]))):
            for start in range(0, batch.num_rows, step):
                part = batch.slice(start, step)
                columns = [self._column(part.column(name), name) for name in self.names]
                yield part.num_rows, columns, self._stamps(part, part.num_rows, at)
                at += part.num_rows

    def _column(self, array: pa.Array, name: str) -> pa.Array:
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        if _is_text(array.type):
            array, invalid = datasets.text_column(array, name)
            self.undecodable += int(invalid.sum())
        return array

    def _stamps(self, part: pa.RecordBatch | None, rows: int, at: int) -> list[pa.Array]:
        if self.timestamp_column and part is not None:
            array = self._column(part.column(self.timestamp_column), self.timestamp_column)
            return [_timestamps(array, self.timestamp_column, at)]
        if self.created is None:
            return []
        microseconds = np.full(rows, round(self.created.timestamp() * 1_000_000), np.int64)
        return [pa.Array.from_buffers(_STAMP, rows, [None, pa.py_buffer(microseconds)])]


def version_of(store: Store, source: Manifest | str, manifest: Manifest) -> tuple[str, Version] | None:
    """The name and version that a reference leads by to its manifest; the newest of any name's where it says none."""
    root = store.root
    if isinstance(source, str):
        name, at, rest = source.partition("@")
        if at and rest.isdecimal():
            return name, references.version(root, name, int(rest))
        if name in manifests.names(root):
            if not at:
                return name, references.version(root, name)
            line = references.frozen(root, references.read_tag(root, name, rest), manifests.read_log(root, name))
            if line is not None:
                return name, line
    leading = [
        (name, line)
        for name in manifests.names(root)
        for line in manifests.read_log(root, name)
        if references.follow(root, line.manifest) == manifest.id
    ]
    return max(leading, key=lambda found: found[1].created, default=None)


def built_from(version: Version, path: Path) -> bool:
    """Whether a version was built from the file at ``path``."""
    try:
        return path.samefile(_source(version)["label"])
    except (OSError, KeyError, TypeError, ValueError):  # one is not there, or was no file
        return False


def _recorded(name: str, version: Version) -> Dataset:
    """The file that a version was built from, whose bytes and way of reading are what they were."""
    source = _source(version)
    label, build = source.get("label"), f"{name}@{version.version}"
    instead = "export without --with and --timestamp-column"
    if source.get("digest") is None:
        raise DataError(
            f"{build} was built from {label or 'data that was not recorded'}, not from a file, so other columns of it are not kept. "
            f"Build it from a file, or {instead}."
        )
    try:
        dataset = datasets.open_dataset(label)
    except DataError as error:
        raise DataError(
            f"{build} was built from a file that is not there or cannot be read any more: {error} "
            f"Put it back, or {instead}."
        ) from error
    if dataset.digest() != source["digest"]:
        raise DataError(
            f"{label} has changed since {build} was built from it, so its rows may not be those of the vectors. "
            f"Build it again and export that version, put the old file back, or {instead}."
        )
    if dict(dataset.options) != source.get("options"):
        raise DataError(
            f"{label} is read in another way than when {build} was built from it, so its rows may be others. "
            f"Build it again and export that version, or {instead}."
        )
    return dataset


def _source(version: Version) -> dict[str, Any]:
    """``label``, ``digest`` and ``options``, as the build recorded them."""
    source = version.provenance.get("source")
    return dict(source) if isinstance(source, Mapping) else {}


def _is_text(kind: pa.DataType) -> bool:
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in texts)


def _timestamps(array: pa.Array, name: str, at: int) -> pa.Array:
    """The cells as microseconds in UTC; times without a zone are taken to be UTC. ``at`` is the row of the first."""
    kind = array.type
    if not (_is_text(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_null(kind)):
        raise DataError(
            f"Column {name!r} has type {kind}, which is no time. Name a column of timestamps, dates or texts."
        )
    together = _as_stamps(array)
    if together is not None:
        return together
    cells = []
    for row in range(len(array)):  # some have a zone and some have none, or one is no time
        cell = _as_stamps(array.slice(row, 1))
        if cell is None:
            raise DataError(
                f"Data row {at + row} (counted from 0) of column {name!r} holds {array[row].as_py()!r}, which is no time. "
                "Write times as 2026-01-31T12:00:00Z."
            )
        cells.append(cell)
    return pa.concat_arrays(cells)


def _as_stamps(array: pa.Array) -> pa.Array | None:
    for kind in (_STAMP, pa.timestamp("us")):
        try:
            return pc.cast(array, kind, safe=False).cast(_STAMP)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
    return None
