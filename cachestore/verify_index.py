"""Checking the index against the shards, in both directions, and keys of manifests against both. Bounded in memory."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from cachestore import files, shard
from cachestore.errors import DamageError
from cachestore.findings import Findings
from cachestore.index import Index, ShardEntry
from cachestore.keys import Fingerprint, fingerprint
from cachestore.shard import Shard
from cachestore.verify_shards import REPAIR, Shards, place

_BLOCK = 1 << 16
REBUILD = "Run `cachestore repair`: it fills a new index from the shards."


RIGHT, ABSENT, MISPLACED, UNREADABLE, FOREIGN = range(5)
"""A key is where the index says; the index lacks it; it points to where the key is not; the shard or row there is damaged or gone;
the shard is of another encoder or dimension."""


class IndexCheck:
    """The index of a store beside its shards. Builders and collectors may be at work: what looks wrong is looked at again."""

    def __init__(self, index: Index, shards: Shards, findings: Findings) -> None:
        self._index = index
        self._shards = shards
        self._findings = findings
        self.entries = index.shards()

    def places(
        self, keys: NDArray[np.void], encoder: Fingerprint | None = None, dim: int | None = None
    ) -> tuple[NDArray[np.uint8], set[str]]:
        """RIGHT or what is wrong with each key (n,), and the names of the shards asked."""
        states, names = self._look(keys, encoder, dim)
        again = np.flatnonzero(states != RIGHT)
        if len(again):  # it may have been moved or dropped since it was looked up
            self.entries = self._index.shards()
            states[again], more = self._look(keys[again], encoder, dim)
            names |= more
        return states, names

    def _look(
        self, keys: NDArray[np.void], encoder: Fingerprint | None, dim: int | None
    ) -> tuple[NDArray[np.uint8], set[str]]:
        found = self._index.lookup(keys.tolist())
        states = np.full(len(keys), ABSENT, np.uint8)
        names = set()
        order = np.argsort(found.shards, kind="stable")
        numbers, starts = np.unique(found.shards[order], return_index=True)
        for number, at in zip(numbers.tolist(), np.split(order, starts[1:]) if len(order) else [], strict=True):
            if number < 0:
                continue
            if number not in self.entries:  # committed since
                self.entries = self._index.shards()
            entry = self.entries.get(number)
            if entry is None:
                states[at] = MISPLACED
                continue
            names.add(entry.name)
            opened = self._shards.open(entry.name)
            if opened is None:
                states[at] = UNREADABLE
            elif encoder is not None and (encoder, dim) != (opened.fingerprint, opened.vectors.shape[1]):
                states[at] = FOREIGN
            else:
                states[at] = self._at_rows(opened, keys[at], found.rows[at])
        return states, names

    def _at_rows(self, opened: Shard, keys: NDArray[np.void], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        states = np.full(len(keys), MISPLACED, np.uint8)
        within = np.flatnonzero(rows < len(opened.keys))
        states[within[opened.keys[rows[within]] == keys[within]]] = RIGHT
        faulty = self._shards.faulty.get(opened.name)
        if faulty is not None:
            states[np.isin(rows, faulty)] = UNREADABLE
        return states

    def check_entries(self, only: set[str] | None = None) -> None:
        """What the index says of each shard, or of ``only`` those, beside what their files say."""
        specs = self._index.specs()
        for entry in list(self.entries.values()):
            if only is None or entry.name in only:
                self._check_entry(entry)
        used = {entry.fingerprint for entry in self.entries.values()}
        for identity in used:
            if identity not in specs or fingerprint(specs[identity]) != identity:
                self._damaged(
                    f"Its spec of encoder {identity.hex()[:12]} is missing or not the one of that fingerprint."
                )
        if self.entries and max(self.entries) >= self._index.next_number():
            self._damaged("It would give a number to a second shard.")

    def _check_entry(self, entry: ShardEntry) -> None:
        path = self._shards.path(entry.name)
        try:
            size = path.lstat().st_size
        except FileNotFoundError:
            if entry.number in self._index.shards():
                rows = f"{entry.rows:,} rows"
                self._findings.damage("shard", place(entry.name), f"The file is gone, and with it {rows}.", REPAIR)
                self._shards.unreadable.add(entry.name)
            return
        if size != entry.nbytes:
            self._shards.give_up(entry.name, f"It has {size:,} bytes instead of {entry.nbytes:,}.")
            return
        opened = self._shards.open(entry.name)
        if opened is not None and (opened.fingerprint, len(opened.keys)) != (entry.fingerprint, entry.rows):
            self._damaged(f"It says other things of shard {entry.name[:12]} than its file.")

    def check_both_ways(self) -> None:
        """Every row of every shard is in the index, and every key of the index is at a row that holds it."""
        right: Counter[int] = Counter()
        for entry in list(self.entries.values()):
            right[entry.number] = self._check_rows(entry)
        held: Counter[int] = Counter()
        for _, found in self._index.entries():
            numbers, counts = np.unique(found.shards, return_counts=True)
            held.update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))
        suspect = {number for number, count in held.items() if right[number] != count}
        if suspect:
            self._check_keys(suspect)

    def _check_rows(self, entry: ShardEntry) -> int:
        """How many keys the index has at their row in this shard. A key can be at another shard that holds it as well."""
        opened = self._shards.open(entry.name)
        if opened is None:
            return 0
        here = lost = 0
        for start in range(0, len(opened.keys), _BLOCK):
            keys = opened.keys[start : start + _BLOCK]
            found = self._index.lookup(keys.tolist())
            here += int(((found.shards == entry.number) & (found.rows == np.arange(start, start + len(keys)))).sum())
            absent = keys[found.shards < 0]
            if len(absent) and entry.number in self._index.shards():  # else it was collected meanwhile
                lost += int((self._index.lookup(absent.tolist()).shards < 0).sum())
        if lost and entry.number in self._index.shards():
            self._damaged(f"It lacks {lost:,} of the {len(opened.keys):,} keys of shard {entry.name[:12]}.")
        return here

    def _check_keys(self, suspect: set[int]) -> None:
        """The keys that the index has at those shards, one by one."""
        numbers = np.array(sorted(suspect))
        wrong = 0
        for keys, found in self._index.entries():
            states, _ = self.places(keys[np.isin(found.shards, numbers)])
            wrong += int((states == MISPLACED).sum())
        if wrong:
            self._damaged(f"{wrong:,} of its keys are at rows that do not hold them.")

    def check_unindexed(self) -> None:
        """Shards on disk that the index does not know: a killed build leaves one, and the next indexes it."""
        on_disk = files.content_sizes(self._shards.root, shard.FOLDER, shard.SUFFIX)
        self.entries = self._index.shards()
        for name in sorted(on_disk.keys() - {entry.name for entry in self.entries.values()}):
            try:
                sound = shard.sound(self._shards.root, name)
            except FileNotFoundError:
                continue
            except DamageError:
                sound = False
            if not sound:
                self._shards.report(
                    name, "It is not indexed, and its bytes are not those that its name is the SHA-256 of."
                )
            elif self._shards.open(name) is not None:
                self._findings.notice("leftover", place(name), "It is not indexed yet.", "The next build does so.")

    def _damaged(self, detail: str) -> None:
        self._findings.damage("index", "index", detail, REBUILD)
