"""Advisory locks of a store, by flock: the kernel releases them when their holder dies, and no clock is involved.

``builders`` is held shared by everyone who writes vectors, and exclusively by who needs to be alone; ``names`` is held
exclusively for the moment in which a name's log grows.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cachestore import files
from cachestore.errors import StoreLocked

_POLL_SECONDS = 0.05


@contextmanager
def held(root: Path, name: str, *, exclusive: bool, timeout: float) -> Iterator[int]:
    """Hold a lock of the store for the body; yields its file descriptor.

    Raises StoreLocked when another process still holds it after ``timeout`` seconds.
    """
    descriptor = files.open_lock(root / "locks" / name)
    try:
        deadline = time.monotonic() + timeout
        while not _try(descriptor, exclusive):
            if time.monotonic() >= deadline:
                raise StoreLocked(
                    f"{root} is in use by another process (lock {name!r}, waited {timeout:g} s). "
                    "Wait for it to finish, or stop it, and run again."
                )
            time.sleep(_POLL_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)


def alone(descriptor: int) -> bool:
    """Whether a lock held shared could be made exclusive: nobody else holds it. It stays exclusive until ``share``."""
    return _try(descriptor, exclusive=True)


def share(descriptor: int) -> None:
    """Make a lock shared again after ``alone``, whether that succeeded or not."""
    # a failed upgrade has dropped the shared lock, so this may wait for whoever is alone now
    fcntl.flock(descriptor, fcntl.LOCK_SH)


def _try(descriptor: int, exclusive: bool) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
