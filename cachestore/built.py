"""What a build tells of itself, while it runs and when it is done; and how the next build of an unchanged file knows that it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from cachestore import manifest as manifests
from cachestore.dataset import Dataset, SkippedCell
from cachestore.errors import DamageError, ManifestNotFound
from cachestore.keys import canonical, fingerprint
from cachestore.manifest import Manifest
from cachestore.sources import Source
from cachestore.store import Store
from cachestore.version import __version__


@dataclass(frozen=True)
class Progress:
    """How far a build is. Cells, not rows, are encoded or hit; ``total`` rows are known for some sources only."""

    rows: int
    total: int | None
    encoded: int
    hits: int
    seconds: float
    waiting: int = 0
    """payloads that another process encodes just now"""


@dataclass(frozen=True)
class Counts:
    """What became of the cells of all built columns; all but ``rows`` add up to rows × columns."""

    rows: int
    encoded: int
    """vectors computed and stored"""
    hits: int
    """cells whose vector was stored before this build, or by another while it ran"""
    duplicates: int
    """cells that repeat one encoded in this build"""
    missing: int
    skipped: int


@dataclass(frozen=True)
class Build:
    """A finished build. ``skipped_cells`` holds the first KEPT_SKIPPED of them."""

    manifest: Manifest
    name: str | None
    counts: Counts
    skipped_cells: tuple[SkippedCell, ...]
    bytes_written: int
    seconds: float
    recognised: bool
    """the file was built before, unchanged, and was not parsed again"""
    sources: tuple[Source, ...] = ()
    """what each column of the manifest was made of"""


def source_key(dataset: Dataset, wanted: Sequence[Source]) -> bytes | None:
    """What identifies a finished build of a file: its bytes, how they are read, and which columns go through which encoders."""
    digest = dataset.digest()
    if digest is None:
        return None
    columns = [[one.name, list(one.columns), one.template, fingerprint(one.encoder.spec).hex()] for one in wanted]
    return b"source:" + sha256(canonical([digest, dict(dataset.options), columns, __version__])).digest()


def recognise(store: Store, source: bytes | None) -> Build | None:
    """The build of a file that was built before and has not changed since, without parsing it."""
    remembered = store.index.recall(source) if source else None
    if remembered is None or not store.settled():
        return None
    fact = json.loads(remembered)
    try:
        manifest = manifests.read_manifest(store.root, fact["manifest"])  # not one that took its place
    except (ManifestNotFound, DamageError):
        return None  # parsing the file writes it anew
    if not manifests.has_chunks(store.root, manifest):
        return None
    counts = Counts(manifest.rows, 0, fact["present"], 0, fact["missing"], fact["skipped"])
    cells = tuple(SkippedCell(*cell) for cell in fact["cells"])
    return Build(manifest, None, counts, cells, 0, 0.0, recognised=True)


def record(store: Store, source: bytes | None, finished: Build) -> None:
    """Have ``recognise`` know this build, unless its source is no file."""
    if source is None:
        return
    counts = finished.counts
    fact = {
        "manifest": finished.manifest.id,
        "present": counts.encoded + counts.hits + counts.duplicates,
        "missing": counts.missing,
        "skipped": counts.skipped,
        "cells": [[cell.row, cell.column, cell.why] for cell in finished.skipped_cells],
    }
    store.index.remember(source, json.dumps(fact).encode())
