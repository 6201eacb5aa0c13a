"""The index: LMDB from key to (shard, row), and small facts worth remembering. The only module that imports lmdb.

Everything here is derived: deleted or damaged, it is filled again from the shards. Databases: ``keys`` (key → shard number, row),
``shards`` (number → name, fingerprint, rows, bytes), ``specs`` (fingerprint → spec) and ``memo`` (digests of files already read).
"""

from __future__ import annotations

import errno
import json
import os
import struct
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import lmdb
import numpy as np
from numpy.typing import NDArray

from cachestore import files
from cachestore.errors import DamageError, StoreError, StoreFormatError, StoreFull, StoreNotWritable, StoreWriteFailed
from cachestore.keys import SIZE, Fingerprint, Json, Key

FORMAT = 1
_FIRST_MAP_SIZE = 1 << 28  # grows by doubling; address space only, the file holds what is used
_LOCATION = struct.Struct("<II")
_SHARD = struct.Struct("<32s32sIQ")
_NUMBER = struct.Struct(">I")
_NOWHERE = _LOCATION.pack(0xFFFFFFFF, 0xFFFFFFFF)
_DATABASES = (b"keys", b"shards", b"specs", b"memo", b"meta")
_DAMAGED = (lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageNotFoundError, lmdb.VersionMismatchError, lmdb.PanicError)

# LMDB forbids opening one environment twice in a process, so every Index of a path shares it, counted
_open: dict[str, _Environment] = {}
_open_guard = threading.Lock()
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


@dataclass
class _Environment:
    lmdb: lmdb.Environment
    databases: Mapping[bytes, Any]
    readonly: bool
    pid: int
    users: int = 0


class Index:
    """The open index of one store. Any number of threads and processes may read; LMDB lets one write at a time."""

    def __init__(self, folder: Path, *, readonly: bool) -> None:
        self.folder = folder
        self.readonly = readonly
        self._environment: _Environment | None = _acquire(folder, readonly)

    def close(self) -> None:
        """Give the environment back; the last user of a path closes it."""
        if self._environment is not None:
            _release(self.folder, self._environment)
            self._environment = None

    def lookup(self, keys: Sequence[Key | None]) -> Locations:
        """One location per key, in the order asked; a key that is None or unknown has shard -1."""
        asked = [key for key in keys if key is not None]
        order = _tree_order(asked)

        def read(txn: lmdb.Transaction) -> bytes:
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

        def write(txn: lmdb.Transaction, dbs: Mapping[bytes, Any]) -> int:
            for known, value in txn.cursor(dbs[b"shards"]):
                if _SHARD.unpack(value)[0] == digest:
                    return int(_NUMBER.unpack(known)[0])
            number = int(_NUMBER.unpack(txn.get(b"next-shard", _NUMBER.pack(0), db=dbs[b"meta"]))[0])
            txn.put(b"next-shard", _NUMBER.pack(number + 1), db=dbs[b"meta"])
            txn.put(_NUMBER.pack(number), _SHARD.pack(digest, fingerprint, len(keys), nbytes), db=dbs[b"shards"])
            txn.put(fingerprint, json.dumps(spec, sort_keys=True).encode(), db=dbs[b"specs"])
            txn.cursor(dbs[b"keys"]).putmulti(
                [(keys[row], _LOCATION.pack(number, row)) for row in rows], overwrite=False
            )
            return number

        return self._write(write)

    def drop(self, numbers: Iterable[int]) -> int:
        """Forget shards that are gone, with their keys; returns the keys forgotten."""
        gone = set(numbers)

        def write(txn: lmdb.Transaction, dbs: Mapping[bytes, Any]) -> int:
            lost = [key for key, value in txn.cursor(dbs[b"keys"]) if _LOCATION.unpack(value)[0] in gone]
            for key in lost:
                txn.delete(key, db=dbs[b"keys"])
            for number in gone:
                txn.delete(_NUMBER.pack(number), db=dbs[b"shards"])
            txn.drop(dbs[b"memo"], delete=False)  # it may recognise files whose rows are no longer all here
            return len(lost)

        return self._write(write)

    def shards(self) -> dict[int, ShardEntry]:
        """All indexed shards by number."""

        def read(txn: lmdb.Transaction) -> dict[int, ShardEntry]:
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

    def _read(self, database: bytes, body: Callable[[lmdb.Transaction], _T]) -> _T:
        environment = self._current()
        try:
            with _resized(environment, environment.databases[database]) as txn:
                return body(txn)
        except lmdb.Error as error:
            raise _translate(error, self.folder) from error

    def _write(self, body: Callable[[lmdb.Transaction, Mapping[bytes, Any]], _T]) -> _T:
        environment = self._current()
        while True:
            try:
                with environment.lmdb.begin(write=True) as txn:
                    return body(txn, environment.databases)
            except lmdb.MapFullError:
                environment.lmdb.set_mapsize(environment.lmdb.info()["map_size"] * 2)
            except lmdb.MapResizedError:
                environment.lmdb.set_mapsize(0)  # another process grew it; take over its size
            except lmdb.Error as error:
                raise _translate(error, self.folder) from error

    def _current(self) -> _Environment:
        if self._environment is None:
            raise StoreError(f"The store of {self.folder} was closed. Open it again with cachestore.open_store.")
        if self._environment.pid != os.getpid():  # forked: an LMDB environment must not cross a fork
            self._environment = _acquire(self.folder, self.readonly)
        return self._environment


def looks_torn(folder: Path) -> bool:
    """Whether data.mdb is shorter than its newest meta page says, or is no LMDB file at all: reading it could end the process.

    Never called while this process has the environment open: closing a file drops the process's LMDB locks.
    """
    if str(folder) in _open:
        return False
    try:
        data = folder.joinpath("data.mdb")
        size = data.stat().st_size
        with data.open("rb") as file:
            first = file.read(16 + 136)
            page = struct.unpack_from("<I", first, 40)[0] if len(first) == 152 else 0
            if not 512 <= page <= 65536:
                return True
            file.seek(page)
            metas = [first, file.read(16 + 136)]
    except FileNotFoundError:
        return False
    if any(len(meta) < 152 or struct.unpack_from("<I", meta, 16)[0] != 0xBEEFC0DE for meta in metas):
        return True
    last_page = max(struct.unpack_from("<QQ", meta, 136)[::-1] for meta in metas)[1]
    return bool(size < (last_page + 1) * page)


def _tree_order(keys: Sequence[Key]) -> NDArray[np.int64]:
    """Positions of keys in the order of the tree: gets and puts that walk its pages in order are several times faster."""
    # the first eight bytes of a digest order it well enough
    return np.argsort(np.frombuffer(b"".join(keys), ">u8")[:: SIZE // 8])


def _acquire(folder: Path, readonly: bool) -> _Environment:
    with _open_guard:
        environment = _open.get(str(folder))
        if environment is not None and environment.pid != os.getpid():
            environment.lmdb.close()  # this process's copy of the parent's, which must not be used; the parent's stays open
            environment = None
        if environment is not None and environment.readonly and not readonly:
            raise StoreError(
                f"{folder} is open for reading in this process. Close that store before opening it for writing."
            )
        if environment is None:
            environment = _open_environment(folder, readonly)
            _open[str(folder)] = environment
        environment.users += 1
        return environment


def _release(folder: Path, environment: _Environment) -> None:
    with _open_guard:
        environment.users -= 1
        if environment.users == 0 and environment.pid == os.getpid():
            environment.lmdb.close()
            if _open.get(str(folder)) is environment:
                del _open[str(folder)]


def _open_environment(folder: Path, readonly: bool) -> _Environment:
    if not readonly:
        files.make_folder(folder)
    # a reader without write permission cannot register in the lock file; its short transactions are safe without
    lock = os.access(folder, os.W_OK)
    try:
        environment = lmdb.open(
            str(folder),
            map_size=_FIRST_MAP_SIZE,
            max_dbs=8,
            readonly=readonly,
            lock=lock,
            readahead=False,
            max_readers=1024,
            mode=0o644,
        )
        if lock:
            environment.reader_check()  # frees the slots of killed readers
        databases = {name: environment.open_db(name, create=not readonly) for name in _DATABASES}
        _check_format(environment, databases[b"meta"], folder, readonly)
    except lmdb.Error as error:
        raise _translate(error, folder) from error
    return _Environment(environment, databases, readonly, os.getpid())


def _check_format(environment: lmdb.Environment, meta: Any, folder: Path, readonly: bool) -> None:
    with environment.begin(db=meta) as txn:
        number = txn.get(b"format")
    if number is None and not readonly:
        with environment.begin(write=True, db=meta) as txn:
            txn.put(b"format", str(FORMAT).encode())
    elif number is not None and int(number) > FORMAT:
        environment.close()
        raise StoreFormatError(
            f"The index {folder} has format {int(number)}; this version reads up to {FORMAT}. Upgrade cachestore."
        )


def _resized(environment: _Environment, database: Any) -> lmdb.Transaction:
    while True:
        try:
            return environment.lmdb.begin(db=database)
        except lmdb.MapResizedError:
            environment.lmdb.set_mapsize(0)


def _translate(error: lmdb.Error, folder: Path) -> Exception:
    if isinstance(error, lmdb.NotFoundError) or "No such file" in str(error):
        return DamageError(
            f"{folder} holds no index yet. Open the store for writing once: it fills the index from the shards."
        )
    if isinstance(error, _DAMAGED):
        return DamageError(
            f"The index {folder} is damaged ({error}). Delete that folder: the next build fills it again from the shards."
        )
    if isinstance(error, lmdb.DiskError):
        code = errno.ENOSPC if "No space" in str(error) else errno.EIO
        return files.translate(OSError(code, str(error)), folder)
    if isinstance(error, lmdb.ReadonlyError | lmdb.LockError) or "denied" in str(error) or "Read-only" in str(error):
        return StoreNotWritable(
            f"Cannot write the index {folder} ({error}). Open the store for reading, or change its permissions."
        )
    if "No space" in str(error):
        return StoreFull(
            f"No space to write the index {folder} ({error}). Free some space and run again; what was stored is intact."
        )
    return StoreWriteFailed(
        f"The index {folder} cannot be used ({error}). Delete that folder: the next build fills it again."
    )
