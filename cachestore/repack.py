"""Rewrites sparse shards: the rows of them that are needed go into new shards, which the index then names instead."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachestore import shard
from cachestore.errors import DamageError
from cachestore.fill import Limits
from cachestore.gc_rules import Sparse
from cachestore.index import ShardEntry
from cachestore.keys import Fingerprint
from cachestore.store import Store

_LIMITS = Limits()


@dataclass
class Repacked:
    """What was rewritten: bytes of the new shards, the shards they replace, and remarks on those that stay as they are."""

    written: int = 0
    replaced: list[ShardEntry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def repack(store: Store, sparse: Iterable[Sparse]) -> Repacked:
    """Write the needed rows of sparse shards into as few new shards as their limits allow. Only inside ``store.alone``."""
    done = Repacked()
    waiting: dict[Fingerprint, _Waiting] = {}
    for part in sparse:
        try:
            found = shard.open_shard(store.root, part.entry.name)
            keys = found.keys[part.rows]
            vectors = found.take(part.rows.astype(np.int64), keys)
        except DamageError as error:
            done.notes.append(f"Shard {part.entry.name[:12]} was not rewritten: {error}")
            continue
        into = waiting.setdefault(part.entry.fingerprint, _Waiting())
        if into.full(len(keys), vectors.nbytes):
            into.write(store, done)
        into.entries.append(part.entry)
        into.keys.append(keys)
        into.vectors.append(vectors)
        into.spec = found.spec
    for into in waiting.values():
        into.write(store, done)
    return done


@dataclass
class _Waiting:
    """Rows of one encoder on their way into a new shard."""

    spec: Any = None
    entries: list[ShardEntry] = field(default_factory=list)
    keys: list[NDArray[np.void]] = field(default_factory=list)
    vectors: list[NDArray[Any]] = field(default_factory=list)

    def full(self, rows: int, nbytes: int) -> bool:
        """Whether ``rows`` and ``nbytes`` more would be too much for one shard."""
        rows += sum(len(part) for part in self.keys)
        nbytes += sum(part.nbytes for part in self.vectors)
        return bool(self.keys) and (rows > _LIMITS.shard_rows or nbytes > _LIMITS.shard_bytes)

    def write(self, store: Store, done: Repacked) -> None:
        if self.keys:
            keys = np.concatenate(self.keys).tolist()
            _, nbytes = store.put(self.spec, keys, np.concatenate(self.vectors), moved=True)
            done.written += nbytes
            done.replaced += self.entries
        self.entries, self.keys, self.vectors = [], [], []
