"""The index: from key to (shard, row), and small facts worth remembering.

Everything here is derived: deleted or damaged, it is filled again from the shards. Databases: ``keys`` (key → shard number, row),
``shards`` (number → name, fingerprint, rows, bytes), ``numbers`` (name → number), ``specs`` (fingerprint → spec), ``claims``
(writer → the keys it encodes just now) and ``memo`` (digests of files already read, and the builds they gave).

A rebuilt index is another folder put in the place of the old one, its next generation; an open Index goes on with it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from cachestore import environment
from cachestore.environment import Environment, Transaction
from cachestore.errors import DamageError, StoreError, StoreFormatError, StoreLocked
from cachestore.keys import SIZE, Fingerprint, Json, Key, split

FORMAT = 1
OWNER_SIZE = 16
_LOCATION = struct.Struct("<II")
_SHARD = struct.Struct("<32s32sIQ")
_NUMBER = struct.Struct(">I")
_NOWHERE = _LOCATION.pack(0xFFFFFFFF, 0xFFFFFFFF)
_DATABASES = (b"keys", b"shards", b"numbers", b"specs", b"claims", b"memo", b"meta")
_BLOCK = 1 << 16
_SLICE = 1 << 13
_UNFINISHED = b"unfinished:"
_MEMO_SECONDS = 5.0
_T = TypeVar("_T")


class Locations(NamedTuple):
    """Where keys lie, in the order asked: shard numbers (n,), -1 where the index has no such key, and rows (n,)."""

    shards: NDArray[np.int64]
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class ShardEntry:
    """What the index knows of a shard."""

    number: int
    name: str
    fingerprint: Fingerprint
    rows: int
    nbytes: int


class Index:
    """The open index of one store. Any number of threads and processes may read; LMDB lets one write at a time."""

    def __init__(self, folder: Path, *, readonly: bool) -> None:
        self.folder = folder
        self.readonly = readonly
        self._environment: Environment | None = environment.acquire(folder, _DATABASES, writable=not readonly)
        try:
            self._check_format()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the environment back; the last user of a path closes it."""
        if self._environment is not None:
            environment.release(self._environment)
            self._environment = None

    def lookup(self, keys: Sequence[Key | None]) -> Locations:
        """One location per key, in the order asked; a key that is None or unknown has shard -1."""
        asked = [key for key in keys if key is not None]
        order = _tree_order(asked)

        def read(txn: Transaction) -> NDArray[np.uint32]:
            get = txn.get
            places = b"".join([get(asked[at], _NOWHERE) for at in order.tolist()])
            return np.frombuffer(places, "<u4").reshape(len(asked), 2)

        found = self._read(b"keys", read)
        places = np.flatnonzero([key is not None for key in keys])[order]
        shards, rows = np.full(len(keys), -1, np.int64), np.zeros(len(keys), np.int64)
        known = found[:, 0] != 0xFFFFFFFF
        shards[places[known]], rows[places[known]] = found[known, 0], found[known, 1]
        return Locations(shards, rows)

    def commit(
        self,
        name: str,
        fingerprint: Fingerprint,
        spec: Mapping[str, Json],
        keys: Sequence[Key],
        nbytes: int,
        *,
        owner: bytes | None = None,
        moved: bool = False,
    ) -> int:
        """Make the rows of a durable shard findable; returns the shard's number.

        A key another shard already holds keeps its place, unless it has ``moved`` here: then all of it is one transaction. Else
        many keys take several, as what is written in one stays in memory until its end; a shard whose writer dies between them
        is ``unfinished``, and committing it again finishes it. Committing a finished one again changes nothing.
        The claims of ``owner`` end with the last transaction.
        """
        rows = _tree_order(keys).tolist()
        size = max(1, len(rows)) if moved else _SLICE
        slices = [rows[at : at + size] for at in range(0, len(rows), size)] or [[]]
        digest, described = bytes.fromhex(name), json.dumps(spec, sort_keys=True).encode()
        unfinished = _UNFINISHED + digest

        def begin(txn: Transaction, dbs: Mapping[bytes, Any]) -> tuple[int, bool]:
            known = txn.get(digest, db=dbs[b"numbers"])
            if known is not None:
                return int(_NUMBER.unpack(known)[0]), moved
            begun = txn.get(unfinished, db=dbs[b"meta"])
            if begun is not None:
                return int(_NUMBER.unpack(begun)[0]), True
            number = int(_NUMBER.unpack(txn.get(b"next-shard", _NUMBER.pack(0), db=dbs[b"meta"]))[0])
            txn.put(b"next-shard", _NUMBER.pack(number + 1), db=dbs[b"meta"])
            txn.put(unfinished, _NUMBER.pack(number), db=dbs[b"meta"])
            # before any of its keys, so that whoever finds one can read it
            txn.put(_NUMBER.pack(number), _SHARD.pack(digest, fingerprint, len(keys), nbytes), db=dbs[b"shards"])
            txn.put(fingerprint, described, db=dbs[b"specs"])
            return number, True

        def write(txn: Transaction, dbs: Mapping[bytes, Any], part: int) -> tuple[int, bool]:
            number, goes_on = begin(txn, dbs)
            if goes_on:
                _place(txn, dbs, number, keys, slices[part], overwrite=moved)
            if not goes_on or part == len(slices) - 1:
                txn.put(digest, _NUMBER.pack(number), db=dbs[b"numbers"])
                txn.delete(unfinished, db=dbs[b"meta"])
                if owner is not None:
                    _release(txn, dbs, owner)
            return number, goes_on

        for part in range(len(slices)):
            number, goes_on = self._write(partial(write, part=part))
            if not goes_on:
                break
        return number

    def unfinished(self) -> set[str]:
        """Names of shards not all of whose keys have been committed: a writer is at it, or died over it."""

        def read(txn: Transaction) -> set[str]:
            cursor, found = txn.cursor(), set()
            there = cursor.set_range(_UNFINISHED)
            while there and bytes(cursor.key()).startswith(_UNFINISHED):
                found.add(bytes(cursor.key())[len(_UNFINISHED) :].hex())
                there = cursor.next()
            return found

        return self._read(b"meta", read)

    def claims(self) -> list[tuple[bytes, bytes]]:
        """All claims: of each the owner's id with a number, and the keys, joined."""
        return self._read(b"claims", lambda txn: [(bytes(row), bytes(held)) for row, held in txn.cursor()])

    def claim(
        self, owner: bytes, keys: Sequence[Key], lives: Callable[[bytes], bool], *, force: bool = False
    ) -> tuple[set[Key], set[Key], dict[bytes, set[Key]]]:
        """Claim keys for a writer, as one transaction: what it has now, what is stored, and what other living writers have claimed.

        ``lives(owner)`` tells whether a writer still runs; claims of the dead are removed. With ``force``, keys that a living one has
        claimed are claimed as well.
        """
        order = _tree_order(keys).tolist()

        def write(txn: Transaction, dbs: Mapping[bytes, Any]) -> tuple[set[Key], set[Key], dict[bytes, set[Key]]]:
            stored = {Key(bytes(key)) for key, _ in txn.cursor(dbs[b"keys"]).getmulti([keys[at] for at in order])}
            mine = set(keys) - stored
            others: dict[bytes, set[Key]] = {}
            dead, last = [], -1
            for row, held in txn.cursor(dbs[b"claims"]):
                holder = bytes(row[:OWNER_SIZE])
                if holder == owner:
                    last = int(_NUMBER.unpack(row[OWNER_SIZE:])[0])
                elif not lives(holder):
                    dead.append(row)
                elif not force and (common := mine & split(bytes(held))):
                    others.setdefault(holder, set()).update(common)
                    mine -= common
            for row in dead:
                txn.delete(row, db=dbs[b"claims"])
            if mine:
                txn.put(owner + _NUMBER.pack(last + 1), b"".join(mine), db=dbs[b"claims"])
            return mine, stored, others

        return self._write(write)

    def release(self, owner: bytes) -> None:
        """Remove the claims of a writer; those of every writer for an empty id."""
        self._write(lambda txn, dbs: _release(txn, dbs, owner))

    def drop(self, numbers: Iterable[int], restored: Mapping[int, Sequence[Key]] | None = None) -> int:
        """Forget shards that are gone, as one transaction; returns how many keys they held.

        ``restored`` has by number the keys of shards that stay: those without a place then get one there.
        """
        gone = set(numbers)

        def write(txn: Transaction, dbs: Mapping[bytes, Any]) -> int:
            lost = [key for key, value in txn.cursor(dbs[b"keys"]) if _LOCATION.unpack(value)[0] in gone]
            for key in lost:
                txn.delete(key, db=dbs[b"keys"])
            for number in gone:
                entry = txn.pop(_NUMBER.pack(number), db=dbs[b"shards"])
                if entry is not None:
                    digest = _SHARD.unpack(entry)[0]
                    txn.delete(digest, db=dbs[b"numbers"])
                    txn.delete(_UNFINISHED + digest, db=dbs[b"meta"])
            for number, keys in (restored or {}).items():
                _place(txn, dbs, number, keys, _tree_order(keys).tolist(), overwrite=False)
            _delete_from(txn, dbs[b"memo"], b"source:")  # it may recognise files whose rows are no longer all here
            return len(lost)

        return self._write(write)

    def count_from(self, number: int) -> None:
        """Give shards committed from now on numbers that begin here, in an index that has none."""
        self._write(lambda txn, dbs: txn.put(b"next-shard", _NUMBER.pack(number), db=dbs[b"meta"]))

    def next_number(self) -> int:
        """The number of the next shard committed; a number is never given again."""
        return int(_NUMBER.unpack(self._read(b"meta", lambda txn: txn.get(b"next-shard", _NUMBER.pack(0))))[0])

    def names(self, numbers: Iterable[int]) -> dict[int, str]:
        """The names of shards by number; a number that the index does not know is left out."""

        def read(txn: Transaction) -> dict[int, str]:
            entries = {number: txn.get(_NUMBER.pack(number)) for number in numbers}
            return {number: _SHARD.unpack(entry)[0].hex() for number, entry in entries.items() if entry is not None}

        return self._read(b"shards", read)

    def shards(self) -> dict[int, ShardEntry]:
        """All indexed shards by number."""

        def read(txn: Transaction) -> dict[int, ShardEntry]:
            entries = {}
            for key, value in txn.cursor():
                number = _NUMBER.unpack(key)[0]
                digest, fingerprint, rows, nbytes = _SHARD.unpack(value)
                entries[number] = ShardEntry(number, digest.hex(), Fingerprint(fingerprint), rows, nbytes)
            return entries

        return self._read(b"shards", read)

    def entries(self) -> Iterator[tuple[NDArray[np.void], Locations]]:
        """All keys (n,) with their places, in the order of the keys, block by block; what changes meanwhile may be there or not."""
        start = b""
        while True:

            def read(txn: Transaction, start: bytes = start) -> tuple[NDArray[np.void], NDArray[np.int64]]:
                cursor = txn.cursor()
                found = list(itertools.islice(cursor, _BLOCK) if cursor.set_range(start) else ())
                places = np.frombuffer(b"".join([place for _, place in found]), "<u4").reshape(len(found), 2)
                return np.frombuffer(b"".join([key for key, _ in found]), f"V{SIZE}"), places.astype(np.int64)

            keys, places = self._read(b"keys", read)
            if len(keys) == 0:
                return
            yield keys, Locations(places[:, 0], places[:, 1])
            start = keys[-1].tobytes() + b"\0"

    def version(self) -> int:
        """A number that grows whenever somebody, in any process, changes the index."""
        return self._on_current(Environment.version)

    def specs(self) -> dict[Fingerprint, Mapping[str, Json]]:
        """The specs of all encoders that had vectors here."""

        def read(txn: Transaction) -> dict[Fingerprint, Mapping[str, Json]]:
            return {Fingerprint(bytes(key)): _spec(value) for key, value in txn.cursor()}

        return self._read(b"specs", read)

    def spec(self, fingerprint: Fingerprint) -> Mapping[str, Json] | None:
        """The spec of an encoder that has vectors here, else None."""

        def read(txn: Transaction) -> Mapping[str, Json] | None:
            value = txn.get(fingerprint)
            return None if value is None else _spec(value)

        return self._read(b"specs", read)

    def recall(self, key: bytes) -> bytes | None:
        """A remembered fact, or None. Remembering only saves time: an answer must be checkable or derivable again."""
        return self.recall_all([key])[0]

    def recall_all(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """As ``recall`` for each of the keys."""

        def read(txn: Transaction) -> list[bytes]:
            return [bytes(txn.get(key) or b"") for key in keys]

        facts = self._read(b"memo", read)
        return [
            fact[8:] if fact[:8] == xxhash.xxh3_64_digest(key + fact[8:]) else None  # a rotten one is none
            for key, fact in zip(keys, facts, strict=True)
        ]

    def remember(self, key: bytes, fact: bytes) -> None:
        """Remember a fact under a key of at most 511 bytes; does nothing in an index opened for reading, or kept busy by another."""
        self.remember_all({key: fact})

    def remember_all(self, facts: Mapping[bytes, bytes]) -> None:
        """As ``remember`` for each of the facts, in one transaction."""
        if not self.readonly:
            values = sorted((key, xxhash.xxh3_64_digest(key + fact) + fact) for key, fact in facts.items())
            with contextlib.suppress(StoreLocked):
                self._write(lambda txn, dbs: txn.cursor(dbs[b"memo"]).putmulti(values), wait=_MEMO_SECONDS)

    def _read(self, database: bytes, body: Callable[[Transaction], _T]) -> _T:
        with self._sound():
            return self._on_current(lambda current: current.read(database, body))

    def _write(
        self, body: Callable[[Transaction, Mapping[bytes, Any]], _T], wait: float = environment.TURN_SECONDS
    ) -> _T:
        with self._sound():
            return self._on_current(lambda current: current.write(body, wait))

    @contextmanager
    def _sound(self) -> Iterator[None]:
        """What cannot be taken apart is damaged: LMDB keeps no checksums."""
        try:
            yield
        except (struct.error, ValueError, KeyError, IndexError) as error:
            raise DamageError(
                f"The index {self.folder} is damaged ({error}). Run `cachestore repair`: it fills a new one from the shards."
            ) from error

    def _on_current(self, use: Callable[[Environment], _T]) -> _T:
        while True:
            current = self._current()
            try:
                return use(current)
            except environment.Closed:
                if self._environment is current:
                    raise  # nobody replaced it

    def _current(self) -> Environment:
        """The environment of this process and of the newest generation."""
        with environment.open_guard:
            current = self._environment
            if current is None:
                raise StoreError(f"The store of {self.folder} was closed. Open it again with cachestore.open_store.")
            forked = current.pid != os.getpid()  # an LMDB environment must not cross a fork
            if forked or current.moved():
                self._environment = environment.acquire(self.folder, _DATABASES, writable=not self.readonly)
                if not forked:
                    environment.release(current)
            return self._environment or current

    def _check_format(self) -> None:
        number = self._read(b"meta", lambda txn: txn.get(b"format"))
        if number is None and not self.readonly:
            self._write(lambda txn, dbs: txn.put(b"format", str(FORMAT).encode(), db=dbs[b"meta"]))
        elif number is not None and int(bytes(number)) > FORMAT:
            raise StoreFormatError(
                f"The index {self.folder} has format {int(bytes(number))}; this version reads up to {FORMAT}. Upgrade cachestore."
            )


def _spec(value: Any) -> Mapping[str, Json]:
    found = json.loads(bytes(value))
    if not isinstance(found, dict):
        raise ValueError("a spec is not a mapping")
    return found


def _place(
    txn: Transaction,
    dbs: Mapping[bytes, Any],
    number: int,
    keys: Sequence[Key],
    rows: Sequence[int],
    *,
    overwrite: bool,
) -> None:
    places = np.empty((len(rows), 2), "<u4")
    places[:, 0], places[:, 1] = number, rows
    packed = places.view(f"V{_LOCATION.size}").ravel().tolist()
    txn.cursor(dbs[b"keys"]).putmulti(zip(map(keys.__getitem__, rows), packed, strict=True), overwrite=overwrite)


def _release(txn: Transaction, dbs: Mapping[bytes, Any], owner: bytes) -> None:
    _delete_from(txn, dbs[b"claims"], owner)


def _delete_from(txn: Transaction, database: Any, prefix: bytes) -> None:
    """Delete what has a key with that prefix; everything for an empty one."""
    cursor = txn.cursor(database)
    found = cursor.set_range(prefix) if prefix else cursor.first()
    while found and bytes(cursor.key()).startswith(prefix):
        found = cursor.delete()  # moves to the next


def _tree_order(keys: Sequence[Key]) -> NDArray[np.int64]:
    """Positions of keys in the order of the tree: gets and puts that walk its pages in order are several times faster."""
    # the first eight bytes of a digest order it well enough
    return np.argsort(np.frombuffer(b"".join(keys), ">u8")[:: SIZE // 8])
