"""The file of the index as bytes: read by LMDB's own checker, in another process and without LMDB opening it.

LMDB trusts its file, so a damaged one can end the process that reads it; and a process that has it open must not open it
a second time, because closing that would drop its locks.
"""

from __future__ import annotations

import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_DATA = "data.mdb"
_PROGRAM = str(Path(__file__).with_name("index_checker.py"))
NODE = np.dtype([("head", "V8"), ("key", "V32"), ("shard", "<u4"), ("row", "<u4")])
_BLOCK = 1 << 16
_KEPT = 1 << 22  # keys, 200 MB; of an index with more they are read a second time
# holds a snapshot: its pages are not reused while it is there
_HOLD = """
import sys, lmdb
with lmdb.open(sys.argv[1], readonly=True, create=False, readahead=False) as environment, environment.begin():
    print("held", flush=True)
    sys.stdin.read()
"""


@dataclass(frozen=True)
class Examined:
    """The file of an index, checked: its problems in the words of the checker, and its keys if they were wanted and are not too many."""

    folder: Path
    problems: list[str]
    nodes: list[NDArray[Any]] | None

    def blocks(self) -> Iterator[NDArray[Any]]:
        """All keys in their order with ``shard`` and ``row``, as structured arrays (n,) of bounded size.

        It is what the file holds, so while others write some may be missing, old or nonsense.
        """
        if self.nodes is not None:
            yield from self.nodes
            return
        with _running(self.folder, "keys") as running:
            yield from _blocks(running)


def examine(folder: Path, *, keys: bool = False) -> Examined:
    """Check the file of an index, also while others write to it.

    Raises FileNotFoundError when there is none.
    """
    found, moved = _examine(folder, keys)
    if found.problems and moved:  # pages were reused while it was read
        with _held(folder):
            found, _ = _examine(folder, keys)
    return found


def _examine(folder: Path, keys: bool) -> tuple[Examined, bool]:
    """What was found, and whether the file changed meanwhile."""
    before = (folder / _DATA).stat()
    if not stat.S_ISREG(before.st_mode):  # opening a pipe would hang
        return Examined(folder, [f"{_DATA} is not a regular file"], [] if keys else None), False
    kept: list[NDArray[Any]] = []
    count = 0
    with tempfile.TemporaryFile() as said:
        with _running(folder, "keys" if keys else "check", said) as running:
            for block in _blocks(running):
                count += len(block)
                kept = [*kept, block] if count <= _KEPT else []
            code = running.wait()
        said.seek(0)
        lines = said.read().decode(errors="replace").splitlines()
    after = (folder / _DATA).stat()
    moved = (before.st_size, before.st_mtime_ns, before.st_ino) != (after.st_size, after.st_mtime_ns, after.st_ino)
    problems = [] if code == 0 else [line for line in lines if line] or [f"the checker ended with {code}"]
    return Examined(folder, problems, kept if keys and count <= _KEPT else None), moved


@contextmanager
def _running(folder: Path, action: str, errors: IO[bytes] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-P", _PROGRAM, str(folder), action]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors or subprocess.DEVNULL
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def _blocks(running: subprocess.Popen[bytes]) -> Iterator[NDArray[Any]]:
    while running.stdout and (block := running.stdout.read(_BLOCK * NODE.itemsize)):
        yield np.frombuffer(block, NODE, len(block) // NODE.itemsize)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    command = [sys.executable, "-P", "-c", _HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as holder:
        try:
            if holder.stdout:
                holder.stdout.readline()  # empty when it cannot: nobody may register there, or the file ends it
            yield
        finally:
            if holder.stdin:
                holder.stdin.close()
            holder.wait()
