"""Stats: what a store holds, which encoders made it, what recent builds found in it, and what its vectors are like."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cachestore import layout, references, shard
from cachestore import manifest as manifests
from cachestore.encoders import label
from cachestore.errors import DamageError, ManifestNotFound
from cachestore.index import ShardEntry
from cachestore.keys import Fingerprint, Json
from cachestore.quality import Quality, quality
from cachestore.store import Store

SAMPLE: Final = 20_000
_RECENT: Final = 20


@dataclass(frozen=True)
class StoredEncoder:
    """An encoder that has vectors in the store. Times are those of its oldest and newest shard, in UTC."""

    fingerprint: Fingerprint
    spec: Mapping[str, Json]
    vectors: int
    nbytes: int
    shards: int
    names: tuple[str, ...]
    """names with a version of its vectors"""
    oldest: str
    newest: str
    quality: Quality | None = None

    @property
    def label(self) -> str:
        """A short name for people."""
        return label(self.spec)


@dataclass(frozen=True)
class RecentBuild:
    """What a build that added a version found: cells whose vector was stored before, and vectors it computed."""

    name: str
    version: int
    created: str
    rows: int
    hits: int
    encoded: int
    repeats: int
    seconds: float


@dataclass(frozen=True)
class Stats:
    """``disk``: bytes by what lies at the top of the store, largest first. ``builds``: the newest first."""

    root: Path
    vectors: int
    shards: int
    names: int
    versions: int
    disk: Mapping[str, int]
    encoders: tuple[StoredEncoder, ...]
    builds: tuple[RecentBuild, ...]

    @property
    def nbytes(self) -> int:
        """All bytes on disk."""
        return sum(self.disk.values())


def stats(store: Store, sample: int = SAMPLE, seed: int = 0) -> Stats:
    """Count everything, and look at ``sample`` vectors of each encoder, drawn with ``seed``; 0 looks at all.

    Raises DamageError for a row that fails its check.
    """
    entries = store.index.shards().values()
    encoders = []
    for found in stored_encoders(store).values():
        own = [entry for entry in entries if entry.fingerprint == found.fingerprint]
        encoders.append(replace(found, quality=quality(store.root, own, sample, seed)))
    logs = {name: manifests.read_log(store.root, name) for name in manifests.names(store.root)}
    return Stats(
        root=store.root,
        vectors=sum(encoder.vectors for encoder in encoders),
        shards=len(entries),
        names=len(logs),
        versions=sum(map(len, logs.values())),
        disk=_disk(store.root),
        encoders=tuple(encoders),
        builds=tuple(_recent(logs)),
    )


def stored_encoders(store: Store) -> dict[Fingerprint, StoredEncoder]:
    """The encoders that have vectors in the store, those with most first, without their quality."""
    names = _names(store.root)
    by_encoder: dict[Fingerprint, list[ShardEntry]] = {}
    for entry in store.index.shards().values():
        by_encoder.setdefault(entry.fingerprint, []).append(entry)
    found = []
    for identity, entries in by_encoder.items():
        times = [_written(store.root, entry.name) for entry in entries]
        found.append(
            StoredEncoder(
                fingerprint=identity,
                spec=store.index.spec(identity) or {},
                vectors=sum(entry.rows for entry in entries),
                nbytes=sum(entry.nbytes for entry in entries),
                shards=len(entries),
                names=tuple(sorted(names.get(identity, ()))),
                oldest=_shown(min(times)),
                newest=_shown(max(times)),
            )
        )
    found.sort(key=lambda encoder: (-encoder.vectors, encoder.fingerprint))
    return {encoder.fingerprint: encoder for encoder in found}


def _names(root: Path) -> dict[Fingerprint, set[str]]:
    """By encoder, the names that have a version with its vectors; versions that were collected count no more."""
    seen: dict[str, list[Fingerprint]] = {}
    found: dict[Fingerprint, set[str]] = {}
    for name in manifests.names(root):
        for line in manifests.read_log(root, name):
            identity = references.follow(root, line.manifest)
            if identity not in seen:
                try:
                    seen[identity] = [column.fingerprint for column in manifests.read_manifest(root, identity).columns]
                except ManifestNotFound:
                    seen[identity] = []
            for encoder in seen[identity]:
                found.setdefault(encoder, set()).add(name)
    return found


def _written(root: Path, name: str) -> float:
    path = layout.content_path(root, shard.FOLDER, name, shard.SUFFIX)
    try:
        with layout.reading(path):
            return path.stat().st_mtime
    except FileNotFoundError:
        raise DamageError(f"Shard {path} is gone. Build again to encode its rows anew.") from None


def _shown(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _recent(logs: Mapping[str, Iterable[manifests.Version]]) -> list[RecentBuild]:
    lines = [(line.created, name, line) for name, log in logs.items() for line in log]
    newest = sorted(lines, key=lambda line: (*line[:2], line[2].version), reverse=True)[:_RECENT]
    found = []
    for created, name, line in newest:
        counts: Any = line.provenance.get("counts") or {}
        rows, hits, encoded, repeats = (int(counts.get(kind, 0)) for kind in ("rows", "hits", "encoded", "duplicates"))
        seconds: Any = line.provenance.get("seconds", 0.0)
        found.append(RecentBuild(name, line.version, created, rows, hits, encoded, repeats, float(seconds)))
    return found


def _disk(root: Path) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            try:
                size = path.lstat().st_size
            except FileNotFoundError:  # somebody's temporary file
                continue
            kind = path.relative_to(root).parts[0]
            sizes[kind] = sizes.get(kind, 0) + size
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))
