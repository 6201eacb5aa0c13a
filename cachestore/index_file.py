"""The file of the index as bytes: read by LMDB's own checker, in another process and without LMDB opening it.

LMDB trusts its file, so a damaged one can end the process that reads it; and a process that has it open must not open it
a second time, because closing that would drop its locks.
"""

from __future__ import annotations

import os
import signal
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

from cachestore import layout
from cachestore.errors import StoreError

PROBLEMS = 3
"""The exit code of the checker when it found some. Python's own and signals, which tell nothing of the file, are others."""

_DATA = "data.mdb"
_PROGRAM = str(Path(__file__).with_name("index_checker.py"))
NODE = np.dtype([("head", "V8"), ("key", "V32"), ("shard", "<u4"), ("row", "<u4")])
_BLOCK = 1 << 16
_KEPT_BYTES = 300 << 20  # of an index whose file is larger, keys are read a second time, block by block


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
        with _running(self.folder, "keys", subprocess.PIPE, subprocess.DEVNULL) as running:
            yield from _blocks(running)


def examine(folder: Path, *, keys: bool = False) -> Examined:
    """Check the file of an index, also while others write to it.

    Raises FileNotFoundError when there is none, StoreError when the checker could not finish, which tells nothing of the file.
    """
    code, lines, nodes, moved = _examine(folder, keys)
    if code and moved:  # pages were reused while it was read
        with _held(folder):
            code, lines, nodes, _ = _examine(folder, keys)
    if code not in (0, PROBLEMS):
        raise _unchecked(folder, code, lines)
    return Examined(folder, lines if code else [], nodes)


def _examine(folder: Path, keys: bool) -> tuple[int, list[str], list[NDArray[Any]] | None, bool]:
    """The checker's exit code and words, the nodes if they were wanted and are not too many, and whether the file changed meanwhile."""
    with layout.reading(folder / _DATA):
        before = (folder / _DATA).stat()
    if not stat.S_ISREG(before.st_mode):  # opening a pipe would hang
        return PROBLEMS, [f"{_DATA} is not a regular file"], [] if keys else None, False
    few = keys and before.st_size <= _KEPT_BYTES
    with tempfile.TemporaryFile() as said, _scratch() as found:
        with _running(folder, "keys" if few else "check", found, said) as running:
            code = running.wait()
        found.seek(0)
        nodes = [np.fromfile(found, NODE)] if few else None
        said.seek(0)
        lines = [line for line in said.read().decode(errors="replace").splitlines() if line]
    after = (folder / _DATA).stat()
    moved = (before.st_size, before.st_mtime_ns, before.st_ino) != (after.st_size, after.st_mtime_ns, after.st_ino)
    return code, lines, nodes, moved


def _unchecked(folder: Path, code: int, lines: list[str]) -> StoreError:
    if code < 0:
        why = f"a signal ended the checker, {signal.Signals(-code).name}"
        advice = "Mostly that is for want of memory: free some and try again."
    else:
        why = f"the checker ended with {code}: {lines[-1] if lines else 'it said nothing'}"
        advice = "Try again with memory to spare, readable files and the lmdb that cachestore was installed with."
    return StoreError(f"The index {folder} could not be checked, so that it may be sound: {why}. {advice}")


def _scratch() -> IO[bytes]:
    """A file for what the checker finds: in memory where there is such a thing, as the disk may be full."""
    return os.fdopen(os.memfd_create("keys"), "w+b") if sys.platform == "linux" else tempfile.TemporaryFile()


@contextmanager
def _running(
    folder: Path, action: str, out: IO[bytes] | int, errors: IO[bytes] | int
) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-P", _PROGRAM, str(folder), action]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors) as running:
        try:
            yield running
        finally:
            running.kill()


def _blocks(running: subprocess.Popen[bytes]) -> Iterator[NDArray[Any]]:
    while running.stdout and (block := running.stdout.read(_BLOCK * NODE.itemsize)):
        yield np.frombuffer(block, NODE, len(block) // NODE.itemsize)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    command = [sys.executable, "-P", _PROGRAM, str(folder), "hold"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as holder:
        try:
            if holder.stdout:
                holder.stdout.readline()  # empty when it cannot: nobody may register there, or the file ends it
            yield
        finally:
            if holder.stdin:
                holder.stdin.close()
            holder.wait()
