"""Checking the index against the shards, in both directions, and keys of manifests against both. Bounded in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachestore import layout, shard
from cachestore.errors import DamageError
from cachestore.findings import Findings
from cachestore.index import Index, ShardEntry
from cachestore.index_file import NODE, Examined
from cachestore.keys import Fingerprint, fingerprint, prefixes
from cachestore.shard import Shard
from cachestore.verify_shards import Shards, place

_BLOCK = 1 << 16
_PART = 1 << 22  # some 300 MB
_LAST = (1 << 64) - 1
REBUILD = "Run `cachestore repair`: it fills a new index from the shards."


RIGHT, ABSENT, MISPLACED, UNREADABLE, FOREIGN = range(5)
"""A key is where the index says; the index lacks it; it points to where the key is not; the shard or row there is damaged or gone;
the shard is of another encoder or dimension."""


@dataclass(frozen=True)
class Part:
    """The keys of the index in a range of their first eight bytes, from ``first`` to ``last`` inclusive, in their order."""

    first: int
    last: int
    keys: NDArray[np.void]
    prefixes: NDArray[np.uint64]
    right: NDArray[np.bool_]
    numbers: NDArray[np.uint32]
    """of the shards, sorted"""
    shards: NDArray[np.uint32]
    """the number of the shard of each key"""
    index: IndexCheck

    def states(self, keys: NDArray[np.void], encoder: Fingerprint, dim: int) -> tuple[NDArray[np.uint8], set[str]]:
        """As ``IndexCheck.places``, for keys (n,) of this range; only what is not RIGHT here is looked up."""
        states = np.full(len(keys), ABSENT, np.uint8)
        names: set[str] = set()
        if len(self.keys):
            wanted = prefixes(keys)
            order = np.argsort(wanted)  # in their order, the searches stay in the processor's cache
            at = np.empty(len(keys), np.int64)
            at[order] = np.minimum(np.searchsorted(self.prefixes, wanted[order]), len(self.keys) - 1)
            fits, called = self.index.of_encoder(self.numbers, encoder, dim)
            place = np.searchsorted(self.numbers, self.shards[at])
            states[(self.keys[at] == keys) & self.right[at] & fits[place]] = RIGHT
            used = np.bincount(place[states == RIGHT], minlength=len(self.numbers))
            names = {called[number] for number in np.flatnonzero(used).tolist()}
        rest = np.flatnonzero(states != RIGHT)
        if len(rest):
            states[rest], more = self.index.places(keys[rest], encoder, dim)
            names |= more
        return states, names


class IndexCheck:
    """The index of a store beside its shards. Builders and collectors may be at work: what looks wrong is looked at again."""

    def __init__(self, index: Index, shards: Shards, findings: Findings) -> None:
        self._index = index
        self._shards = shards
        self._findings = findings
        self.entries = index.shards()
        self._dims: dict[str, tuple[Fingerprint, int]] = {}

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
        states[within[_at(opened.keys, rows[within]) == _at(keys, within)]] = RIGHT
        faulty = self._shards.faulty.get(opened.name)
        if faulty is not None:
            states[np.isin(rows, faulty)] = UNREADABLE
        return states

    def of_encoder(
        self, numbers: NDArray[np.uint32], encoder: Fingerprint, dim: int
    ) -> tuple[NDArray[np.bool_], list[str]]:
        """Which of the shards hold vectors of that encoder and dimension, and what their names are."""
        names = [entry.name if (entry := self.entries.get(number)) else "" for number in numbers.tolist()]
        fits = np.zeros(len(numbers), np.bool_)
        for at, name in enumerate(names):
            found = self._dims.get(name)
            if name and found is None and (opened := self._shards.open(name)) is not None:
                found = self._dims[name] = (opened.fingerprint, opened.vectors.shape[1])
            fits[at] = found == (encoder, dim)
        return fits, names

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
                self._shards.miss(entry.name, f"{entry.rows:,} rows")
            return
        if size != entry.nbytes:
            self._shards.give_up(entry.name, f"It has {size:,} bytes instead of {entry.nbytes:,}.")
            return
        opened = self._shards.open(entry.name)
        if opened is not None and (opened.fingerprint, len(opened.keys)) != (entry.fingerprint, entry.rows):
            self._damaged(f"It says other things of shard {entry.name[:12]} than its file.")

    def parts(self, examined: Examined) -> Iterator[Part]:
        """The whole index, a range of keys after the other, each key compared with the row it is said to be at.

        When all were taken, rows of shards that no key of the index is at are looked up: another shard may hold them as well.
        """
        covered: dict[str, NDArray[np.uint8]] = {}
        first, waiting, count = 0, [], 0
        for block in examined.blocks():
            waiting.append(block)
            count += len(block)
            if count >= _PART:
                part = self._part(first, waiting, covered)
                yield part
                first, waiting, count = part.last + 1, [], 0
        yield self._part(first, waiting, covered, last=_LAST)
        for entry in list(self.entries.values()):
            self._check_rows(entry, covered.pop(entry.name, None))

    def _part(
        self, first: int, blocks: list[NDArray[Any]], covered: dict[str, NDArray[np.uint8]], last: int | None = None
    ) -> Part:
        joined = np.concatenate([*blocks, np.empty(0, NODE)])
        keys, shards = np.ascontiguousarray(joined["key"]), np.ascontiguousarray(joined["shard"])
        rows = joined["row"].astype(np.int64)
        right = np.zeros(len(keys), np.bool_)
        # numbers of 16 bits are sorted ten times as fast
        small = shards.max(initial=0) < 1 << 16
        order = np.argsort(shards.astype(np.uint16) if small else shards, kind="stable")
        numbers, starts = _runs(shards[order])
        for number, at in zip(numbers.tolist(), np.split(order, starts[1:]) if len(order) else [], strict=True):
            entry = self.entries.get(number)
            opened = self._shards.open(entry.name) if entry else None
            if opened is not None:
                right[at] = self._at_rows(opened, _at(keys, at), rows[at]) == RIGHT
                bits = np.zeros(len(opened.keys), np.bool_)
                bits[rows[at[right[at]]]] = True
                covered[opened.name] = np.packbits(bits) | covered.get(opened.name, np.uint8(0))
        wrong = int((self.places(keys[~right])[0] == MISPLACED).sum())
        if wrong:
            self._damaged(f"{wrong:,} of its keys are at rows that do not hold them.")
        if (keys[1:] == keys[:-1]).any():
            self._damaged("It holds a key twice.")
        first_bytes = prefixes(keys)
        last = (int(first_bytes[-1]) if len(keys) else first) if last is None else last
        return Part(first, last, keys, first_bytes, right, numbers, shards, self)

    def _check_rows(self, entry: ShardEntry, covered: NDArray[np.uint8] | None) -> None:
        """Look up the rows that no key of the index is at; ``covered`` are the bits of the others."""
        opened = self._shards.open(entry.name)
        if opened is None:
            return
        if entry.name in self._index.unfinished():  # its writer is at it; where he died, the next one goes on
            self._findings.notice(
                "leftover", place(entry.name), "It is not wholly indexed yet.", "The next build does so."
            )
            return
        lost, count = 0, len(opened.keys)
        rest = np.arange(count) if covered is None else np.flatnonzero(np.unpackbits(covered, count=count) == 0)
        for start in range(0, len(rest), _BLOCK):
            found = self._index.lookup(opened.keys[rest[start : start + _BLOCK]].tolist())
            lost += int((found.shards < 0).sum())
        if lost and entry.number in self._index.shards():  # else it was collected meanwhile
            self._damaged(f"It lacks {lost:,} of the {len(opened.keys):,} keys of shard {entry.name[:12]}.")

    def check_unindexed(self) -> None:
        """Shards on disk that the index does not know: a killed build leaves one, and the next indexes it."""
        on_disk = layout.content_sizes(self._shards.root, shard.FOLDER, shard.SUFFIX)
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


def _at(keys: NDArray[np.void], places: NDArray[np.int64]) -> NDArray[np.void]:
    """``keys[places]``; as numbers they are fetched four times as fast."""
    numbers = np.ascontiguousarray(keys).view(np.uint64).reshape(-1, keys.itemsize // 8)
    return numbers.take(places, axis=0).view(keys.dtype).ravel()


def _runs(values: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The distinct values of a sorted array, and where each begins."""
    starts = (
        np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])) if len(values) else np.empty(0, np.int64)
    )
    return values[starts], starts
