"""Plan: what a build would do, without doing it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachestore.build import open_sources
from cachestore.built import Counts
from cachestore.cells import CellReader
from cachestore.dataset import Dataset
from cachestore.encoders import Encoder, EncoderLike, ImportedEncoder, open_encoder
from cachestore.keys import SIZE, Fingerprint, Key, fingerprint, keys
from cachestore.manifest import CHUNK_ROWS, MISSING, SKIPPED
from cachestore.shard import stored_dtype
from cachestore.sources import Source, payloads
from cachestore.sources import wanted as needed
from cachestore.store import Store

_SAMPLE = 64


@dataclass(frozen=True)
class Plan:
    """What a build would do; ``seconds`` is estimated from encoding a small sample, None when nothing is to be encoded."""

    counts: Counts
    """``encoded`` counts what would be encoded"""
    seconds: float | None
    nbytes: int
    """of the shards it would write"""


@dataclass(frozen=True)
class Cells:
    """The cells of one column: these add up to the rows."""

    hits: int
    """whose vector is stored"""
    new: int
    """distinct texts that would be encoded"""
    repeats: int
    """that repeat a new text, of this column or of one with the same encoder"""
    missing: int
    skipped: int
    elsewhere: int
    """of the new texts, those that another encoder has vectors of: the one asked about in ``count``"""


@dataclass(frozen=True)
class Counted:
    """The rows of a dataset, its cells by column, and by encoder some of the new texts, the first among them."""

    rows: int
    columns: Mapping[str, Cells]
    samples: Mapping[Fingerprint, Sequence[bytes]]


def plan(store: Store | None, data: Any, columns: Mapping[str, EncoderLike | Sequence[EncoderLike]]) -> Plan:
    """What ``run`` would do on this store, or on an empty one. Writes nothing; encodes a sample of at most 64 payloads to time it.

    Raises EncoderError when vectors would have to be encoded that can only be imported.
    """
    dataset, wanted = open_sources(data, columns, store.open_encoder if store else open_encoder)
    counted = count(store, dataset, wanted)
    identities = {source.name: fingerprint(source.encoder.spec) for source in wanted}
    total = {name: sum(getattr(cells, name) for cells in counted.columns.values()) for name in Cells.__annotations__}
    seconds, nbytes = 0.0, 0
    for identity, encoder in {identities[source.name]: source.encoder for source in wanted}.items():
        new = sum(cells.new for column, cells in counted.columns.items() if identities[column] == identity)
        if not new:
            continue
        if isinstance(encoder, ImportedEncoder):
            raise encoder.lacking(new, counted.samples[identity][0])
        nbytes += new * (encoder.dim * stored_dtype(encoder.spec).itemsize + SIZE + 8)
        seconds += new * _seconds_each(encoder, counted.samples[identity][-_SAMPLE:])
    counts = Counts(counted.rows, total["new"], total["hits"], total["repeats"], total["missing"], total["skipped"])
    return Plan(counts, seconds if total["new"] else None, nbytes)


def count(
    store: Store | None,
    dataset: Dataset,
    wanted: Sequence[Source],
    elsewhere: Mapping[str, Fingerprint] | None = None,
) -> Counted:
    """Count the cells of what is wanted, by name, each under the fingerprint of its encoder, and ``elsewhere`` under another one."""
    rows = 0
    identities = {source.name: fingerprint(source.encoder.spec) for source in wanted}
    seen = {column: _Seen() for column in identities}
    unknown = {identity: _Unknown() for identity in identities.values()}
    for part in CellReader(dataset, needed(wanted), store.index if store else None).parts(CHUNK_ROWS):
        for source in wanted:
            column, identity = source.name, identities[source.name]
            cells = payloads(source, part.cells)
            names = cells.keys(identity)
            found = _found(store, names)
            tally = seen[column]
            tally.hits += int(found.sum())
            tally.missing += int((cells.reasons == MISSING).sum())
            tally.skipped += int((cells.reasons == SKIPPED).sum())
            fresh: list[tuple[Key, bytes]] = []
            # of these alone: to have the payload of a picture is to read its file
            for row in np.flatnonzero(~found).tolist():
                key, payload = names[row], cells.payloads[row]
                if key is not None and payload is not None:
                    fresh.append((key, payload))
            other = (elsewhere or {}).get(column)
            there = np.zeros(len(fresh), np.bool_)
            if other is not None and fresh:
                there = _found(store, keys(other, [payload for _, payload in fresh]))
            unknown[identity].add(column, fresh, there)
        rows += part.rows
    columns = {}
    for identity, lacking in unknown.items():
        for column, (new, known) in lacking.distinct([name for name in seen if identities[name] == identity]).items():
            tally = seen[column]
            repeats = rows - tally.hits - new - tally.missing - tally.skipped
            columns[column] = Cells(tally.hits, new, repeats, tally.missing, tally.skipped, known)
    return Counted(
        rows,
        {column: columns[column] for column in identities},
        {identity: lacking.sample for identity, lacking in unknown.items()},
    )


@dataclass
class _Seen:
    """Cells of one column so far."""

    hits: int = 0
    missing: int = 0
    skipped: int = 0


@dataclass
class _Unknown:
    """The cells whose vector is not stored, of all columns of one encoder, in ten bytes each."""

    sample: list[bytes] = field(default_factory=list)
    cells: int = 0
    _parts: list[tuple[str, NDArray[np.uint64], NDArray[np.bool_]]] = field(default_factory=list)

    def add(self, column: str, fresh: Sequence[tuple[Key, bytes]], there: NDArray[np.bool_]) -> None:
        if not fresh:
            return
        # eight bytes of a digest tell ten million texts apart but for three chances in a million, and this is a count
        marks = np.frombuffer(b"".join([key[:8] for key, _ in fresh]), np.uint64)
        self._parts.append((column, marks, there))
        self.sample += [payload for _, payload in fresh[: max(0, _SAMPLE - len(self.sample))]]
        # the first rows of a file are often alike: keep a sample spread over powers of two
        if (self.cells + len(fresh)).bit_length() > self.cells.bit_length() and self.cells:
            self.sample.append(fresh[-1][1])
        self.cells += len(fresh)

    def distinct(self, columns: Sequence[str]) -> dict[str, tuple[int, int]]:
        """By column, the texts that it is the first to have, and how many of them are there elsewhere."""
        marks = np.concatenate([np.empty(0, np.uint64), *(part for _, part, _ in self._parts)])
        there = np.concatenate([np.empty(0, np.bool_), *(part for _, _, part in self._parts)])
        of = np.repeat([columns.index(name) for name, _, _ in self._parts], [len(part) for _, part, _ in self._parts])
        first = np.unique(marks, return_index=True)[1]
        owners = of[first].astype(np.int64)
        new = np.bincount(owners, minlength=len(columns)).tolist()
        known = np.bincount(owners[there[first]], minlength=len(columns)).tolist()
        return dict(zip(columns, zip(new, known, strict=True), strict=True))


def _found(store: Store | None, names: Sequence[Key | None]) -> NDArray[np.bool_]:
    return store.index.lookup(names).shards >= 0 if store else np.zeros(len(names), np.bool_)


def _seconds_each(encoder: Encoder, sample: Sequence[bytes]) -> float:
    encoder.encode(sample[:1])  # loads the weights
    began = time.monotonic()
    encoder.encode(sample)
    return (time.monotonic() - began) / len(sample)
