"""What the processes of fault tests do. Each function is run by ``tests.faults.warm`` in a process of its own."""

from __future__ import annotations

import dataclasses
import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cli.build
import cli.start  # noqa: F401
from cachestore import open_store
from cachestore.build import run as run_build
from cachestore.built import Build
from cachestore.fill import Limits
from cachestore.index import Index
from cachestore.keys import Key
from cachestore.store import Store
from tests.faults import injected, ledger
from tests.faults.invariants import check
from tests.faults.ledger import Ledger
from tests.store.counting import CountingEncoder

ROWS, DISTINCT = 150, 135
SHARD_ROWS, WINDOW_ROWS = 40, 20
LIMITS = Limits(shard_rows=SHARD_ROWS, window_rows=WINDOW_ROWS)


class Noted(CountingEncoder):
    """Notes what it encodes, and takes its time over it."""

    def __init__(self, notes: Ledger, seconds: float = 0.0) -> None:
        super().__init__()
        self.notes = notes
        self.seconds = seconds

    def encode(self, payloads: Sequence[bytes]) -> NDArray[np.float32]:
        self.notes.encoded(len(payloads))
        time.sleep(self.seconds)
        return super().encode(payloads)


def write_table(path: Path, rows: int = ROWS, distinct: int = DISTINCT) -> None:
    """One column, of which the last rows repeat the first."""
    path.write_text("\n".join(["text", *(f"row {row % distinct}" for row in range(rows))]) + "\n")


def payloads(folder: Path, tables: str = "table.csv") -> list[bytes]:
    """The cells of the table of a trial, or of all tables of that pattern."""
    return [cell for path in sorted(folder.glob(tables)) for cell in path.read_bytes().splitlines()[1:]]


def fresh(folder: Path, rows: int = ROWS, distinct: int = DISTINCT) -> Path:
    """A new folder of a trial, with its table."""
    folder.mkdir(parents=True)
    write_table(folder / "table.csv", rows, distinct)
    return folder


def build(
    folder: str,
    *,
    name: str = "table",
    seconds: float = 0.0,
    die: int = 0,
    fail: Sequence[Any] = (),
    table: str = "table.csv",
    limits: dict[str, Any] | None = None,
    resources: dict[str, int] | None = None,
    clock: float = 0.0,
) -> dict[str, Any]:
    """Build the table into the store beside it, noting what is done in a ledger of this process.

    ``die`` is a step for ``die_at``; ``fail`` are (step, names, persistent) for ``fail_at``; ``limits`` are of a Fill, ``resources``
    those of the operating system, by name; ``clock`` is by how many seconds the clock of this process is wrong.
    """
    notes = noting(Path(folder))
    for limit, most in (resources or {}).items():
        resource.setrlimit(getattr(resource, limit), (most, most))
    injected.shift_clock(clock)
    steps = None
    if die:
        injected.die_at(die)
    if fail:
        steps = injected.fail_at(fail[0], tuple(fail[1]), persistent=fail[2])
    settings = dataclasses.replace(LIMITS, **(limits or {}))
    with open_store(Path(folder) / "store") as store:
        built = run(store, Path(folder) / table, Noted(notes, seconds), name, settings)
    return {"id": built.manifest.id, "encoded": built.counts.encoded, "steps": steps() if steps else 0}


def run(store: Store, table: Path, encoder: CountingEncoder, name: str, limits: Limits = LIMITS) -> Build:
    return run_build(store, table, {"text": encoder}, name=name, limits=limits)


def noting(folder: Path) -> Ledger:
    """A ledger of this process, which from now on also notes the keys it commits and the names it points."""
    notes = Ledger(folder / f"ledger-{os.getpid()}")
    commit, point = Index.commit, Store.point

    def noted_commit(self: Index, *args: Any, **settings: Any) -> int:
        number = commit(self, *args, **settings)
        notes.committed(args[3] if len(args) > 3 else settings["keys"])
        return number

    def noted_point(self: Store, *args: Any, **settings: Any) -> None:
        point(self, *args, **settings)
        notes.named()

    Index.commit = noted_commit  # type: ignore[method-assign]
    Store.point = noted_point  # type: ignore[method-assign]
    return notes


def told(folder: Path) -> tuple[int, set[Key], int]:
    """All ledgers of a trial: payloads encoded, keys committed, names pointed."""
    return ledger.read(folder.glob("ledger-*"))


def aftermath(folder: str, table: str = "table.csv", resources: dict[str, int] | None = None) -> dict[str, Any]:
    """Check the invariants of the store that a fault left, build again undisturbed, and check them again."""
    place = Path(folder)
    cells = payloads(place, "*.csv")
    _, committed, named = told(place)
    left = check(place / "store", cells, committed, CountingEncoder())
    again = build(folder, table=table, resources=resources)
    encoded, committed, _ = told(place)
    after = check(place / "store", cells, committed, CountingEncoder())
    with open_store(place / "store", mode="r") as store:
        versions = len(store.log("table"))
    return {
        "lost": left.lost + after.lost,
        "wrong": left.wrong + after.wrong,
        "partial": left.partial + after.partial,
        "stored": left.stored,
        "complete": after.stored == len(set(cells)),
        "id": again["id"],
        "encoded": encoded,
        "named": named,
        "versions": versions,
        "temporary": len(list((place / "store" / "tmp").iterdir())),
    }
