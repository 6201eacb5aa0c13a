"""The index and the shards kept in agreement: a damaged index, what killed writers left, files that went, and all of it anew."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterable
from pathlib import Path

from cachestore import files, header, layout, locks, shard
from cachestore.environment import looks_torn
from cachestore.errors import DamageError
from cachestore.findings import reason
from cachestore.index import Index

FILL = "Run `cachestore repair` as a user who may write to the store: it fills a new one from the shards."


def open_index(root: Path, *, readonly: bool) -> Index:
    """The index of a store. One that is damaged is set aside with a warning and a new one begun, unless it is open for reading only.

    Raises DamageError then.
    """
    folder = root / "index"
    if readonly:
        try:
            if not layout.exists(folder / "data.mdb"):
                raise DamageError("It is not there, as in a copy that left it out.")
            if _torn(folder):
                raise DamageError("Its file is cut short.")
            return Index(folder, readonly=True)
        except DamageError as error:
            raise DamageError(f"The index {folder} cannot be used. {reason(error)} {FILL}") from error.__cause__
    # one process at a time: another one's half-made index would look torn
    with locks.held(root, "index", exclusive=True, timeout=header.LOCK_SECONDS):
        if _torn(folder):
            return _new_index(folder, "its file is cut short")
        try:
            return Index(folder, readonly=False)
        except DamageError as error:
            return _new_index(folder, str(error))


def _torn(folder: Path) -> bool:
    with layout.reading(folder / "data.mdb"):
        return looks_torn(folder)


def _new_index(folder: Path, why: str) -> Index:
    aside = files.set_aside(folder)
    warnings.warn(
        f"The index {folder} was damaged ({why}). A new one is filled from the shards; the old is kept as {aside.name}.",
        stacklevel=5,
    )
    return Index(folder, readonly=False)


def reconcile(root: Path, index: Index) -> int:
    """Make the index agree with the shards on disk; returns how many shards were indexed.

    Raises DamageError for a shard that is not the one its writer left.
    """
    gone, unindexed = disagreement(root, index)
    if gone:
        entries = index.shards()
        affected = {entries[number].fingerprint for number in gone}
        index.drop(
            gone,
            {
                number: shard.open_shard(root, entry.name).keys.tolist()
                for number, entry in entries.items()
                if number not in gone and entry.fingerprint in affected
            },
        )
    for name in unindexed:
        if not shard.sound(root, name):
            raise DamageError(
                f"Shard {name} in {root} was damaged on disk before it was indexed. "
                "Run `cachestore repair`: it keeps the sound rows and tells what to build again."
            )
        shard.make_durable(root, name)  # its writer may have died before it was
    _commit(root, index, unindexed)
    return len(unindexed)


def disagreement(root: Path, index: Index) -> tuple[list[int], list[str]]:
    """Numbers of indexed shards that are gone, and names of shards that are not indexed, or not with all their keys.

    Raises DamageError for an indexed shard that has another size than when it was written.
    """
    indexed = {entry.name: entry for entry in index.shards().values()}
    on_disk = layout.content_sizes(root, shard.FOLDER, shard.SUFFIX)
    for name, size in on_disk.items():
        if name in indexed and size != indexed[name].nbytes:
            raise DamageError(
                f"Shard {name} in {root} has {size} bytes instead of {indexed[name].nbytes}. "
                "Run `cachestore repair`: it keeps the sound rows and tells what to build again."
            )
    gone = [entry.number for name, entry in indexed.items() if name not in on_disk]
    return gone, sorted((on_disk.keys() - indexed.keys()) | (on_disk.keys() & index.unfinished()))


def rebuild(root: Path, index: Index) -> int:
    """Put a new generation of the index, filled from the shards on disk, in the place of the old; returns the rows indexed.

    Shards keep no number of the old generation, so a place looked up before leads nowhere now, and never to another key's row.
    What the old one remembered is gone with its bytes. The shards must be sound, and nobody else may write meanwhile.
    """
    folder = root / "tmp" / uuid.uuid4().hex
    fresh = Index(folder, readonly=False)
    try:
        fresh.count_from(index.next_number())
        rows = _commit(root, fresh, sorted(layout.content_sizes(root, shard.FOLDER, shard.SUFFIX)))
    finally:
        fresh.close()
    with locks.held(root, "index", exclusive=True, timeout=header.LOCK_SECONDS):
        old = files.exchange(root, folder, index.folder)
    files.delete_tree(root, old)
    return rows


def _commit(root: Path, index: Index, names: Iterable[str]) -> int:
    rows = 0
    for name in names:
        found = shard.open_shard(root, name)
        index.commit(name, found.fingerprint, found.spec, found.keys.tolist(), found.nbytes)
        rows += len(found.keys)
    return rows
