"""The file of the index as bytes: read by LMDB's own checker, in another process and without LMDB opening it.

LMDB trusts its file, so a damaged one can end the process that reads it; and a process that has it open must not open it
a second time, because closing that would drop its locks.
"""

from __future__ import annotations

import os
import signal
import stat
import struct
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
ODD = 4
"""Its exit code when whole leaves were asked for and the file has other ones."""

_DATA = "data.mdb"
_PROGRAM = str(Path(__file__).with_name("index_checker.py"))
NODE = np.dtype([("head", "V8"), ("key", "V32"), ("shard", "<u4"), ("row", "<u4")])
_HEAD = int.from_bytes(
    struct.pack("<HHHH", 8, 0, 0, 32), "little"
)  # of a node: a value of 8 bytes, no flags, a key of 32
_BLOCK = 1 << 16
_PAGE = 4096
_PAGES = 1 << 10  # looked at together
_BY_PAGES = 1 << 20  # bytes of a file from which that is worth it
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
        last = b""
        with _running(self.folder, "pages", subprocess.PIPE, subprocess.DEVNULL) as running:
            while (nodes := _plain(running.stdout, last)) is not None and len(nodes):
                yield nodes
                last = nodes["key"][-1].tobytes()
            whole = nodes is not None and running.wait() != ODD
        if not whole:
            with _running(self.folder, "keys", subprocess.PIPE, subprocess.DEVNULL) as running:
                for block in _blocks(running):
                    yield block[np.searchsorted(block["key"], np.void(last), "right") :] if last else block


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
    quick = _by_pages(folder, few) if before.st_size >= _BY_PAGES else None
    code, lines, nodes = quick or _by_nodes(folder, few)
    after = (folder / _DATA).stat()
    moved = (before.st_size, before.st_mtime_ns, before.st_ino) != (after.st_size, after.st_mtime_ns, after.st_ino)
    return code, lines, nodes, moved


def _by_nodes(folder: Path, few: bool) -> tuple[int, list[str], list[NDArray[Any]] | None]:
    """The checker's exit code and words, and with ``few`` the nodes; it looks at each of them by itself."""
    with tempfile.TemporaryFile() as said, _scratch() as found:
        with _running(folder, "keys" if few else "check", found, said) as running:
            code = running.wait()
        found.seek(0)
        return code, _lines(said), [np.fromfile(found, NODE)] if few else None


def _by_pages(folder: Path, few: bool) -> tuple[int, list[str], list[NDArray[Any]] | None] | None:
    """As ``_by_nodes``, with the leaves looked at here; None where they hold anything but keys with their places, in order."""
    nodes: list[NDArray[Any]] = []
    with tempfile.TemporaryFile() as said, _scratch() as found:
        with _running(folder, "pages", found if few else subprocess.PIPE, said) as running:
            code = running.wait() if few else 0
            found.seek(0)
            last = b""
            while (plain := _plain(found if few else running.stdout, last)) is None or len(plain):
                if plain is None:
                    return None
                last = plain["key"][-1].tobytes()
                if few:
                    nodes.append(plain)
            code = running.wait()
        return None if code == ODD else (code, _lines(said), nodes if few else None)


def _lines(said: IO[bytes]) -> list[str]:
    said.seek(0)
    return [line for line in said.read().decode(errors="replace").splitlines() if line]


def _plain(file: IO[bytes] | None, last: bytes) -> NDArray[Any] | None:
    """The nodes of the next leaves, none at the end; None unless they are keys with their places alone, in order and after ``last``."""
    pages = np.frombuffer(file.read(_PAGES * _PAGE) if file else b"", np.uint8)
    if not len(pages):
        return np.empty(0, NODE)
    if len(pages) % _PAGE:
        return None
    words = pages.view("<u2").reshape(-1, _PAGE // 2)
    lower, upper = words[:, 6].astype(np.int64), words[:, 7].astype(np.int64)
    count = (lower - 16) >> 1
    if (count < 1).any() or (lower > upper).any() or (upper > _PAGE).any():
        return None
    used = np.arange(count.max()) < count[:, None]
    places = words[:, 8 : 8 + used.shape[1]].astype(np.int64)[used]
    if (places < np.repeat(upper, count)).any() or (places + NODE.itemsize > _PAGE).any():
        return None
    starts = places + np.repeat(np.arange(len(words)) * _PAGE, count)
    found = np.lib.stride_tricks.sliding_window_view(pages, NODE.itemsize)[starts]
    if (np.ascontiguousarray(found[:, :8]).view("<u8") != _HEAD).any():
        return None
    first_bytes = np.ascontiguousarray(found[:, 8:16]).view(">u8").ravel()
    for at in np.flatnonzero(first_bytes[1:] <= first_bytes[:-1]).tolist():
        if found[at, 8:40].tobytes() >= found[at + 1, 8:40].tobytes():
            return None
    nodes: NDArray[Any] = found.view(NODE).ravel()
    return nodes if nodes["key"][0].tobytes() > last else None


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
