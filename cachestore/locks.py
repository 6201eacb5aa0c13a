"""Advisory locks of a store, by flock: the kernel releases them when their holder dies, and no clock is involved.

``builders`` is held shared by everyone who writes vectors, and exclusively by who needs to be alone; ``names`` is held
exclusively for the moment in which a name's log grows, and ``index`` while an index is opened for writing. A writer that claims
keys holds a lock file of its own as long as it lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cachestore import files
from cachestore.errors import StoreLocked

_FIRST_POLL_SECONDS, _LAST_POLL_SECONDS = 0.001, 0.05
_LONGEST_TURN_POLL_SECONDS = 0.005  # turns are short, and many take them
_TELL_SECONDS = 0.5


@contextmanager
def held(
    root: Path, name: str, *, exclusive: bool, timeout: float, tell: Callable[[str], None] | None = None
) -> Iterator[int]:
    """Hold a lock of the store for the body; yields its file descriptor. ``tell`` is called once if this has to wait.

    Raises StoreLocked when another process still holds it after ``timeout`` seconds.
    """
    descriptor, holder = files.open_lock(root / "locks" / name), os.getpid()
    try:
        _take(descriptor, root, name, exclusive, timeout, tell)
        yield descriptor
    finally:
        if os.getpid() == holder:
            let_go(descriptor)
        else:
            os.close(descriptor)  # a forked child's copy


@contextmanager
def turn(path: Path, timeout: float) -> Iterator[None]:
    """Be the only process inside the body, of those that take this turn; ``path`` is a lock file in a folder of a store.

    Raises StoreLocked when it is still another's after ``timeout`` seconds.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except FileNotFoundError:  # the folder is gone, and nobody else finds what this process still has open
        yield
        return
    except OSError as error:
        raise files.translate(error, path) from error
    try:
        _take(descriptor, path.parent, path.stem, True, timeout, None, longest=_LONGEST_TURN_POLL_SECONDS)
        yield
    finally:
        let_go(descriptor)


def let_go(descriptor: int) -> None:
    """Release a lock, also where a child that was forked meanwhile has a copy of its descriptor."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def alone(descriptor: int) -> bool:
    """Whether a lock held shared could be made exclusive: nobody else holds it. It stays exclusive until ``share``."""
    return _try(descriptor, exclusive=True)


def share(descriptor: int, root: Path, name: str, timeout: float) -> None:
    """Make a lock shared again after ``alone``, whether that succeeded or not.

    Raises StoreLocked as ``held`` does: between the two, another process may have become alone.
    """
    _take(descriptor, root, name, False, timeout, None)


def lives(path: Path) -> bool:
    """Whether a process holds the lock file at ``path``, as its owner does exclusively from before it is there until it dies."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        return not _try(descriptor, exclusive=False)
    finally:
        os.close(descriptor)


def _take(
    descriptor: int,
    root: Path,
    name: str,
    exclusive: bool,
    timeout: float,
    tell: Callable[[str], None] | None,
    longest: float = _LAST_POLL_SECONDS,
) -> None:
    began = time.monotonic()
    told, poll = tell is None, _FIRST_POLL_SECONDS
    while not _try(descriptor, exclusive):
        waited = time.monotonic() - began
        if waited >= timeout:
            raise StoreLocked(
                f"{root} is in use by {_holders(descriptor)} (lock {name!r}, waited {timeout:g} s). "
                "Wait for it to finish, or stop it, and run again."
            )
        if not told and tell and waited > _TELL_SECONDS:
            tell(f"Waiting for {_holders(descriptor)}, which uses {root} …")
            told = True
        time.sleep(poll)
        poll = min(poll * 1.5, longest)


def _holders(descriptor: int) -> str:
    """Who holds a lock, as far as the system tells."""
    status = os.fstat(descriptor)
    inode = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with contextlib.suppress(OSError), open("/proc/locks", encoding="ascii", errors="replace") as table:
        found = sorted(
            {int(line.split()[4]) for line in table if inode in line and "->" not in line and "FLOCK" in line}
        )
        pids = [pid for pid in found if pid > 0]  # 0 or less: of another container
        if pids == [os.getpid()]:
            return "this process itself, which opened it twice"
        if pids:
            return f"process{'es' if len(pids) > 1 else ''} {', '.join(map(str, pids))}"
    return "another process"


def _try(descriptor: int, exclusive: bool) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
