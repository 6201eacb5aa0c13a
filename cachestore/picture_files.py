"""Files that cells of a data set name: which of them may be read, and their bytes. Nothing here waits on a pipe or opens a device.

A relative path counts from the folder of the data and must stay in it, also through symbolic links: a table from elsewhere
does not choose which files of this machine are read. An absolute path is what its writer said, and leads where it leads.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final, final

MAX_BYTES: Final = 64 << 20
_URL: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]+:/")
_TRIES: Final = 3
_FOLDERS: Final = 4096
_SHOWN: Final = 200


class Unreadable(Exception):
    """A cell or file that gives no payload; its text says why and follows what names it: "is a directory"."""


@final
class Folder:
    """Where relative paths count from: the folder of the data, or the working directory where the data is a table in memory."""

    def __init__(self, root: Path | None) -> None:
        self._root = None if root is None else os.fsencode(root.absolute())
        self._real = b"" if self._root is None else os.path.realpath(self._root)
        self._seen: dict[bytes, bytes] = {}

    def find(self, cell: bytes) -> tuple[bytes, os.stat_result]:
        """The absolute path that a cell names, and its status: a regular file of 1 byte to MAX_BYTES. Raises Unreadable."""
        if not cell:
            raise Unreadable("is an empty path")
        if b"\0" in cell:
            raise Unreadable("has a NUL byte, as no path has")
        if _URL.match(cell):
            raise Unreadable("is a URL; download what it names and write its path")
        try:
            path = os.path.abspath(cell) if self._root is None or os.path.isabs(cell) else self._inside(cell)
            status = os.stat(path)
        except OSError as error:
            raise Unreadable(_why(error)) from None
        check(status)
        return path, status

    def _inside(self, cell: bytes) -> bytes:
        folder, name = os.path.split(os.path.join(self._root or b"", cell))
        if name in (b"", b".", b".."):
            folder, name = os.path.join(folder, name), b""
        real = self._seen.get(folder)
        if real is None:
            if len(self._seen) >= _FOLDERS:
                self._seen.clear()
            real = self._seen[folder] = os.path.realpath(folder)
        path = os.path.join(real, name) if name else real
        if os.path.islink(path):
            path = os.path.realpath(path)
        if path != self._real and not path.startswith(os.path.join(self._real, b"")):
            raise Unreadable("leads out of the folder of the data; write an absolute path if that is meant")
        return path


def check(status: os.stat_result) -> None:
    """Raises Unreadable for what is no regular file of 1 byte to MAX_BYTES."""
    if stat.S_ISDIR(status.st_mode):
        raise Unreadable("is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable("is a pipe, socket or device")
    if status.st_size == 0:
        raise Unreadable("is empty: 0 bytes")
    if status.st_size > MAX_BYTES:
        raise Unreadable(too_large(status.st_size))


def too_large(size: int) -> str:
    """Why a payload of so many bytes is not taken."""
    return f"is {size / (1 << 20):.1f} MiB, over the limit of {MAX_BYTES >> 20} MiB"


def read(path: bytes) -> tuple[bytes, os.stat_result]:
    """A file's bytes and the status under which all of them were read. Raises Unreadable."""
    for _ in range(_TRIES):
        try:
            check(os.stat(path))  # before it is opened: to open some devices does something
            # not blocking, for what became a pipe since
            number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
            with open(number, "rb", buffering=0) as file:
                before = os.fstat(number)
                check(before)
                data = b"".join(iter(lambda: file.read(MAX_BYTES), b""))
                after = os.fstat(number)
        except OSError as error:
            raise Unreadable(_why(error)) from None
        same = (before.st_size, before.st_mtime_ns, before.st_ctime_ns)
        if same == (after.st_size, after.st_mtime_ns, after.st_ctime_ns) and len(data) == before.st_size:
            return data, before
    raise Unreadable("changes while it is read")


def told(cell: bytes, why: str) -> str:
    """Why a cell is of no use, after the path that it holds, if any."""
    return f"{shown(cell)} {why}" if cell else why


def shown(cell: bytes) -> str:
    """A path as a message names it: quoted, without control characters, not endless."""
    text = repr(cell[: _SHOWN * 4].decode("utf-8", "backslashreplace"))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…'"


def _why(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, NotADirectoryError):
        return "does not exist: a file stands where it has a folder"
    if isinstance(error, PermissionError):
        return "may not be read"
    return f"cannot be read: {error.strerror or error}"
