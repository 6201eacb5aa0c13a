"""LMDB as this project uses it: one environment a process and path, a map that grows, errors in the store's words.

The only module that imports lmdb. Transactions are short: ``read`` and ``write`` run a function inside one and end it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import lmdb

from cachestore import files, locks
from cachestore.errors import (
    CachestoreError,
    DamageError,
    StoreError,
    StoreFormatError,
    StoreFull,
    StoreLocked,
    StoreNotWritable,
    StoreWriteFailed,
)

_LMDB_VERSION = 0  # files of LMDB 0.9, which every tool reads; those of 1.0 are another format
_MAGIC = bytes.fromhex("dec0efbe")
_MAP_SIZE = 1 << 36  # 64 GiB of address space, so that it hardly ever grows; the file holds what is used
_DAMAGED = (
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.BadChecksumError,
    lmdb.ProblemError,
    lmdb.BadTxnError,  # what LMDB says once a page it met made no sense
    lmdb.BadDbiError,
    lmdb.IncompatibleError,
    lmdb.CursorFullError,
)
# LMDB passes errors of the system on by their text, most of them as plain lmdb.Error
_OF_THE_SYSTEM = (
    *(errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
)
_PADDING = 1 << 20
_TURN = "turn.lock"
TURN_SECONDS = 60.0
_HARDLY_ANY_BYTES = 1 << 16
_MAX_READERS = 1024
_LOCK_BYTES = (_MAX_READERS + 64) * 64  # LMDB has 64 bytes for each, and a head
_BUSY = (lmdb.ReadersFullError, lmdb.LockError, lmdb.TlsFullError)
_NOWHERE = (-1, -1)
_T = TypeVar("_T")
Transaction: TypeAlias = lmdb.Transaction

# LMDB forbids opening one environment twice in a process, under whatever path: keyed by device and inode of its folder
_open: dict[tuple[int, int], Environment] = {}
open_guard = threading.RLock()  # held over a fork, so that no child finds it taken for ever


class Environment:
    """An open LMDB environment, shared by all who open its folder in this process. Use ``acquire`` and ``release``."""

    def __init__(self, folder: Path, databases: Sequence[bytes], *, writable: bool) -> None:
        self.folder = folder
        self.pid = os.getpid()
        self.users = 0
        self.closed = False
        self._gate = _Gate()
        self._names = tuple(databases)
        self._start(writable)

    def _start(self, writable: bool) -> None:
        folder = self.folder
        self.writable = writable
        # who may not write cannot register as a reader either, and checks afterwards whether a writer was in the way
        self._registers = os.access(folder, os.W_OK) and self._room_for_readers(folder, writable)
        try:
            try:
                self._lmdb = self._open(_MAP_SIZE)
            except lmdb.MemoryError:  # address space is limited here (ulimit -v); it grows when it must
                self._lmdb = self._open(_MAP_SIZE >> 8)
        except lmdb.Error as error:
            raise _translate(error, folder) from error
        try:
            if self._lmdb.lib_version()[0] != _LMDB_VERSION:
                raise StoreFormatError(
                    f"The index {folder} is of another LMDB format. Upgrade cachestore; nothing was changed."
                )
            if self._registers:
                self._lmdb.reader_check()  # frees the slots of killed readers
            self._databases = self._open_databases()
            self._page = int(self._lmdb.stat()["psize"])
            if writable and self._registers:
                self._pad()
            self.identity = _identity(folder)
            if writable:
                files.sync_folder(folder)  # LMDB syncs what it writes, but not that the file is there
        except BaseException as error:
            self._lmdb.close()  # or LMDB would say ever after that it is open
            if isinstance(error, lmdb.Error):
                raise _translate(error, folder) from error
            raise

    def read(self, database: bytes, body: Callable[[Transaction], _T]) -> _T:
        """What ``body`` returns of a read transaction on one database. It may run more than once."""
        while True:
            try:
                with self._inside(), self._lmdb.begin(db=self._databases[database]) as txn:
                    found = body(txn)
                    if self._registers or self._lmdb.info()["last_txnid"] <= txn.id() + 1:
                        return found  # else pages may have been reused under a reader that nobody knew of
            except lmdb.MapResizedError:
                self._resize(0)  # another process grew it; take over its size
            except lmdb.Error as error:
                raise _translate(error, self.folder) from error

    def write(self, body: Callable[[Transaction, Mapping[bytes, Any]], _T], wait: float = TURN_SECONDS) -> _T:
        """What ``body`` returns of a write transaction over all databases, durable when this returns. It may run more than once.

        Raises StoreLocked when another process is still inside one after ``wait`` seconds. LMDB's own lock would wait for ever, and
        not even for a signal.
        """
        while True:
            try:
                with self._inside(), locks.turn(self.folder / _TURN, wait):
                    self._lmdb.reader_check()  # one that died inside a transaction would keep every page from being used again
                    with self._lmdb.begin(write=True) as txn:
                        done = body(txn, self._databases)
                    self._pad()
                    return done
            except lmdb.MapFullError:
                self._resize(self._lmdb.info()["map_size"] * 2)
            except lmdb.MapResizedError:
                self._resize(0)
            except lmdb.Error as error:
                raise _translate(error, self.folder) from error

    def _open_databases(self) -> dict[bytes, Any]:
        """The handles of the named databases. LMDB gives them out in a write, but for an environment that is open for reading."""
        if not self.writable or not self._registers:
            return {name: self._lmdb.open_db(name, create=False) for name in self._names}
        with locks.turn(self.folder / _TURN, TURN_SECONDS), self._lmdb.begin(write=True) as txn:
            return {name: self._lmdb.open_db(name, txn=txn) for name in self._names}

    def _open(self, map_size: int) -> lmdb.Environment:
        return lmdb.open(
            str(self.folder),
            map_size=map_size,
            max_dbs=len(self._names),
            readonly=not (self._registers and self.writable),
            lock=self._registers,
            readahead=False,
            max_readers=_MAX_READERS,
            mode=0o666,
        )

    def version(self) -> int:
        """A number that grows with every transaction that changed something, of any process."""
        with self._inside():
            return int(self._lmdb.info()["last_txnid"])

    def moved(self) -> bool:
        """Whether another folder lies at its path now: a new generation of the index."""
        return _identity(self.folder) not in (self.identity, _NOWHERE)

    @staticmethod
    def _room_for_readers(folder: Path, writable: bool) -> bool:
        """Whether the table of readers has its place on disk: LMDB maps it, and a page that cannot be given one ends the process."""
        try:
            files.reserve(folder / "lock.mdb", _LOCK_BYTES, create=writable)
        except StoreFull:
            if writable:
                raise
            return False
        return True

    def close(self) -> None:
        """Close it for everybody in this process, once no thread is inside a transaction."""
        with self._gate.alone():
            self.closed = True
            self._lmdb.close()

    def make_writable(self) -> None:
        """Open it anew for writing, for those too who have it open for reading."""
        with self._gate.alone():
            self._lmdb.close()
            try:
                self._start(writable=True)
            except BaseException:
                self._start(writable=False)
                raise

    def hold(self) -> None:
        """Keep all other threads out of transactions until ``let_go``."""
        self._gate.hold()

    def let_go(self) -> None:
        self._gate.let_go()

    def abandon(self) -> None:
        """Close a forked child's copy: threads that were inside a transaction are not here to leave it."""
        self.closed = True
        self._lmdb.close()

    @contextmanager
    def _inside(self) -> Iterator[None]:
        with self._gate.shared():
            if self.closed:
                raise Closed(f"The index {self.folder} was closed.")
            yield

    def _pad(self) -> None:
        """Keep the file some pages longer than what LMDB uses of it.

        In a damaged page an offset of 16 bits can lead up to 64 KiB past the page. LMDB does not check it: past the end of the file
        it would be a signal that ends the process, within the file it is a wrong value, which the shard's own keys and checks find.
        """
        data = self.folder / "data.mdb"
        pages = (1 << 16) // self._page + 1
        if data.stat().st_size >= (self._lmdb.info()["last_pgno"] + 1 + pages) * self._page:
            return
        # nobody grows the file meanwhile, so this never cuts it; as a hole it takes no space
        with contextlib.suppress(OSError, lmdb.Error), self._lmdb.begin(write=True):
            os.truncate(data, (self._lmdb.info()["last_pgno"] + 1 + pages) * self._page + _PADDING)

    def _resize(self, size: int) -> None:
        with self._gate.alone():  # LMDB moves the map, so nobody here may be inside a transaction
            if size == 0 or size > self._lmdb.info()["map_size"]:
                self._lmdb.set_mapsize(size)


class Closed(StoreError):
    """The environment was closed between two uses; whoever has a newer one can go on with that."""


class _Gate:
    """Any number of threads inside ``shared``, or one inside ``alone``."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = False
        self._mine = threading.local()

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._closed)
            self._inside += 1
            self._mine.inside = self._of_this_thread() + 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._mine.inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._closed)
            self._closed = True
            self._changed.wait_for(lambda: self._inside == 0)
        try:
            yield
        finally:
            with self._changed:
                self._closed = False
                self._changed.notify_all()

    def hold(self) -> None:
        """Wait until no other thread is inside, and let none in before ``let_go``, called by this same thread."""
        self._changed.acquire()
        self._changed.wait_for(lambda: not self._closed and self._inside == self._of_this_thread())

    def let_go(self) -> None:
        self._changed.release()

    def _of_this_thread(self) -> int:
        return getattr(self._mine, "inside", 0)


def acquire(folder: Path, databases: Sequence[bytes], *, writable: bool) -> Environment:
    """The process's environment of ``folder``, opened if it is not; ``writable`` makes folder and databases where missing.

    Raises DamageError, StoreFormatError, StoreNotWritable and other StoreErrors.
    """
    if writable:
        files.make_folder(folder)
    with open_guard:
        environment = _open.get(_identity(folder))
        if environment is not None and environment.pid != os.getpid():
            environment.abandon()  # this process's copy of its parent's, which must not be used; the parent's stays open
            environment = None
        if environment is None:
            environment = Environment(folder, databases, writable=writable)
            _open[_identity(folder)] = environment
        elif writable and not environment.writable:
            environment.make_writable()
        environment.users += 1
        return environment


def release(environment: Environment) -> None:
    """Give an environment back; the last of its users closes it."""
    with open_guard:
        environment.users -= 1
        if environment.users == 0 and environment.pid == os.getpid():
            environment.close()
            for identity in [identity for identity, other in _open.items() if other is environment]:
                del _open[identity]


# A thread that is inside LMDB while another forks would be inside for ever in the child, which then could not even close its copy.


def _before_fork() -> None:
    open_guard.acquire()
    for environment in set(_open.values()):
        environment.hold()


def _after_fork() -> None:
    for environment in set(_open.values()):
        environment.let_go()
    open_guard.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


def looks_torn(folder: Path) -> bool:
    """Whether data.mdb is shorter than its newest meta page says, or is no LMDB file at all: reading it could end the process.

    Says no while this process has the environment open: opening and closing the file would drop the process's LMDB locks.
    """
    if _identity(folder) in _open:
        return False
    try:
        data = folder.joinpath("data.mdb")
        status = data.stat()
        if not stat.S_ISREG(status.st_mode):
            return True  # opening a pipe would hang
        size = status.st_size
        with data.open("rb") as file:
            first = file.read(16 + 136)
            if first.find(_MAGIC) > 16:
                return False  # of another LMDB format: opening it says so
            page = struct.unpack_from("<I", first, 40)[0] if len(first) == 152 else 0
            if not 512 <= page <= 65536:
                return True
            file.seek(page)
            metas = [first, file.read(16 + 136)]
    except FileNotFoundError:
        return False
    if any(len(meta) < 152 or meta[16:20] != _MAGIC for meta in metas):
        return True
    last_page = max(struct.unpack_from("<QQ", meta, 136)[::-1] for meta in metas)[1]
    return bool(size < (last_page + 1) * page)


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError:
        return _NOWHERE  # no folder, so no environment either
    return status.st_dev, status.st_ino


def _translate(error: lmdb.Error, folder: Path) -> CachestoreError:
    """The store's error for one of LMDB's. Only damage, which a build mends, leads to advice to delete anything."""
    text = str(error)
    if isinstance(error, lmdb.VersionMismatchError) or "format" in text.lower():
        return StoreFormatError(f"The index {folder} is of another LMDB format ({error}). Upgrade cachestore and lmdb.")
    if isinstance(error, lmdb.NotFoundError) or "No such file" in text:
        return DamageError(f"{folder} holds no index. Run `cachestore repair`: it fills one from the shards.")
    if isinstance(error, _DAMAGED):
        return DamageError(
            f"The index {folder} is damaged ({error}). Run `cachestore repair`: it fills a new one from the shards."
        )
    if isinstance(error, lmdb.PanicError):  # LMDB refuses everything once its meta page could not be written
        return StoreWriteFailed(
            f"An earlier write of the index {folder} failed ({error}). What was stored is intact; check the disk and run again."
        )
    for number in _OF_THE_SYSTEM:
        if os.strerror(number) in text:
            # a write that a disk has room for only in part is an I/O error to LMDB
            return files.translate(OSError(errno.ENOSPC if _full(folder) else number, text), folder)
    if isinstance(error, _BUSY):
        return StoreLocked(f"The index {folder} is in use by too many readers ({error}). Close some, and run again.")
    if isinstance(error, lmdb.ReadonlyError):
        return StoreNotWritable(
            f"Cannot write the index {folder} ({error}). Open it for reading, or change its permissions."
        )
    if isinstance(error, lmdb.MapFullError | lmdb.MapResizedError | lmdb.TxnFullError | lmdb.MemoryError):
        return StoreWriteFailed(
            f"The index {folder} could not take this write ({error}). Run again; what was stored is intact."
        )
    return StoreError(f"The index {folder} cannot be used ({error}). Close other uses of this store and run again.")


def _full(folder: Path) -> bool:
    """Whether the disk has next to no room left."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return False
    return status.f_bavail * status.f_frsize < _HARDLY_ANY_BYTES
