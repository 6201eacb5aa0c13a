"""The user's files, runs and predictions, written whole or not at all. A store's files have a door of their own, cachestore/files.py."""

from __future__ import annotations

import os
from pathlib import Path

from cachestore.outside import beside, sync, unwritable, written

__all__ = ["beside", "swap", "sync", "unwritable", "write"]


def write(path: Path, data: bytes) -> None:
    """Write a file, its bytes on disk when this returns; its name is there after ``sync`` of its folder.

    Raises UsageError when that fails; a file that was there before is then as it was.
    """
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
