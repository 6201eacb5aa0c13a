"""The user's files, runs and predictions, written whole or not at all. A store's files have a door of their own, cachestore/files.py."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from uuid import uuid4

from cachestore.errors import UsageError


def write(path: Path, data: bytes) -> None:
    """Write a file, its bytes on disk when this returns; its name is there after ``sync`` of its folder.

    Raises UsageError when that fails; a file that was there before is then as it was.
    """
    temporary = None
    try:
        place = path.resolve()  # a link stays one
        temporary = beside(place, "part")
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, place)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def sync(path: Path) -> None:
    """Have what was written to a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def beside(path: Path, what: str) -> Path:
    """A new hidden name in the same folder, and so on the same file system."""
    return path.with_name(f".{path.name}.{what}-{uuid4().hex[:8]}")


def unwritable(path: Path, error: OSError) -> UsageError:
    """The error for a path that the operating system lets nobody write."""
    return UsageError(f"{path} cannot be written ({error.strerror or error}). Name another place with --output.")
