"""Claims: which keys a writer is about to encode, so that no other writer encodes them as well.

A claim is a row of the index and is worth something only while its owner lives: the owner holds a lock file of its own, which
the kernel releases when the process dies, however it dies. So nothing expires by a clock, and nothing need be cleaned up.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from cachestore import files, locks
from cachestore.errors import StoreFull
from cachestore.index import OWNER_SIZE, Index
from cachestore.keys import Key, split

_PREFIX = "claims-"
_NONE: tuple[bytes, frozenset[Key]] = (b"", frozenset())


class Taken(NamedTuple):
    """What became of keys that were asked for: ours to encode, stored by now, and what other writers have, by their ids."""

    mine: set[Key]
    stored: set[Key]
    others: Mapping[bytes, set[Key]]


class Claims:
    """The claims of one writer. A context manager: leaving it gives all of them up."""

    def __init__(self, root: Path, index: Index) -> None:
        self.owner = uuid.uuid4().bytes
        assert len(self.owner) == OWNER_SIZE
        self._root = root
        self._index = index
        self._lock = -1
        self._any = False
        self._version = -1
        self._seen: dict[bytes, tuple[bytes, frozenset[Key]]] = {}
        """all claims as of that version of the index"""
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def take(self, keys: Sequence[Key], *, force: bool = False) -> Taken:
        """Claim those of ``keys`` that are neither stored nor claimed by a living writer; with ``force`` also the latter."""
        if self._lock < 0:
            self._lock = files.hold_new_lock(self._root, _path(self._root, self.owner))
        lives = functools.cache(self.lives)
        others = {} if force else self._held_by_others(set(keys), lives)
        claimed = set().union(*others.values())
        # who stores keys ends his claims with it, so none has to be looked up that is claimed
        rest = [key for key in keys if key not in claimed] if claimed else keys
        # alone, nothing was stored since they were looked up, or hardly; the claim itself looks again
        alone = not force and all(row[:OWNER_SIZE] == self.owner for row in self._seen)
        stored = set() if alone else set(itertools.compress(rest, self.stored(rest)))
        free = [key for key in rest if key not in stored] if stored else rest
        if not free:  # nothing to write, and so nobody to wait for
            return Taken(set(), stored, others)
        self._any = True
        mine, stored_since, others_since = self._index.claim(self.owner, free, lives, force=force)
        for writer, held in others_since.items():
            others.setdefault(writer, set()).update(held)
        return Taken(mine, stored | stored_since, others)

    def _held_by_others(self, keys: set[Key], lives: Callable[[bytes], bool]) -> dict[bytes, set[Key]]:
        """Which of the keys other living writers have claimed, as of a moment ago."""
        version = self.version()
        if version != self._version:
            rows = self._index.claims()
            # a row may have been given up, and its name used again
            self._seen = {
                row: old if (old := self._seen.get(row, _NONE))[0] == held else (held, split(held))
                for row, held in rows
            }
            self._version = version
        others: dict[bytes, set[Key]] = {}
        for row, (_, held) in self._seen.items():
            writer = row[:OWNER_SIZE]
            if writer != self.owner and (common := keys & held) and lives(writer):
                others.setdefault(writer, set()).update(common)
                keys = keys - common
        return others

    def lives(self, owner: bytes) -> bool:
        """Whether the writer of that id still runs."""
        return locks.lives(_path(self._root, owner))

    def stored(self, keys: Sequence[Key]) -> list[bool]:
        """Which of these keys are stored by now."""
        there: list[bool] = (self._index.lookup(keys).shards >= 0).tolist()
        return there

    def version(self) -> int:
        """A number that grows with every change of the index."""
        return self._index.version()

    def release(self) -> None:
        """Give up all claims."""
        if self._any:
            self._index.release(self.owner)
            self._any = False

    def close(self) -> None:
        """Give up all claims and the lock; a later ``take`` begins anew."""
        if self._lock >= 0:
            try:
                self.release()
                files.remove(_path(self._root, self.owner))
            finally:
                if os.getpid() == self._pid:
                    locks.let_go(self._lock)
                else:
                    os.close(self._lock)  # a forked child's copy
                self._lock = -1
        self._pid = os.getpid()


def sweep(root: Path, index: Index) -> None:
    """Forget the claims of all writers; only safe while there are none."""
    with contextlib.suppress(StoreFull):  # claims of the dead are worth nothing, and who makes room comes by here
        index.release(b"")
    for entry in (root / "locks").glob(f"{_PREFIX}*"):
        files.remove(entry)


def _path(root: Path, owner: bytes) -> Path:
    return root / "locks" / f"{_PREFIX}{owner.hex()}"
