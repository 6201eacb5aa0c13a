"""What a collection works with: its rules, the plan of what they let go, and where files of the store lie."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cachestore import layout, shard
from cachestore.errors import UsageError
from cachestore.index import ShardEntry
from cachestore.pins import Pin
from cachestore.store import Store

DAY: Final = 86_400.0
SPARSE: Final = 0.75  # a shard is rewritten when less of it than this is needed


@dataclass(frozen=True)
class Rules:
    """What may go beyond leftovers; ages in seconds. Raises UsageError for a rule that makes no sense."""

    grace: float = DAY
    """how long the trash is kept"""
    unreferenced_older_than: float | None = None
    keep_last: int | None = None
    max_bytes: int | None = None
    repack: bool = False
    drop_missing_runs: bool = False

    def __post_init__(self) -> None:
        if self.keep_last is not None and self.keep_last < 1:
            raise UsageError(
                f"The newest version of a name always stays: keep the last 1 or more, not {self.keep_last}."
            )
        for value in (self.grace, self.unreferenced_older_than, self.max_bytes):
            if value is not None and not 0 <= value < float("inf"):
                raise UsageError(f"An age or a size cannot be {value}.")

    @property
    def vectors(self) -> bool:
        """Whether vectors that nothing refers to may go."""
        return self.unreferenced_older_than is not None or self.max_bytes is not None


@dataclass(frozen=True)
class Item:
    """A file or folder of the store that goes, and the bytes in it."""

    path: Path
    nbytes: int


@dataclass(frozen=True)
class Sparse:
    """A shard of which only ``rows`` are needed."""

    entry: ShardEntry
    rows: NDArray[np.uint32]


@dataclass(frozen=True)
class GcPlan:
    """What a collection would do; made by ``plan_gc``."""

    store: Store
    rules: Rules
    now: float
    temporary: tuple[Item, ...] = ()
    batches: tuple[Item, ...] = ()
    """batches of the trash whose grace is over"""
    kept_batches: tuple[Item, ...] = ()
    damaged_indexes: tuple[Item, ...] = ()
    pins: tuple[Pin, ...] = ()
    manifests: tuple[Item, ...] = ()
    versions: tuple[str, ...] = ()
    """whose manifest goes, as ``reviews@3``"""
    chunks: tuple[Item, ...] = ()
    superseded: tuple[ShardEntry, ...] = ()
    """shards all of whose rows other shards hold"""
    unreferenced: tuple[ShardEntry, ...] = ()
    """shards of which no row is needed"""
    sparse: tuple[Sparse, ...] = ()
    """shards to be rewritten"""
    shards: int = 0
    shard_bytes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def to_delete(self) -> int:
        """Bytes that go at once."""
        return nbytes_of((*self.temporary, *self.batches, *self.damaged_indexes))

    @property
    def to_trash(self) -> int:
        """Bytes that go to the trash first."""
        rewritten = [sparse.entry for sparse in self.sparse]
        return nbytes_of((*self.manifests, *self.chunks, *self.superseded, *self.unreferenced, *rewritten))

    @property
    def to_write(self) -> int:
        """About how many bytes of rewritten shards there will be."""
        return sum(part_of(sparse.entry, len(sparse.rows)) for sparse in self.sparse)


def shard_path(root: Path, name: str) -> Path:
    """Where the shard of that name lies."""
    return layout.content_path(root, shard.FOLDER, name, shard.SUFFIX)


def chunk_path(root: Path, identity: str) -> Path:
    """Where the chunk of that id lies."""
    return layout.content_path(root, "chunks", identity, ".arrow")


def items(folder: Path, prefix: str = "") -> tuple[Item, ...]:
    """What lies in a folder, by name, each with all its bytes."""
    try:
        found = sorted(entry.path for entry in os.scandir(folder) if entry.name.startswith(prefix))
    except (FileNotFoundError, NotADirectoryError):
        return ()
    return tuple(Item(Path(path), size(path)) for path in found)


def part_of(entry: ShardEntry, rows: int) -> int:
    """About how many bytes so many rows of a shard take."""
    return entry.nbytes * rows // max(entry.rows, 1)


def nbytes_of(things: Iterable[Any]) -> int:
    return sum(thing.nbytes for thing in things)


def size(path: str | Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 for what is gone meanwhile."""
    total = 0
    for folder, _, names in os.walk(path):
        total += sum(size(os.path.join(folder, name)) for name in names)
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return total
    return total if os.path.isdir(path) else status.st_size
