"""Faults put into the process that calls these: before and after the steps that matter, in Python. strace reaches the rest."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from typing import Any

from cachestore import files
from cachestore.environment import Environment

STEPS = ("write", "fsync", "rename", "unlink", "mkdir")


def die_at(step: int) -> None:
    """This process kills itself just before its n-th durable step, counted over writes, fsyncs, renames and LMDB transactions."""
    count = 0

    def fault() -> None:
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)

    for name in STEPS:
        _before_os(name, fault)
    _before_commit(fault)


def fail_at(step: int, names: tuple[str, ...], *, persistent: bool, number: int = errno.EIO) -> Callable[[], int]:
    """The n-th of these steps, and every later one when ``persistent``, fails with that error; returns a function that counts them.

    ``names`` are of STEPS, or "commit" for an LMDB transaction.
    """
    count = 0

    def fault() -> None:
        nonlocal count
        count += 1
        if count == step or (persistent and count > step):
            raise OSError(number, os.strerror(number))

    for name in names:
        if name == "commit":
            _before_commit(fault)
        else:
            _before_os(name, fault)
    return lambda: count


def shift_clock(seconds: float) -> None:
    """The wall clock of this process is wrong by so many seconds; the monotonic one is as it was."""
    if not seconds:
        return
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + seconds
    time.time_ns = lambda: now_ns() + int(seconds * 1e9)

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(seconds=seconds)

    for module in [module for name, module in sys.modules.items() if name.partition(".")[0] == "cachestore"]:
        if getattr(module, "datetime", None) is datetime:
            module.datetime = Shifted  # type: ignore[attr-defined]


def _before_os(name: str, fault: Callable[[], None]) -> None:
    real = getattr(os, name)

    def call(*args: Any, **settings: Any) -> Any:
        fault()
        return real(*args, **settings)

    setattr(os, name, call)


def _before_commit(fault: Callable[[], None]) -> None:
    real = Environment.write

    def write(self: Environment, body: Any, *wait: float) -> Any:
        try:
            fault()
        except OSError as error:  # as LMDB says it
            raise files.translate(error, self.folder) from error
        return real(self, body, *wait)

    Environment.write = write  # type: ignore[method-assign]
