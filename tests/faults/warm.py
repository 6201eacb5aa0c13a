"""A warm interpreter that forks: a process for a trial then costs milliseconds, not an interpreter's start, and its death harms nobody.

Run as ``python -m tests.faults.warm`` it takes one JSON request a line and answers each with a line; ``Warm`` is its client.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
_LENGTH = struct.Struct("<Q")
_ROOM = 1 << 20
_HANG_SECONDS = 60.0


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, negative for a signal, and what it returned, or ``{"error": …, "message": …}``."""

    code: int
    value: Any
    err: str
    out: str = ""

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    @property
    def facts(self) -> dict[str, Any]:
        """What it returned. Fails when it did not return."""
        assert self.code == 0, (self.code, self.value, self.err)
        facts: dict[str, Any] = self.value
        return facts


@dataclass(frozen=True)
class Child:
    """A process that was started; the first of its own process group."""

    warm: Warm
    pid: int
    report: Path

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop(self) -> None:
        """Freeze it, as a suspended laptop does; returns when it is frozen."""
        os.kill(self.pid, signal.SIGSTOP)
        wait_until(lambda: state(self.pid) == "T", f"process {self.pid} to stop")

    def go(self) -> None:
        """Let a process go that was started with ``gate``."""
        self.report.with_suffix(".go").touch()

    def wait(self, timeout: float = _HANG_SECONDS) -> Ended:
        """How it ended. A hang is a failure: AssertionError after ``timeout`` seconds."""
        code = self.warm.ask({"wait": self.pid, "timeout": timeout})["code"]
        if code is None:
            os.killpg(self.pid, signal.SIGUSR1)  # its threads, and those of what it forked, say where they are
            time.sleep(1)
            os.killpg(self.pid, signal.SIGKILL)
            self.warm.ask({"wait": self.pid, "timeout": 5})
            raise AssertionError(f"it hung for {timeout} s: {self._text('.err')}")
        return Ended(code, self.value, self._text(".err"), self._text(".out"))

    @property
    def value(self) -> Any:
        """What it has reported so far."""
        data = self.report.read_bytes()
        length = _LENGTH.unpack_from(data)[0]
        return json.loads(data[_LENGTH.size : _LENGTH.size + length]) if length else None

    def _text(self, suffix: str) -> str:
        path = self.report.with_suffix(suffix)  # not there when it was killed at once
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


class Warm:
    """The client. A context manager that ends every process it started."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = self._asked = 0
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.warm"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(10)
        self._server.stdout.close()

    def start(self, function: str, *, gate: bool = False, **settings: Any) -> Child:
        """Run ``module:function(**settings)`` in a new process; a bare name is one of ``tests.faults.trials``.

        Settings and what it returns are JSON. With ``gate`` it waits for ``Child.go``.
        """
        self._started += 1
        report = self._folder / f"child-{self._started}.report"
        with report.open("wb") as file:
            file.truncate(_ROOM)
        answer = self.ask({"start": function, "settings": settings, "report": str(report), "gate": gate})
        return Child(self, answer["pid"], report)

    def run(self, function: str, *, timeout: float = _HANG_SECONDS, **settings: Any) -> Ended:
        """Start it and wait for its end."""
        return self.start(function, **settings).wait(timeout)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._asked += 1
        self._server.stdin.write(json.dumps({**request, "number": self._asked}) + "\n")
        self._server.stdin.flush()
        while True:
            answer: dict[str, Any] = json.loads(self._server.stdout.readline())
            if answer["number"] == self._asked:  # else of a request that a test did not wait for to the end
                return answer


def wait_until(condition: Any, what: str, timeout: float = 30.0) -> None:
    """Poll until it holds; AssertionError naming ``what`` after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s for {what}"
        time.sleep(0.002)


def state(pid: int) -> str:
    """The letter that /proc shows: T for stopped, Z for ended."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def report(value: Any, path: Path) -> None:
    """Leave a value for ``Child.value``: through mapped memory, which no failing write, limit or full disk can reach."""
    data = json.dumps(value).encode()
    descriptor = os.open(path, os.O_RDWR)
    space = mmap.mmap(descriptor, _ROOM)
    space[_LENGTH.size : _LENGTH.size + len(data)] = data
    _LENGTH.pack_into(space, 0, len(data))
    os.close(descriptor)


def _child(request: dict[str, Any]) -> None:
    """The life of a forked process."""
    from cachestore.errors import CachestoreError

    os.setpgid(0, 0)
    path = Path(request["report"])
    for number, name in ((0, os.devnull), (1, path.with_suffix(".out")), (2, path.with_suffix(".err"))):
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, number)
        os.close(descriptor)
    faulthandler.register(signal.SIGUSR1)
    while request["gate"] and not path.with_suffix(".go").exists():
        time.sleep(0.001)
    value: Any = None
    try:
        function = getattr(importlib.import_module(_module(request)), request["start"].rpartition(":")[2])
        value, code = function(**request["settings"]), 0
    except CachestoreError as error:
        value, code = {"error": type(error).__name__, "message": str(error)}, error.exit_code
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException as error:
        value, code = {"error": type(error).__name__, "message": str(error)}, 1
        with contextlib.suppress(OSError):
            traceback.print_exc()
    report(value, path)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def _module(request: dict[str, Any]) -> str:
    return str(request["start"]).rpartition(":")[0] or "tests.faults.trials"


def _wait(pid: int, timeout: float) -> int | None:
    deadline = time.monotonic() + timeout
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.001)


def _end(children: set[int]) -> None:
    while children:
        child = children.pop()
        with contextlib.suppress(ProcessLookupError):  # it may not yet have its group
            os.killpg(child, signal.SIGKILL)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def main() -> None:
    import tests.faults.trials  # noqa: F401  # what children would import, once
    from cachestore import index

    index._SLICE = 7  # so that the shards of trials, which are small, take several transactions as large ones do
    children: set[int] = set()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            with contextlib.suppress(ImportError):  # here, and once; if it cannot be imported, the child says so
                importlib.import_module(_module(request))
            child = os.fork()
            if child == 0:
                _child(request)
            children.add(child)
            answer: dict[str, Any] = {"pid": child}
        elif "end" in request:
            _end(children)
            answer = {}
        else:
            answer = {"code": _wait(request["wait"], request["timeout"])}
            if answer["code"] is not None:
                children.discard(request["wait"])
        answers.write(json.dumps({**answer, "number": request["number"]}) + "\n")
        answers.flush()
    _end(children)


if __name__ == "__main__":
    main()
