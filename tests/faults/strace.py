"""Faults in system calls, also those of C libraries: strace attached to a process that waits at its gate."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.warm import Child, wait_until

# one by one: strace counts ``when`` for each call and thread by itself
WRITES = ("write", "pwrite64", "writev", "pwritev")
SYNCS = ("fsync", "fdatasync", "msync")
RENAMES = ("rename", "renameat2", "unlink")
CALLED = {"write", "pwrite64", "fsync", "fdatasync", "rename"}
"""What every build calls."""


@functools.cache
def refusal() -> str | None:
    """Why strace cannot be used here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    if os.uname().sysname != "Linux":
        return "strace is of Linux"
    done = subprocess.run(
        ["strace", "-qq", "-f", "-o", "/dev/null", "-e", "inject=getpid:error=EIO", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return None if done.returncode == 0 else f"strace may not trace here: {done.stderr.strip()}"


@contextmanager
def injecting(child: Child, call: str, what: str) -> Iterator[Callable[[], bool]]:
    """Inject ``what`` (``error=EIO:when=3``) into a system call of a child started with ``gate``, and let it go.

    Yields a function that tells, when the body is done, whether the child made that many calls.
    """
    trace = child.report.with_suffix(".trace")
    tracer = subprocess.Popen(
        f"strace -f -qq -o {trace} -e trace={call} -e inject={call}:{what} -p {child.pid}".split(),
        stderr=subprocess.PIPE,
    )
    try:
        wait_until(lambda: _traced(child.pid) or tracer.poll() is not None, "strace to attach")
        child.go()
        yield lambda: b"INJECTED" in trace.read_bytes() or b"killed by" in trace.read_bytes()
    finally:
        with_child = time.monotonic() + 5  # it ends with the process that it traces
        while tracer.poll() is None and time.monotonic() < with_child:
            time.sleep(0.001)
        if tracer.poll() is None:
            tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=10)


def _traced(pid: int) -> bool:
    try:
        return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True
