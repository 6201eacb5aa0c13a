"""LMDB's own checker run on the file of an index, as a program of its own: ``python index_checker.py FOLDER check|keys|hold``.

Writes each problem on a line to stderr, and ends with 3 when there are any; any other code but 0 tells nothing of the file.
``keys`` writes the nodes of the database ``keys`` to stdout as well, in their order, 48 bytes each: 8 of header, the key, shard
number and row. LMDB itself never opens the file. ``hold`` does, and holds a snapshot until its stdin ends: its pages are not
reused meanwhile.

The checker is pure Python and looks at every node by itself. Leaves that hold nothing but keys with their places are collected
and looked at many at a time with NumPy here; a batch in which anything is otherwise, and all else, is the checker's. That goes
into its private class: where an lmdb has another one, its public function checks the file, and LMDB reads the keys of one that
is sound.
"""

from __future__ import annotations

import errno
import io
import os
import struct
import sys
from typing import Any, BinaryIO

import lmdb
from lmdb import verify as lmdb_verify

_verify: Any = lmdb_verify  # which has no types
_DATABASE = "main/keys"
_NODE = struct.Struct("<HHHH32s8s")
_HEAD = _NODE.pack(8, 0, 0, 32, bytes(32), bytes(8))[:8]  # a value of 8 bytes, no flags, a key of 32
_HEAD_NUMBER = int.from_bytes(_HEAD, sys.byteorder)
_OUT_BYTES = 1 << 20
_BRANCH, _LEAF = b"\x01\x00", b"\x02\x00"  # flags of a page
_BATCH, _FEW = 1024, 64  # pages
_PROBLEMS = 3  # Python itself ends with 1 and 2
_PRIVATE: Any = getattr(_verify, "_Verifier", object)
_HOOKS = {
    "__init__": ("self", "f", "filesize"),
    "_read_at": ("self", "off", "n"),
    "_walk_page": ("self", "ctx", "pgno", "depth"),
    "_walk_leaf": ("self", "ctx", "pgno", "buf"),
    "_mark_live": ("self", "pgno", "what"),
    "read_page": ("self", "pgno"),
    "_leaf_value": ("self", "ctx", "pgno", "i", "buf", "o", "nflags", "ksize", "dsize", "key"),
}


class Checker(_PRIVATE):  # type: ignore[misc]
    """The checker, with a way around its slowest part. ``out`` is where nodes go, if anywhere."""

    def __init__(self, file: BinaryIO, size: int, out: BinaryIO | None) -> None:
        super().__init__(file, size)
        self.out = out
        self._leaves: list[tuple[int, bytes]] = []

    def _read_at(self, off: int, n: int) -> bytes:
        return os.pread(self.f.fileno(), n, off)

    def _walk_page(self, ctx: dict[str, Any], pgno: int, depth: int) -> None:
        if ctx["name"] != _DATABASE or self.hdrsz != 16:
            super()._walk_page(ctx, pgno, depth)
            return
        page = None if self.full or depth == 1 else self.read_page(pgno)
        if page is not None and page[:8] == pgno.to_bytes(8, "little") and page[10:12] == _LEAF:
            if self._mark_live(pgno, f"{_DATABASE} DB"):
                ctx["maxdepth"] = max(ctx["maxdepth"], depth)
                ctx["leaf"] += 1
                self._leaves.append((pgno, page))
                if len(self._leaves) >= _BATCH:
                    self._take(ctx)
            return
        if page is None or page[10:12] != _BRANCH:
            self._take(ctx)  # keys are looked at in their order
        super()._walk_page(ctx, pgno, depth)
        if depth == 1:
            self._take(ctx)

    def _take(self, ctx: dict[str, Any]) -> None:
        """Look at the leaves collected so far."""
        leaves, self._leaves = self._leaves, []
        if len(leaves) < _FEW or not self._plain(ctx, [page for _, page in leaves]):
            for pgno, page in leaves:
                self._walk_leaf(ctx, pgno, page)

    def _plain(self, ctx: dict[str, Any], pages: list[bytes]) -> bool:
        """Take pages whose nodes are all keys with their places, in order; False for any other, of which nothing is taken."""
        import numpy as np  # takes longer than to look at a few pages without it

        data = np.frombuffer(b"".join(pages), np.uint8)
        words = data.view("<u2").reshape(len(pages), -1)
        lower, upper = words[:, 6].astype(np.int64), words[:, 7].astype(np.int64)
        count = (lower - 16) >> 1
        if (count < 1).any() or (lower > upper).any() or (upper > self.psize).any():
            return False
        used = np.arange(count.max()) < count[:, None]
        places = words[:, 8 : 8 + used.shape[1]].astype(np.int64)[used]
        if (places < np.repeat(upper, count)).any() or (places + _NODE.size > self.psize).any():
            return False
        starts = places + np.repeat(np.arange(len(pages)) * self.psize, count)
        nodes = np.lib.stride_tricks.sliding_window_view(data, _NODE.size)[starts]
        if (np.ascontiguousarray(nodes[:, :8]).view("=u8") != _HEAD_NUMBER).any():
            return False
        first_bytes = np.ascontiguousarray(nodes[:, 8:16]).view(">u8").ravel()
        for at in np.flatnonzero(first_bytes[1:] <= first_bytes[:-1]).tolist():
            if nodes[at, 8:40].tobytes() >= nodes[at + 1, 8:40].tobytes():
                return False
        last = ctx["last_key"]
        if last is not None and nodes[0, 8:40].tobytes() <= last:
            return False
        ctx["last_key"] = nodes[-1, 8:40].tobytes()
        ctx["entries"] += len(nodes)
        if self.out:
            self.out.write(nodes.tobytes())
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
        with io.BufferedWriter(io.FileIO(sys.stdout.fileno(), "w", closefd=False), _OUT_BYTES) as stdout:
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
