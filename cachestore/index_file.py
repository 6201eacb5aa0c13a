"""The file of the index as bytes: checked by LMDB's own checker, in another process and without LMDB opening it.

LMDB trusts its file, so a damaged one can end the process that reads it; and a process that has it open must not open it
a second time, because closing that would drop its locks.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DATA = "data.mdb"
# holds a snapshot: its pages are not reused while it is there
_HOLD = """
import sys, lmdb
with lmdb.open(sys.argv[1], readonly=True, create=False, readahead=False) as environment, environment.begin():
    print("held", flush=True)
    sys.stdin.read()
"""


def problems(folder: Path) -> list[str]:
    """What is wrong with the file of an index, in the words of the checker; also when writers are at work.

    Raises FileNotFoundError when there is no file.
    """
    found, moved = _check(folder)
    if found and moved:  # pages were reused while it was read
        with _held(folder):
            found, _ = _check(folder)
    return found


def _check(folder: Path) -> tuple[list[str], bool]:
    """The problems, and whether the file changed meanwhile."""
    before = (folder / _DATA).stat()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "lmdb", "verify", str(folder)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    after = (folder / _DATA).stat()
    moved = (before.st_size, before.st_mtime_ns, before.st_ino) != (after.st_size, after.st_mtime_ns, after.st_ino)
    if done.returncode == 0:
        return [], moved
    lines = done.stdout.splitlines() or done.stderr.strip().splitlines()[-1:]
    return lines or [f"the checker ended with {done.returncode}"], moved


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    holder = subprocess.Popen(
        [sys.executable, "-P", "-c", _HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with holder:
        try:
            if holder.stdout:
                holder.stdout.readline()  # empty when it cannot: nobody may register there, or the file ends it
            yield
        finally:
            if holder.stdin:
                holder.stdin.close()
            holder.wait()
