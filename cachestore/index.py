"""The index: from key to (shard, row), and small facts worth remembering.

Everything here is derived: deleted or damaged, it is filled again from the shards. Databases: ``keys`` (key → shard number, row),
``shards`` (number → name, fingerprint, rows, bytes), ``numbers`` (name → number), ``specs`` (fingerprint → spec) and ``memo``
(digests of files already read, and the builds they gave).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from cachestore import environment
from cachestore.environment import Environment, Transaction
from cachestore.errors import StoreError, StoreFormatError
from cachestore.keys import SIZE, Fingerprint, Json, Key

FORMAT = 1
_LOCATION = struct.Struct("<II")
_SHARD = struct.Struct("<32s32sIQ")
_NUMBER = struct.Struct(">I")
_NOWHERE = _LOCATION.pack(0xFFFFFFFF, 0xFFFFFFFF)
_DATABASES = (b"keys", b"shards", b"numbers", b"specs", b"memo", b"meta")
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

        def read(txn: Transaction) -> bytes:
            get = txn.get
            return b"".join([get(asked[at], _NOWHERE) for at in order.tolist()])

        found = np.frombuffer(self._read(b"keys", read), "<u4").reshape(-1, 2)
        places = np.flatnonzero([key is not None for key in keys])[order]
        shards, rows = np.full(len(keys), -1, np.int64), np.zeros(len(keys), np.int64)
        known = found[:, 0] != 0xFFFFFFFF
        shards[places[known]], rows[places[known]] = found[known, 0], found[known, 1]
        return Locations(shards, rows)

    def commit(
        self, name: str, fingerprint: Fingerprint, spec: Mapping[str, Json], keys: Sequence[Key], nbytes: int
    ) -> int:
        """Make the rows of a durable shard findable, as one transaction; returns the shard's number.

        A key another shard already holds keeps its place. Committing a shard again changes nothing.
        """
        rows = _tree_order(keys).tolist()
        digest = bytes.fromhex(name)

        def write(txn: Transaction, dbs: Mapping[bytes, Any]) -> int:
            known = txn.get(digest, db=dbs[b"numbers"])
            if known is not None:
                return int(_NUMBER.unpack(known)[0])
            number = int(_NUMBER.unpack(txn.get(b"next-shard", _NUMBER.pack(0), db=dbs[b"meta"]))[0])
            txn.put(b"next-shard", _NUMBER.pack(number + 1), db=dbs[b"meta"])
            txn.put(_NUMBER.pack(number), _SHARD.pack(digest, fingerprint, len(keys), nbytes), db=dbs[b"shards"])
            txn.put(digest, _NUMBER.pack(number), db=dbs[b"numbers"])
            txn.put(fingerprint, json.dumps(spec, sort_keys=True).encode(), db=dbs[b"specs"])
            _place(txn, dbs, number, keys, rows)
            return number

        return self._write(write)

    def drop(self, numbers: Iterable[int]) -> int:
        """Forget shards that are gone, with their keys; returns the keys forgotten. See ``restore``."""
        gone = set(numbers)

        def write(txn: Transaction, dbs: Mapping[bytes, Any]) -> int:
            lost = [key for key, value in txn.cursor(dbs[b"keys"]) if _LOCATION.unpack(value)[0] in gone]
            for key in lost:
                txn.delete(key, db=dbs[b"keys"])
            for number in gone:
                entry = txn.pop(_NUMBER.pack(number), db=dbs[b"shards"])
                if entry is not None:
                    txn.delete(_SHARD.unpack(entry)[0], db=dbs[b"numbers"])
            txn.drop(dbs[b"memo"], delete=False)  # it may recognise files whose rows are no longer all here
            return len(lost)

        return self._write(write)

    def restore(self, number: int, keys: Sequence[Key]) -> None:
        """Add the keys of an indexed shard that have no place: after a drop, those that a shard now gone had held as well."""
        rows = _tree_order(keys).tolist()

        def write(txn: Transaction, dbs: Mapping[bytes, Any]) -> None:
            _place(txn, dbs, number, keys, rows)

        self._write(write)

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

    def spec(self, fingerprint: Fingerprint) -> Mapping[str, Json] | None:
        """The spec of an encoder that has vectors here, else None."""
        value = self._read(b"specs", lambda txn: txn.get(fingerprint))
        return None if value is None else dict(json.loads(bytes(value)))

    def recall(self, key: bytes) -> bytes | None:
        """A remembered fact, or None. Remembering only saves time: an answer must be checkable or derivable again."""
        value = self._read(b"memo", lambda txn: txn.get(key))
        return None if value is None else bytes(value)

    def remember(self, key: bytes, value: bytes) -> None:
        """Remember a fact under a key of at most 511 bytes; does nothing in an index opened for reading."""
        if not self.readonly:
            self._write(lambda txn, dbs: txn.put(key, value, db=dbs[b"memo"]))

    def _read(self, database: bytes, body: Callable[[Transaction], _T]) -> _T:
        return self._current().read(database, body)

    def _write(self, body: Callable[[Transaction, Mapping[bytes, Any]], _T]) -> _T:
        return self._current().write(body)

    def _current(self) -> Environment:
        if self._environment is None:
            raise StoreError(f"The store of {self.folder} was closed. Open it again with cachestore.open_store.")
        if self._environment.pid != os.getpid():  # forked: an LMDB environment must not cross a fork
            self._environment = environment.acquire(self.folder, _DATABASES, writable=not self.readonly)
        return self._environment

    def _check_format(self) -> None:
        number = self._read(b"meta", lambda txn: txn.get(b"format"))
        if number is None and not self.readonly:
            self._write(lambda txn, dbs: txn.put(b"format", str(FORMAT).encode(), db=dbs[b"meta"]))
        elif number is not None and int(bytes(number)) > FORMAT:
            raise StoreFormatError(
                f"The index {self.folder} has format {int(bytes(number))}; this version reads up to {FORMAT}. Upgrade cachestore."
            )


def _place(txn: Transaction, dbs: Mapping[bytes, Any], number: int, keys: Sequence[Key], rows: Sequence[int]) -> None:
    items = [(keys[row], _LOCATION.pack(number, row)) for row in rows]
    txn.cursor(dbs[b"keys"]).putmulti(items, overwrite=False)


def _tree_order(keys: Sequence[Key]) -> NDArray[np.int64]:
    """Positions of keys in the order of the tree: gets and puts that walk its pages in order are several times faster."""
    # the first eight bytes of a digest order it well enough
    return np.argsort(np.frombuffer(b"".join(keys), ">u8")[:: SIZE // 8])
