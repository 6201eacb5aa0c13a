"""Keeping index and shards in agreement: what killed writers left, files that went, and the whole index anew."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from pathlib import Path

from cachestore import files, shard
from cachestore.errors import DamageError
from cachestore.index import Index


def reconcile(root: Path, index: Index) -> int:
    """Make the index agree with the shards on disk; returns how many shards were indexed.

    Raises DamageError for a shard that is not the one its writer left.
    """
    gone, unindexed = disagreement(root, index)
    if gone:
        entries = index.shards()
        affected = {entries[number].fingerprint for number in gone}
        index.drop(gone)
        for number, entry in entries.items():
            if number not in gone and entry.fingerprint in affected:
                index.restore(number, shard.open_shard(root, entry.name).keys.tolist())
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
    """Numbers of indexed shards that are gone, and names of shards that are not indexed.

    Raises DamageError for an indexed shard that has another size than when it was written.
    """
    indexed = {entry.name: entry for entry in index.shards().values()}
    on_disk = files.content_sizes(root, shard.FOLDER, shard.SUFFIX)
    for name, size in on_disk.items():
        if name in indexed and size != indexed[name].nbytes:
            raise DamageError(
                f"Shard {name} in {root} has {size} bytes instead of {indexed[name].nbytes}. "
                "Run `cachestore repair`: it keeps the sound rows and tells what to build again."
            )
    gone = [entry.number for name, entry in indexed.items() if name not in on_disk]
    return gone, sorted(on_disk.keys() - indexed.keys())


def rebuild(root: Path, index: Index) -> int:
    """Put a new generation of the index, filled from the shards on disk, in the place of the old; returns the rows indexed.

    Shards keep no number of the old generation, so a place looked up before leads nowhere now, and never to another key's row.
    What the old one remembered is gone with its bytes. The shards must be sound, and nobody else may write meanwhile.
    """
    folder = root / "tmp" / uuid.uuid4().hex
    fresh = Index(folder, readonly=False)
    try:
        fresh.count_from(index.next_number())
        rows = _commit(root, fresh, sorted(files.content_sizes(root, shard.FOLDER, shard.SUFFIX)))
    finally:
        fresh.close()
    files.delete_tree(root, files.exchange(root, folder, index.folder))
    return rows


def _commit(root: Path, index: Index, names: Iterable[str]) -> int:
    rows = 0
    for name in names:
        found = shard.open_shard(root, name)
        index.commit(name, found.fingerprint, found.spec, found.keys.tolist(), found.nbytes)
        rows += len(found.keys)
    return rows
