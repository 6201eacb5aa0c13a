"""Folders for as long as a process lives. What a killed one left is removed by the next that makes one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

_LOCK: Final = "cachestore.lock"  # a name that nobody else's folder has: what has it may be removed


class Scratch:
    """A new folder, named ``prefix`` and some letters, in ``parent`` (the system's place for such, unless told)."""

    def __init__(self, prefix: str, parent: Path | None = None) -> None:
        _sweep(prefix, parent or Path(tempfile.gettempdir()))
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        begun = self.path / "new"
        self._lock = os.open(begun, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        begun.rename(self.path / _LOCK)  # only now is it one that others look at

    def close(self) -> None:
        """Remove the folder, as far as that can be done."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _sweep(prefix: str, parent: Path) -> None:
    """Remove the folders whose process has ended: nobody holds their lock any more."""
    for lock in parent.glob(f"{prefix}*/{_LOCK}"):
        with contextlib.suppress(OSError):  # another user's, another process is at it, or it is held
            descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(descriptor)
