"""Checking manifests: their files, their chunks, and that a vector of the right encoder is there for every key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cachestore import files
from cachestore import manifest as manifests
from cachestore.errors import DamageError, ManifestNotFound
from cachestore.findings import Findings, reason
from cachestore.keys import fingerprint
from cachestore.manifest import CHUNK_ROWS, PRESENT, Manifest, ManifestColumn
from cachestore.references import Root
from cachestore.verify_index import ABSENT, FOREIGN, MISPLACED, RIGHT, UNREADABLE, IndexCheck
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

    @property
    def lost(self) -> int:
        """Keys whose vectors cannot be served."""
        return int(self.states.sum() - self.states[RIGHT])


def chunk_place(identity: str) -> str:
    """Where a chunk lies, relative to the store."""
    return str(files.content_path(Path(), "chunks", identity, ".arrow"))


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
        self._seen: dict[str, list[Cells] | None] = {}

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

    def check(self, manifest: Manifest, places: IndexCheck | None) -> None:
        """Its chunks, and with an index that can be read the place of every key."""
        totals = [Cells(np.zeros(_STATES, np.int64), None) for _ in manifest.columns]
        at = 0
        for identity, rows in manifest.chunks:
            for total, found in zip(totals, self._chunk(manifest, identity, rows, places) or (), strict=False):
                total.states += found.states
                if total.first is None and found.first is not None:
                    total.first = at + found.first
            at += rows
        if not manifests.manifest_path(self.root, manifest.id).exists():
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

    def _chunk(self, manifest: Manifest, identity: str, rows: int, places: IndexCheck | None) -> list[Cells] | None:
        """The cells of each column of a chunk, None when it is damaged or there is no index to look into."""
        shared = f"{identity} {rows} {[(column.fingerprint, column.dim) for column in manifest.columns]}"
        if shared not in self._seen:
            self._seen[shared] = self._read_chunk(manifest, identity, rows, places)
        return self._seen[shared]

    def _read_chunk(
        self, manifest: Manifest, identity: str, rows: int, places: IndexCheck | None
    ) -> list[Cells] | None:
        self.chunks.add(identity)
        try:
            keys, reasons = manifests.read_chunk(
                self.root, identity, rows, [column.name for column in manifest.columns]
            )
        except DamageError as error:
            if manifests.manifest_path(self.root, manifest.id).exists():  # else it was collected meanwhile
                what, said = chunk_place(identity), f"{reason(error)} It is of {self.label(manifest.id)}."
                self._findings.damage("chunk", what, said, f"{ASIDE} {BUILD}")
            return None
        if places is None:
            return None
        return [
            self._look(names, why, column, places)
            for names, why, column in zip(keys, reasons, manifest.columns, strict=True)
        ]

    def _look(
        self, keys: NDArray[np.void], reasons: NDArray[np.uint8], column: ManifestColumn, places: IndexCheck
    ) -> Cells:
        present = np.flatnonzero(reasons == PRESENT)
        states, shards = places.places(keys[present], column.fingerprint, column.dim)
        self.cells += len(present)
        self.shards |= shards
        lost = np.flatnonzero(states != RIGHT)
        return Cells(np.bincount(states, minlength=_STATES), int(present[lost[0]]) if len(lost) else None)

    def _place(self, identity: str) -> str:
        return str(manifests.manifest_path(Path(), identity))


def unreferenced(root: Path, found: Iterable[Manifest], roots: Iterable[Root]) -> tuple[int, int]:
    """How many of the manifests nothing leads to, and how many chunks on disk are of none of them."""
    led = {one.manifest for one in roots}
    loose, needed = 0, set()
    for manifest in found:
        loose += manifest.id not in led
        needed |= {identity for identity, _ in manifest.chunks}
    return loose, len(manifests.all_chunks(root).keys() - needed)
