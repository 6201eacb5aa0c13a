"""Builds that are killed, each in a forked child, and then run again: prints what was found as one JSON object.

Run as ``python -m tests.faults.kill_driver {writes|random} FOLDER``. A child dies just before its n-th durable step (fsync, rename,
LMDB transaction), n = 1, 2, 3 … until a child lives, or at a random moment. Children count the payloads they encode in a file.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cachestore import open_store
from cachestore.build import Build, run
from cachestore.fill import Limits
from cachestore.index import Index
from tests.store.counting import CountingEncoder

ROWS, SHARD_ROWS, WINDOW_ROWS = 300, 40, 20
LIMITS = Limits(shard_rows=SHARD_ROWS, window_rows=WINDOW_ROWS)


def write_table(path: Path) -> None:
    lines = ["text"] + [f"row {row % (ROWS - 30)}" for row in range(ROWS)]
    path.write_text("\n".join(lines) + "\n")


class Logged(CountingEncoder):
    """Counts across processes and deaths: one byte per payload is appended to a file."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def encode(self, payloads: Any) -> Any:
        os.write(self.log, b"." * len(payloads))
        time.sleep(0.0005)
        return super().encode(payloads)


def run_build(folder: Path) -> Build:
    with open_store(folder / "store") as store:
        return run(store, folder / "table.csv", {"text": Logged(folder / "log")}, name="table", limits=LIMITS)


def forked(body: Callable[[], None]) -> int:
    """Run a body in a child; returns the process id."""
    child = os.fork()
    if child == 0:
        try:
            body()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    return child


def die_at(step: int) -> None:
    """Make this process kill itself just before its n-th durable step."""
    steps = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **settings: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **settings)

        return call

    os.fsync = counted(os.fsync)
    os.rename = counted(os.rename)
    Index._write = counted(Index._write)  # type: ignore[method-assign]


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_table(folder / "table.csv")
    return folder


def after(folder: Path, expected: str) -> dict[str, Any]:
    """Run the same build again, undisturbed, and compare."""

    def again() -> None:
        finished = run_build(folder)
        with open_store(folder / "store") as store:
            vectors, mask = store.vectors(finished.manifest, "text")
            truth = CountingEncoder().encode(
                [line.encode() for line in (folder / "table.csv").read_text().splitlines()[1:]]
            )
            facts = {
                "same_id": finished.manifest.id == expected,
                "same_vectors": bool(mask.all()) and bool((vectors == truth.astype(vectors.dtype)).all()),
                "versions": len(store.log("table")),
                "temporary": len(list((folder / "store" / "tmp").iterdir())),
            }
        (folder / "facts.json").write_text(json.dumps(facts))

    status = os.waitstatus_to_exitcode(os.waitpid(forked(again), 0)[1])
    facts: dict[str, Any] = json.loads((folder / "facts.json").read_text()) if status == 0 else {}
    return {"status": status, "encoded": (folder / "log").stat().st_size if (folder / "log").exists() else 0, **facts}


def main(mode: str, folder: Path) -> None:
    os.fsync = lambda descriptor: None  # SIGKILL loses no written page, so nobody need wait for the disk
    undisturbed = fresh(folder / "undisturbed")
    began = time.monotonic()
    expected = run_build(undisturbed).manifest.id
    seconds = time.monotonic() - began
    found = []
    for trial in range(1, 500 if mode == "writes" else 26):
        place = fresh(folder / f"{mode}-{trial}")

        def body(place: Path = place, trial: int = trial) -> None:
            if mode == "writes":
                die_at(trial)
            run_build(place)

        child = forked(body)
        if mode == "random":
            time.sleep(random.Random(trial).uniform(0, seconds * 1.2))
            os.kill(child, signal.SIGKILL)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        found.append({"trial": trial, "killed": killed, **after(place, expected)})
        shutil.rmtree(place)
        if mode == "writes" and not killed:
            break
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
