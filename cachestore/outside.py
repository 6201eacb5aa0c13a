"""Files outside the store, named by the user: exports, runs, predictions. They are written whole or not at all.

A store's own files have another door, cachestore/files.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final
from uuid import uuid4

from cachestore.errors import UsageError

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A file to write in the body that takes the name ``path`` when the body ends, its bytes then being on disk.

    Its name survives a power cut after ``sync`` of its folder. Raises UsageError when it cannot be written; then, and when
    the body raises, a file that was there before is as it was.
    """
    temporary = None
    try:
        place = path.resolve()  # a link stays one
        if place.is_dir():
            raise UsageError(f"{path} is a directory. Name a file in it.")
        temporary = beside(place, "part")
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, place)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def write(path: Path, data: bytes) -> None:
    """Write a file as ``written`` does."""
    with written(path) as file:
        file.write(data)


def swap(place: Path, new: Path) -> Path:
    """Give the folder ``new`` the name ``place``; returns where the folder is now that lay there, beside it.

    Raises OSError when that fails; both are then where they were.
    """
    aside = beside(place, "old")
    try:
        os.rename(place, aside)
        os.rename(new, place)
    except BaseException:
        if aside.exists() and not place.exists():
            os.rename(aside, place)
        raise
    return aside


def sync(path: Path) -> None:
    """Have what was written to a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def beside(path: Path, what: str) -> Path:
    """A new hidden name in the same folder, and so on the same file system."""
    return path.with_name(f".{path.name}.{what}-{uuid4().hex[:8]}")


def unwritable(path: Path, error: OSError) -> UsageError:
    """The error for a path that the operating system lets nobody write."""
    remedy = "Make room, and run the command again" if error.errno in _FULL else "Name another place with --output"
    return UsageError(f"{path} cannot be written ({error.strerror or error}). {remedy}.")
