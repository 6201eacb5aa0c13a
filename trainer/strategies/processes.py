"""Rank processes of this machine, seen from their parent: started, given work, watched, and ended."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

from cachestore.errors import CachestoreError, ProcessLost, UsageError
from trainer.interrupts import deferred
from trainer.strategies import handover
from trainer.strategies.ranks import others_ended
from trainer.strategies.scratch import Scratch

_T = TypeVar("_T")
_POLL: Final = 0.25
_GRACE: Final = (
    5.0  # seconds in which ranks tell of a failure that they have in common, or that one brought on the others
)


class Processes:
    """``world`` processes that have met. They end with this one, however it ends; in a ``with`` statement, after its body.

    Raises ProcessLost when one is killed while they start.
    """

    def __init__(self, world: int) -> None:
        self.world = world
        self._scratch = Scratch("cachestore-ranks-")
        self._ranks: list[_Rank] = []
        self._usable = True
        try:
            for rank in range(world):
                self._ranks.append(_Rank(rank, world, self._scratch.path))
            self._collect("ready", None, "")
        except BaseException:
            self.close()
            raise

    def run(
        self,
        function: Callable[..., _T],
        *arguments: object,
        tell: Callable[[Any], None] | None = None,
        remedy: str = "Train again.",
    ) -> _T:
        """What rank 0 returns of ``function(ranks, tell, *arguments)``, which all ranks call.

        ``tell`` gets what rank 0 tells. ``function`` must be one that a module has by its name. An interrupt is passed on to the
        ranks, which may finish what they do; a second one kills them.
        Raises what the ranks raise, ProcessLost when one is killed; ``remedy`` ends its message. After that they are of no use.
        """
        if not self._usable:
            raise RuntimeError("these processes failed, and have ended")
        path = self._scratch.path / "arguments"
        try:
            self._hand_over(arguments, path)
            for rank in self._ranks:
                rank.send((str(path), function))
            self._collect("read", tell, remedy)
            path.unlink()
            value: _T = self._collect("done", tell, remedy)[0]
        except BaseException:
            self.close()
            raise
        return value

    def close(self) -> None:
        """End the processes at once."""
        self._usable = False
        for rank in self._ranks:
            rank.kill()
        self._scratch.close()

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _collect(self, wanted: str, tell: Callable[[Any], None] | None, remedy: str) -> list[Any]:
        """What each rank says of ``wanted``, once all have said it."""
        values: dict[int, Any] = {}
        troubles: list[_Trouble] = []
        end = math.inf
        passed_on = False
        with deferred() as interrupt:  # or one could come in the middle of a message
            while len(values) + len(troubles) < self.world and time.monotonic() < end:
                heard = {trouble.rank for trouble in troubles} | values.keys()
                waiting = {rank.connection: rank for rank in self._ranks if rank.number not in heard}
                for connection in wait(list(waiting), _POLL):
                    rank = waiting[connection]  # type: ignore[index]
                    kind, value = rank.receive()
                    if kind == "event":
                        if tell is not None and rank.number == 0:
                            tell(value)
                    elif kind == wanted:
                        values[rank.number] = value
                    else:
                        troubles.append(_Trouble(rank.number, kind, value))
                        end = min(end, time.monotonic() + _GRACE)
                if interrupt.signal is not None and not passed_on:
                    if wanted == "ready":  # they are not made for it yet, and have nothing to save
                        interrupt.deliver()
                    passed_on = True
                    for rank in self._ranks:
                        rank.interrupt()
            if troubles:
                worst = self._worst(troubles, remedy)
                if not passed_on or isinstance(worst, CachestoreError):
                    raise worst
            if passed_on:
                interrupt.deliver()
        return [values[rank] for rank in range(self.world)]

    def _hand_over(self, arguments: tuple[object, ...], path: Path) -> None:
        try:
            handover.write(arguments, path)
        except OSError as error:
            raise UsageError(
                f"What the {self.world} processes need cannot be written to {path.parent} ({error.strerror}). "
                "Make room there, or set TMPDIR to another directory."
            ) from error

    def _worst(self, troubles: list[_Trouble], remedy: str) -> BaseException:
        """The trouble that brought on the others: a death, an error of ours, or the first that is not about others being gone."""
        worst = min(troubles, key=lambda trouble: (trouble.kind != "lost", not trouble.ours, trouble.follows))
        return worst.error(self.world, remedy)


class _Trouble:
    """``value``: the exit status of a rank that is "lost", or the error and traceback of one that "failed"."""

    def __init__(self, rank: int, kind: str, value: Any) -> None:
        self.rank, self.kind, self._value = rank, kind, value
        self.ours = kind == "failed" and isinstance(value[0], CachestoreError)
        self.follows = kind == "failed" and others_ended(str(value[0]))

    def error(self, world: int, remedy: str) -> BaseException:
        if self.kind == "lost":
            return ProcessLost(f"Process {self.rank} of the {world} that train {_ended(self._value)}. {remedy}")
        error, told = self._value
        if error is None:
            error = RuntimeError(f"rank {self.rank} failed")
        if not self.ours and not isinstance(error, KeyboardInterrupt):
            error.add_note(f"In rank {self.rank} of {world}:\n{told}")
        return error  # type: ignore[no-any-return]


class _Rank:
    """One process, and this end of the connection with it."""

    def __init__(self, number: int, world: int, folder: Path) -> None:
        self.number = number
        self.connection: Connection[Any, Any]
        self.connection, theirs = Pipe()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        environment = {
            "OMP_NUM_THREADS": str(max(1, cores // world)),
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        }
        words = [theirs.fileno(), number, world, os.getpid(), folder / "meeting"]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "trainer.strategies.rank", *map(str, words)],
            env=environment,
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C at the terminal is for the parent, which passes it on
        )
        theirs.close()

    def send(self, message: object) -> None:
        with contextlib.suppress(OSError):  # it has ended, as the next ``receive`` tells
            self.connection.send_bytes(pickle.dumps(message))

    def receive(self) -> tuple[str, Any]:
        """The next message; ("lost", exit status) when there is none and never will be."""
        try:
            kind, value = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return "lost", self._process.wait()
        return kind, value

    def interrupt(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.connection.close()


def _ended(status: int) -> str:
    if status >= 0:
        return f"ended with exit code {status}"
    name = signal.Signals(-status).name
    return f"was killed by {name}" + (", as the system does when memory runs out" if name == "SIGKILL" else "")
