"""What is asked of a damaged store, each by a process of its own that ``tests.faults.warm`` forks: it may die of it."""

from __future__ import annotations

import importlib
import io
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Literal

import lmdb.verify
import numpy as np
from numpy.typing import NDArray

from cachestore import index_checker, index_file, open_store, references, repair, verify
from cachestore.build import run
from cachestore.errors import CachestoreError, DamageError, StoreError
from cachestore.fill import Limits
from cachestore.index import Locations
from cachestore.keys import Key, fingerprint, keys
from cachestore.shard import stored_dtype
from cachestore.store import Store
from cli import app
from tests.store.counting import CountingEncoder

ROWS, FIRST_ROWS, SHARD_ROWS = 90, 60, 25
LIMITS = Limits(shard_rows=SHARD_ROWS, window_rows=SHARD_ROWS)
COLUMNS = ("text", "title")
VECTORS = 79 + 45
"""How many vectors the small store holds."""


def encoders() -> dict[str, CountingEncoder]:
    """One encoder for each column; the second has vectors of twice the size."""
    return {"text": CountingEncoder(), "title": CountingEncoder("float32", salt=1)}


def write_table(path: Path, rows: int) -> None:
    """Rows of two columns: some cells repeat, two are missing."""
    lines = [f"{'' if row in (7, 70) else f'text {row % 80}'},title {row % 45}" for row in range(rows)]
    path.write_text("\n".join(["text,title", *lines]) + "\n")


def truths(folder: Path) -> dict[str, dict[Key, NDArray[Any]]]:
    """By column, the vector that each key of the table stands for."""
    cells = [line.split(",") for line in (folder / "table.csv").read_text().splitlines()[1:]]
    found = {}
    for at, (column, encoder) in enumerate(encoders().items()):
        distinct = list(dict.fromkeys(row[at].encode() for row in cells if row[at]))
        vectors = encoder.encode(distinct).astype(stored_dtype(encoder.spec))
        found[column] = dict(zip(keys(fingerprint(encoder.spec), distinct), vectors, strict=True))
    return found  # type: ignore[return-value]


def make(folder: str) -> dict[str, Any]:
    """A small store with a file of every class: two versions of a name, a tag and a pin."""
    place = Path(folder)
    place.mkdir(parents=True)
    for rows in (FIRST_ROWS, ROWS):
        write_table(place / "table.csv", rows)
        with open_store(place / "store") as store:
            built = run(store, place / "table.csv", encoders(), name="table", limits=LIMITS)
            if rows == FIRST_ROWS:
                shutil.copy(place / "table.csv", place / "first.csv")
                created, head = "2026-01-01T00:00:00+00:00", built.manifest.id
                references.write_tag(store.root, references.Tag("table", "first", 1, head, created))
                references.write_pin(store.root, references.Pin("run-1", str(place / "run"), (head,), created))
    return {"id": built.manifest.id, "encoded": built.counts.encoded}


def read(folder: str, mode: Literal["r", "w"] = "r") -> dict[str, Any]:
    """Ask for every vector one by one, then for every name: how many come, are refused by a typed error, missing or wrong.

    A store that cannot be opened raises its typed error; any other exception fails the trial.
    """
    place = Path(folder)
    facts: dict[str, Any] = {"served": 0, "refused": [], "missing": 0, "wrong": 0, "errors": [], "names": 0}
    with warnings.catch_warnings(), open_store(place / "store", mode) as store:
        warnings.simplefilter("ignore")
        for column, truth in truths(place).items():
            for key, vector in truth.items():
                _ask(store, column, key, vector, facts)
        _read_names(store, place, facts)
    return facts


def _read_names(store: Store, place: Path, facts: dict[str, Any]) -> None:
    for reference in ("table", "table@1", "table@first"):
        for column in COLUMNS:
            try:
                vectors, mask = store.vectors(reference, column)
            except (DamageError, StoreError) as error:
                facts["errors"].append(f"{type(error).__name__}: {error}")
            else:
                facts["names"] += 1
                facts["wrong"] += _wrong(vectors, mask, place, column)


def _ask(store: Store, column: str, key: Key, vector: NDArray[Any], facts: dict[str, Any]) -> None:
    out = np.zeros((1, len(vector)), vector.dtype)
    try:
        found = store.index.lookup([key])
        if found.shards[0] < 0:
            facts["missing"] += 1
            return
        store.gather(np.frombuffer(key, "V32"), Locations(found.shards, found.rows), out)
    except CachestoreError as error:
        facts["refused"].append(f"{type(error).__name__}: {error}")
        return
    same = out.tobytes() == vector.tobytes()
    facts["served" if same else "wrong"] += 1


def _wrong(vectors: NDArray[Any], mask: NDArray[np.bool_], place: Path, column: str) -> int:
    """Rows of a column that are not what the table says."""
    at = COLUMNS.index(column)
    cells = [line.split(",")[at].encode() for line in (place / "table.csv").read_text().splitlines()[1:]][: len(mask)]
    truth = encoders()[column].encode(cells).astype(vectors.dtype)
    there = np.array([bool(cell) for cell in cells])
    return int(
        ((vectors.view(np.uint8) != truth.view(np.uint8)).any(axis=1) & there & mask).sum() + (mask != there).sum()
    )


def again(folder: str) -> dict[str, Any]:
    """Build both versions of the table again and read the newer whole: the id, what was encoded, and what is not as it should be."""
    place = Path(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_store(place / "store") as store:
            used = encoders()
            if (place / "first.csv").exists():
                run(store, place / "first.csv", used, named=False, limits=LIMITS)
            built = run(store, place / "table.csv", used, name="table", limits=LIMITS)
            wrong = sum(_wrong(*store.vectors(built.manifest, column), place, column) for column in COLUMNS)
    return {"id": built.manifest.id, "encoded": sum(len(encoder.seen) for encoder in used.values()), "wrong": wrong}


def verified(folder: str) -> dict[str, Any]:
    """What ``verify`` finds in a store when it reads everything."""
    index_file._running = _checked_here  # type: ignore[assignment]
    report = verify.verify(Path(folder) / "store", read_data=True, seed=1)
    return {"damage": [str(finding) for finding in report.damage]}


def repaired(folder: str) -> dict[str, Any]:
    """Repair a store: how many vectors were salvaged, and what is to be built again."""
    index_file._running = _checked_here  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = repair.repair(Path(folder) / "store")
    return {"salvaged": sum(mend.salvaged for mend in plan.shards), "build": [str(item) for item in plan.build]}


def examined(folder: str) -> dict[str, Any]:
    """``read`` and ``verified``, or the typed error that each ended with."""
    return {"read": _answer(read, folder), "verified": _answer(verified, folder)}


def glanced(folder: str, build: bool) -> dict[str, Any]:
    """What a user does first: read all names, and build once more. Every answer may be a typed error."""
    return {"read": _answer(named, folder), "again": _answer(again, folder) if build else {}}


def named(folder: str) -> dict[str, Any]:
    """Read what every name leads to: how many columns can be read, and how many of their rows are wrong."""
    place = Path(folder)
    facts: dict[str, Any] = {"wrong": 0, "errors": [], "names": 0}
    with open_store(place / "store", "r") as store:
        _read_names(store, place, facts)
    return facts


def mended(folder: str) -> dict[str, Any]:
    """``repaired``, then what is true of the store when it is built ``again``."""
    found = {"repaired": _answer(repaired, folder)}
    if "error" not in found["repaired"]:
        found |= {"again": again(folder), "read": read(folder), "verified": verified(folder)}
    return found


def _answer(question: Callable[[str], dict[str, Any]], folder: str) -> dict[str, Any]:
    try:
        return question(folder)
    except CachestoreError as error:
        return {"error": type(error).__name__, "message": str(error), "code": error.exit_code}


@contextmanager
def _checked_here(
    folder: Path, action: str, out: IO[bytes] | int, errors: IO[bytes] | int
) -> Iterator[SimpleNamespace]:
    """The checker of the index in this process, which is spared an interpreter's start: it never opens the file by LMDB."""
    found = io.BytesIO()
    problems: list[str] = []
    code = 0
    with (folder / "data.mdb").open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            to = None if action == "check" else found
            problems = index_checker.Checker(file, size, to, pages=action == "pages").verify()
        except index_checker.Odd:
            code = index_file.ODD
        except lmdb.verify.VerifyError as error:
            problems = [str(error)]
    if not isinstance(out, int):
        out.write(found.getvalue())
    if not isinstance(errors, int):
        errors.write("\n".join(problems).encode())
    found.seek(0)
    yield SimpleNamespace(stdout=found, wait=lambda: code or (index_file.PROBLEMS if problems else 0))


def placed(folder: str, mode: Literal["r", "w"] = "r") -> dict[str, str]:
    """Where the index says that each key lies: the shard's name and the row. In mode "w" what others left is mended first."""
    found: dict[str, str] = {}
    with warnings.catch_warnings(), open_store(Path(folder) / "store", mode) as store:
        warnings.simplefilter("ignore")
        if mode == "w":
            with store.writing():
                pass
        names = store.index.names(store.index.shards())
        for block, places in store.index.entries():
            for key, number, row in zip(block, places.shards.tolist(), places.rows.tolist(), strict=True):
                found[key.tobytes().hex()] = f"{names[number]} {row}"
    return found


def command(arguments: list[str]) -> None:
    """Run a command as the shell would; its exit code is this process's."""
    raise SystemExit(app.run(arguments))


def commands(lines: list[list[str]]) -> list[int]:
    """Run commands one after the other in this process; their exit codes."""
    index_file._running = _checked_here  # type: ignore[assignment]
    return [app.run(line) for line in lines]


def make_of_the_future(folder: str, modules: list[str]) -> dict[str, Any]:
    """``make``, by a version of this package whose files of those modules have the next format."""
    for name in modules:
        importlib.import_module(name).FORMAT += 1
    return make(folder)
