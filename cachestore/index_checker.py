"""LMDB's own checker run on the file of an index, as a program of its own: ``python index_checker.py FOLDER check|keys|hold``.

Writes each problem on a line to stderr, and ends with 3 when there are any; any other code but 0 tells nothing of the file.
``keys`` writes the nodes of the database ``keys`` to stdout as well, in their order, 48 bytes each: 8 of header, the key, shard
number and row. LMDB itself never opens the file. ``hold`` does, and holds a snapshot until its stdin ends: its pages are not
reused meanwhile.

The checker is pure Python and looks at every node by itself. Pages that hold nothing but keys with their places are looked at
as a whole here, which is ten times as fast; all others, and all else, is the checker's. That goes into its private class: where
an lmdb has another one, its public function checks the file, and LMDB reads the keys of one that is sound.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from operator import lt
from typing import Any, BinaryIO

import lmdb
from lmdb import verify as lmdb_verify

_verify: Any = lmdb_verify  # which has no types
_DATABASE = "main/keys"
_NODE = struct.Struct("<HHHH32s8s")
_HEAD = _NODE.pack(8, 0, 0, 32, bytes(32), bytes(8))[:8]  # a value of 8 bytes, no flags, a key of 32
_HEAD_NUMBER = int.from_bytes(_HEAD, sys.byteorder)
_OUT_BYTES = 1 << 20
_PROBLEMS = 3  # Python itself ends with 1 and 2
_PRIVATE: Any = getattr(_verify, "_Verifier", object)
_HOOKS = {
    "__init__": ("self", "f", "filesize"),
    "_read_at": ("self", "off", "n"),
    "_walk_leaf": ("self", "ctx", "pgno", "buf"),
    "_leaf_value": ("self", "ctx", "pgno", "i", "buf", "o", "nflags", "ksize", "dsize", "key"),
}


class Checker(_PRIVATE):  # type: ignore[misc]
    """The checker, with a way around its slowest part. ``out`` is where nodes go, if anywhere."""

    def __init__(self, file: BinaryIO, size: int, out: BinaryIO | None) -> None:
        super().__init__(file, size)
        self.out = out

    def _read_at(self, off: int, n: int) -> bytes:
        return os.pread(self.f.fileno(), n, off)

    def _walk_leaf(self, ctx: dict[str, Any], pgno: int, buf: bytes) -> None:
        if ctx["name"] != _DATABASE or self.hdrsz != 16 or not self._plain(ctx, buf):
            super()._walk_leaf(ctx, pgno, buf)

    def _plain(self, ctx: dict[str, Any], buf: bytes) -> bool:
        """Take a page whose nodes are all keys with their places, in order; False for any other, of which nothing is taken."""
        lower, upper = struct.unpack_from("<HH", buf, 12)
        count = (lower - 16) >> 1
        if count < 1 or lower > upper or upper > len(buf):
            return False
        places = struct.unpack_from(f"<{count}H", buf, 16)
        if min(places) < upper or max(places) + _NODE.size > len(buf):
            return False
        # with nodes to write, two of one key are left to whoever reads them
        width = 40 if self.out is None else _NODE.size
        nodes = [buf[at : at + width] for at in places]
        joined = b"".join(nodes)
        if memoryview(joined).cast("Q")[:: width // 8].tolist() != [_HEAD_NUMBER] * count:
            return False
        last = ctx["last_key"]
        if (last is not None and nodes[0][8:40] <= last) or not all(map(lt, nodes, nodes[1:])):
            return False
        ctx["last_key"] = nodes[-1][8:40]
        ctx["entries"] += count
        if self.out:
            self.out.write(joined)
        return True

    def _leaf_value(
        self,
        ctx: dict[str, Any],
        pgno: int,
        i: int,
        buf: bytes,
        o: int,
        nflags: int,
        ksize: int,
        dsize: int,
        key: bytes,
    ) -> None:
        super()._leaf_value(ctx, pgno, i, buf, o, nflags, ksize, dsize, key)
        if ctx["name"] == _DATABASE:
            node = buf[o : o + _NODE.size]
            if (nflags, ksize, dsize) != (0, 32, 8) or len(node) != _NODE.size:
                self.err(f"{_DATABASE} DB: page {pgno} node {i} is not a key of 32 bytes with a place of 8")
            elif self.out:
                self.out.write(node)


def main(folder: str, action: str) -> int:
    """Run one action; returns the exit code."""
    if action == "hold":
        return _hold(folder)
    try:
        # whole blocks, also where Python is told not to buffer: a write for each page would take as long as to check it
        with open(sys.stdout.fileno(), "wb", buffering=_OUT_BYTES, closefd=False) as stdout:
            out = stdout if action == "keys" else None
            problems = check(folder, out) if _has_hooks() else _check_plainly(folder, out)
    except _verify.VerifyError as error:
        problems = [str(error)]
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        problems = [f"The disk cannot read it: {error.strerror}."]
    print("\n".join(problems), file=sys.stderr)
    return _PROBLEMS if problems else 0


def check(folder: str, out: BinaryIO | None) -> list[str]:
    """The problems of a file, its nodes to ``out``. Raises lmdb.verify.VerifyError and OSError."""
    with open(os.path.join(folder, "data.mdb"), "rb") as file:
        problems: list[str] = Checker(file, os.fstat(file.fileno()).st_size, out).verify()
        return problems


def _has_hooks() -> bool:
    codes = {name: getattr(getattr(_PRIVATE, name, None), "__code__", None) for name in _HOOKS}
    return all(code and code.co_varnames[: code.co_argcount] == _HOOKS[name] for name, code in codes.items())


def _check_plainly(folder: str, out: BinaryIO | None) -> list[str]:
    """As ``check`` by what is public of LMDB alone, which is slower."""
    problems: list[str] = _verify.verify(os.path.join(folder, "data.mdb"), subdir=False)
    if problems:
        return problems
    registers = os.access(os.path.join(folder, "lock.mdb"), os.W_OK)
    with (
        lmdb.open(folder, readonly=True, create=False, readahead=False, lock=registers, max_dbs=1) as environment,
        environment.begin() as transaction,
    ):
        name = _DATABASE.rpartition("/")[2].encode()
        if transaction.get(name) is None:
            return []  # a new index has none yet
        database = environment.open_db(name, txn=transaction, create=False)
        for key, value in transaction.cursor(database):
            if (len(key), len(value)) != (32, 8):
                return [f"{_DATABASE} DB: a node is not a key of 32 bytes with a place of 8"]
            if out:
                out.write(_HEAD + key + value)
    return []


def _hold(folder: str) -> int:
    with lmdb.open(folder, readonly=True, create=False, readahead=False) as environment, environment.begin():
        print("held", flush=True)
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
