"""Checking manifests: their files, their chunks, and that a vector of the right encoder is there for every key."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cachestore import layout
from cachestore import manifest as manifests
from cachestore.errors import DamageError, ManifestNotFound
from cachestore.findings import Findings, reason
from cachestore.keys import fingerprint, prefixes
from cachestore.manifest import CHUNK_ROWS, PRESENT, Manifest, ManifestColumn
from cachestore.references import Root
from cachestore.verify_index import ABSENT, FOREIGN, MISPLACED, RIGHT, UNREADABLE, IndexCheck, Part
from cachestore.verify_names import ASIDE, BUILD

_STATES = 5
_SAID = {
    ABSENT: "are not in the store",
    MISPLACED: "are not where the index says",
    UNREADABLE: "are in damaged or missing shards",
    FOREIGN: "are of another encoder or dimension",
}


@dataclass
class Cells:
    """Keys of one column: how many are in each state, and the first row that has none to serve."""

    states: NDArray[np.int64]
    first: int | None

    @classmethod
    def none(cls) -> Cells:
        """Of no key."""
        return cls(np.zeros(_STATES, np.int64), None)

    def add(self, other: Cells, at: int = 0) -> None:
        """Count others as well, whose first row is row ``at`` here."""
        self.states += other.states
        if other.first is not None:
            self.first = min(at + other.first, at + other.first if self.first is None else self.first)

    @property
    def lost(self) -> int:
        """Keys whose vectors cannot be served."""
        return int(self.states.sum() - self.states[RIGHT])


def chunk_place(identity: str) -> str:
    """Where a chunk lies, relative to the store."""
    return str(layout.content_path(Path(), "chunks", identity, ".arrow"))


class ManifestCheck:
    """The manifests of a store while it is checked; a chunk that several share is read once."""

    def __init__(self, root: Path, findings: Findings, labels: Mapping[str, str]) -> None:
        self.root = root
        self.cells = 0
        """Keys looked at."""
        self.chunks: set[str] = set()
        self.shards: set[str] = set()
        """Names of the shards that hold the keys."""
        self._findings = findings
        self._labels = labels
        self._seen: dict[str, list[Cells]] = {}

    def label(self, identity: str) -> str:
        """What leads to a manifest, else its id in short."""
        return self._labels.get(identity, f"manifest {identity[:12]}")

    def read(self, identity: str) -> Manifest | None:
        """A manifest, None when it is damaged or gone."""
        try:
            found = manifests.read_manifest(self.root, identity)
        except ManifestNotFound:
            return None  # collected meanwhile, or what leads to it has said so
        except DamageError as error:
            what = self._place(identity)
            self._findings.damage(
                "manifest", what, f"{reason(error)} It is {self.label(identity)}.", f"{ASIDE} {BUILD}"
            )
            return None
        for column in found.columns:
            if fingerprint(column.spec) != column.fingerprint:
                said = f"The fingerprint of column {column.name!r} is not that of its spec."
                self._findings.damage("manifest", self._place(identity), said, f"{ASIDE} {BUILD}")
        if any(rows != CHUNK_ROWS for _, rows in found.chunks[:-1]):
            said = f"Chunks before the last have other than {CHUNK_ROWS:,} rows."
            self._findings.notice("manifest", self._place(identity), said, "Later versions share none of them.")
        return found

    def look(self, found: Sequence[Manifest], places: IndexCheck | Part | None) -> None:
        """Every chunk of manifests; with an index the place of every key, with a part of it of the keys in its range."""
        seen = set()
        for manifest in found:
            for identity, rows in manifest.chunks:
                shared = _shared(identity, manifest)
                if shared not in seen:
                    seen.add(shared)
                    self._look_at_chunk(manifest, identity, rows, places)

    def report(self, manifest: Manifest) -> None:
        """Say which of its vectors cannot be served, once all keys were looked at."""
        totals = [Cells.none() for _ in manifest.columns]
        at = 0
        for identity, rows in manifest.chunks:
            for total, found in zip(totals, self._seen.get(_shared(identity, manifest), ()), strict=False):
                total.add(found, at)
            at += rows
        if not manifests.is_there(self.root, manifest.id):
            return  # collected meanwhile, and its vectors perhaps as well
        for column, total in zip(manifest.columns, totals, strict=True):
            if total.lost:
                self._report(manifest, column.name, total)

    def _report(self, manifest: Manifest, column: str, total: Cells) -> None:
        what = ", ".join(f"{total.states[state]:,} {said}" for state, said in _SAID.items() if total.states[state])
        said = (
            f"Of the {total.states.sum():,} vectors of column {column!r}, {what}; "
            f"the first is that of data row {total.first} (counted from 0)."
        )
        if manifest.id in self._labels:
            self._findings.damage("vector", self._labels[manifest.id], said, BUILD)
        else:
            nobody = "No name, tag or pin leads to it."
            self._findings.notice("vector", self.label(manifest.id), said, nobody)

    def _look_at_chunk(self, manifest: Manifest, identity: str, rows: int, places: IndexCheck | Part | None) -> None:
        self.chunks.add(identity)
        try:
            keys, reasons = manifests.read_chunk(
                self.root, identity, rows, [column.name for column in manifest.columns]
            )
        except DamageError as error:
            if manifests.is_there(self.root, manifest.id):  # else it was collected meanwhile
                what, of = chunk_place(identity), f"It is of {self.label(manifest.id)}."
                if os.path.lexists(self.root / what):
                    self._findings.damage("chunk", what, f"{reason(error)} {of}", f"{ASIDE} {BUILD}")
                else:  # perhaps a repair took it out: there is nothing left to move
                    self._findings.damage("chunk", what, f"It is gone. {of}", BUILD)
            return
        if places is None:
            return
        cells = self._seen.setdefault(_shared(identity, manifest), [Cells.none() for _ in manifest.columns])
        for total, names, why, column in zip(cells, keys, reasons, manifest.columns, strict=True):
            total.add(self._look(names, why, column, places))

    def _look(
        self, keys: NDArray[np.void], reasons: NDArray[np.uint8], column: ManifestColumn, places: IndexCheck | Part
    ) -> Cells:
        present = np.flatnonzero(reasons == PRESENT)
        if isinstance(places, IndexCheck):
            states, shards = places.places(keys[present], column.fingerprint, column.dim)
        else:
            starts = prefixes(keys[present])
            present = present[(starts >= places.first) & (starts <= places.last)]
            states, shards = places.states(keys[present], column.fingerprint, column.dim)
        self.cells += len(present)
        self.shards |= shards
        lost = np.flatnonzero(states != RIGHT)
        return Cells(np.bincount(states, minlength=_STATES), int(present[lost[0]]) if len(lost) else None)

    def _place(self, identity: str) -> str:
        return str(manifests.manifest_path(Path(), identity))


def _shared(identity: str, manifest: Manifest) -> str:
    """Of what manifests that share a chunk are alike, so that it is looked at once."""
    return f"{identity} {[(column.fingerprint, column.dim) for column in manifest.columns]}"


def unreferenced(root: Path, found: Iterable[Manifest], roots: Iterable[Root]) -> tuple[int, int]:
    """How many of the manifests nothing leads to, and how many chunks on disk are of none of them."""
    led = {one.manifest for one in roots}
    loose, needed = 0, set()
    for manifest in found:
        loose += manifest.id not in led
        needed |= {identity for identity, _ in manifest.chunks}
    return loose, len(manifests.all_chunks(root).keys() - needed)
