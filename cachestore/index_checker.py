"""LMDB's own checker run on the file of an index, as a program of its own: ``python index_checker.py FOLDER check|keys|pages|hold``.

Writes each problem on a line to stderr, and ends with 3 when there are any; any other code but 0 and 4 tells nothing of the file.
``keys`` writes the nodes of the database ``keys`` to stdout as well, in their order, 48 bytes each: 8 of header, the key, shard
number and row. LMDB itself never opens the file. ``hold`` does, and holds a snapshot until its stdin ends: its pages are not
reused meanwhile.

The checker is pure Python and looks at every node by itself. With ``pages`` it does not look into the leaves of ``keys``, and
writes them to stdout as they are: they are for the caller to check, many at a time. It ends with 4 where it meets anything but
plain pages. That goes into its private class: where an lmdb has another one, ``pages`` always ends with 4, its public function
checks the file, and LMDB reads the keys of one that is sound.
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
_OUT_BYTES = 1 << 20
_BRANCH, _LEAF = b"\x01\x00", b"\x02\x00"  # flags of a page
_PAGE = 4096
_PROBLEMS, _ODD = 3, 4  # Python itself ends with 1 and 2
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


class Odd(Exception):
    """The database ``keys`` has pages that are to be looked at one by one."""


class Checker(_PRIVATE):  # type: ignore[misc]
    """The checker, with a way around its slowest part.

    ``out`` is where nodes of ``keys`` go, if anywhere; with ``pages``, its leaves as they are, which it does not look into then.
    """

    def __init__(self, file: BinaryIO, size: int, out: BinaryIO | None, *, pages: bool = False) -> None:
        super().__init__(file, size)
        self.out = out
        self.pages = pages

    def _read_at(self, off: int, n: int) -> bytes:
        return os.pread(self.f.fileno(), n, off)

    def _walk_page(self, ctx: dict[str, Any], pgno: int, depth: int) -> None:
        if not self.pages or ctx["name"] != _DATABASE or self.full:
            super()._walk_page(ctx, pgno, depth)
            return
        page = self.read_page(pgno)
        if page is None or self.hdrsz != 16 or len(page) != _PAGE or page[:8] != pgno.to_bytes(8, "little"):
            raise Odd
        if page[10:12] == _BRANCH:
            super()._walk_page(ctx, pgno, depth)
        elif page[10:12] != _LEAF or self.out is None:
            raise Odd
        elif self._mark_live(pgno, f"{_DATABASE} DB"):
            ctx["maxdepth"] = max(ctx["maxdepth"], depth)
            ctx["leaf"] += 1
            ctx["entries"] += (int.from_bytes(page[12:14], "little") - 16) >> 1
            self.out.write(page)

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
        if ctx["name"] == _DATABASE and not self.pages:
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
            out = None if action == "check" else stdout
            if _has_hooks():
                problems = check(folder, out, pages=action == "pages")
            elif action == "pages":
                return _ODD
            else:
                problems = _check_plainly(folder, out)
    except Odd:
        return _ODD
    except _verify.VerifyError as error:
        problems = [str(error)]
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        problems = [f"The disk cannot read it: {error.strerror}."]
    print("\n".join(problems), file=sys.stderr)
    return _PROBLEMS if problems else 0


def check(folder: str, out: BinaryIO | None, *, pages: bool = False) -> list[str]:
    """The problems of a file, its nodes or leaves to ``out``. Raises lmdb.verify.VerifyError, OSError, and Odd with ``pages``."""
    with open(os.path.join(folder, "data.mdb"), "rb") as file:
        problems: list[str] = Checker(file, os.fstat(file.fileno()).st_size, out, pages=pages).verify()
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
