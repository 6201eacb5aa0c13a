"""LMDB's own checker run on the file of an index, as a program of its own: ``python index_checker.py FOLDER check|keys``.

Writes each problem on a line to stderr, and ends with 1 when there are any. ``keys`` writes the nodes of the database ``keys`` to
stdout as well, in their order, 48 bytes each: 8 of header, the key, shard number and row. LMDB itself never opens the file.

The checker is pure Python and looks at every node by itself. Pages that hold nothing but keys with their places are looked at
as a whole here, which is ten times as fast; all others, and all else, is the checker's.
"""

from __future__ import annotations

import os
import struct
import sys
from operator import lt
from typing import Any, BinaryIO

from lmdb import verify as lmdb_verify

_verify: Any = lmdb_verify  # which has no types
_DATABASE = "main/keys"
_NODE = struct.Struct("<HHHH32s8s")
_HEAD = _NODE.pack(8, 0, 0, 32, bytes(32), bytes(8))[:8]  # a value of 8 bytes, no flags, a key of 32
_HEAD_NUMBER = int.from_bytes(_HEAD, sys.byteorder)


class Checker(_verify._Verifier):  # type: ignore[misc]
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
    with open(os.path.join(folder, "data.mdb"), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            problems = Checker(file, size, sys.stdout.buffer if action == "keys" else None).verify()
        except _verify.VerifyError as error:
            problems = [str(error)]
    print("\n".join(problems), file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
