"""What the processes of the tests of gc and forget do; see ``tests.faults.warm``. A trial's store is a copy of a prepared one."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachestore import forget, gc, layout, open_store, shard
from cachestore import manifest as manifests
from cachestore.build import run
from cachestore.errors import CachestoreError
from cachestore.fill import Limits
from cachestore.gc_rules import DAY, Rules
from cachestore.keys import Key, fingerprint, key
from cachestore.manifest import FORGOTTEN, PRESENT
from cachestore.pins import Pin, pins, write_pin
from cachestore.store import Store
from tests.faults import injected
from tests.store.counting import CountingEncoder

LIMITS = Limits(shard_rows=10, window_rows=10)
OTHER = {"pooling": "max"}
NEEDED = {"reviews": (0, 30), "reviews@paper": (0, 15), "other": (20, 40), "second": (5, 25), "few": (68, 72)}
"""First row and the one after the last of what is kept, by reference."""
OLD = {"reviews@2": (0, 25)}
FORGOT = 12
RULES = Rules(unreferenced_older_than=DAY, keep_last=1, repack=True, drop_missing_runs=True)


def key_of(number: int, **settings: Any) -> Key:
    return key(fingerprint(CountingEncoder(**settings).spec), f"row {number}".encode())


def vectors(numbers: Iterable[int]) -> NDArray[np.float16]:
    return CountingEncoder().encode([f"row {number}".encode() for number in numbers]).astype(np.float16)


def build(store: Store, folder: Path, first: int, last: int, name: str | None = None, **settings: Any) -> str:
    path = folder / f"rows-{first}-{last}.csv"
    path.write_text("\n".join(["text", *(f"row {row}" for row in range(first, last))]) + "\n")
    encoder = CountingEncoder(**settings)
    return run(store, path, {"text": encoder}, name=name, named=False, limits=LIMITS).manifest.id


def prepare(folder: str) -> dict[str, Any]:
    """A store with something of everything: needed, tagged, of a missing run, unreferenced, superseded, half needed, left over."""
    place = Path(folder)
    place.mkdir()
    with open_store(place / "store") as store:
        build(store, place, 0, 15, "reviews")
        store.tag("reviews", "paper")
        build(store, place, 0, 25, "reviews")
        build(store, place, 0, 30, "reviews")
        build(store, place, 20, 40, "other", **OTHER)
        build(store, place, 0, 20, **OTHER)
        build(store, place, 5, 25, "second", **OTHER)
        pinned = build(store, place, 50, 60)
        created = "2026-01-01T00:00:00+00:00"
        write_pin(store.root, Pin("aa", str(place / "run"), (pinned,), created))
        build(store, place, 55, 75)
        build(store, place, 68, 72, "few")
        copied = range(8, 14)
        with store.writing():
            store.put(CountingEncoder().spec, [key_of(number) for number in copied], vectors(copied))
        for left in ("tmp/left", "index.damaged-1/data.mdb", "trash/1000000000-old/file", "quarantine/shard.arrow"):
            (store.root / left).parent.mkdir(parents=True, exist_ok=True)
            (store.root / left).write_bytes(key_of(FORGOT) + vectors([FORGOT]).tobytes())
    age(place)
    return {}


def age(place: Path) -> None:
    """Every content file is forty days old."""
    then = time.time() - 40 * DAY
    for path in (place / "store").rglob("*"):
        if path.suffix in (".arrow", ".json"):
            os.utime(path, (then, then))


def collect(
    folder: str, die: int = 0, grace: float = DAY, wait: float = 5.0, everything: bool = False
) -> dict[str, Any]:
    """Collect by RULES, or with ``everything`` whatever nothing refers to, however young."""
    rules = Rules(unreferenced_older_than=0, grace=grace, repack=True) if everything else RULES
    if die:
        injected.die_at(die)
    with open_store(Path(folder) / "store") as store:
        plan, done = gc.collect(store, rules, wait=wait)
    return {"trashed": done.trashed, "freed": done.freed, "sparse": len(plan.sparse), "gone": len(plan.unreferenced)}


def forget_one(folder: str, die: int = 0, by_rows: bool = False, wait: float = 5.0) -> dict[str, Any]:
    """Forget FORGOT, by its text or by its row, which tells its text."""
    if die:
        injected.die_at(die)
    with open_store(Path(folder) / "store") as store:
        if by_rows:
            _, done = forget.forget(store, rows=("reviews", [FORGOT]), wait=wait)
        else:
            _, done = forget.forget(store, [f"row {FORGOT}".encode()], wait=wait)
    return {"vectors": done.vectors}


def checked(folder: str, old: bool = False) -> dict[str, Any]:
    """Rows of what is needed that are lost or wrong, in a store open for reading; a row that may be forgotten counts as neither."""
    facts: dict[str, Any] = {"lost": 0, "wrong": 0, "forgotten": 0}
    with open_store(Path(folder) / "store", mode="r") as store:
        for reference, (first, last) in (NEEDED | (OLD if old else {})).items():
            try:
                found, reasons = store.column(reference, "text")
            except CachestoreError:
                facts["lost"] += last - first
                continue
            gone = (np.arange(first, last) == FORGOT) & (reasons == FORGOTTEN)
            expected = vectors(range(first, last))
            facts["lost"] += int(((reasons != PRESENT) & ~gone).sum())
            facts["wrong"] += int(((found != expected).any(axis=1) & (reasons == PRESENT)).sum())
            facts["forgotten"] += int(gone.sum())
    return facts


def state(folder: str) -> dict[str, Any]:
    """What a store holds in the end, however it came to it."""
    with open_store(Path(folder) / "store") as store, store.writing():
        shards = store.index.shards().values()
        return {
            "keys": sorted(each.hex() for keys, _ in store.index.entries() for each in keys.tolist()),
            "rows": sum(entry.rows for entry in shards),
            "shards": len(shards),
            "manifests": manifests.all_manifests(store.root),
            "chunks": sorted(manifests.all_chunks(store.root)),
            "pins": [pin.run for pin in pins(store.root)],
            "settled": store.settled(),
            "tmp": [path.name for path in (store.root / "tmp").iterdir()],
            "on_disk": len(layout.content_sizes(store.root, "shards", ".arrow")),
        }


def aftermath(folder: str, by_rows: bool | None = None) -> dict[str, Any]:
    """What a death left, what the same command makes of it, a collection without ``by_rows``; as ``checked`` twice, and ``state``."""
    left = checked(folder, old=by_rows is not None)
    if by_rows is None:
        collect(folder)
    else:
        forget_one(folder, by_rows=by_rows)
    after = checked(folder, old=by_rows is not None)
    return {
        "lost": left["lost"] + after["lost"],
        "wrong": left["wrong"] + after["wrong"],
        "state": state(folder),
        "traces": traces(Path(folder) / "store"),
    }


def traces(root: Path, number: int = FORGOT) -> list[str]:
    """Files of a store with the vector of a row, or its keys as bytes or hexadecimal, or its text."""
    needles = [vectors([number]).tobytes(), f"row {number}\n".encode()]
    for settings in ({}, OTHER):
        needles += [key_of(number, **settings), key_of(number, **settings).hex().encode()]
    return [
        path.relative_to(root).as_posix()
        for path in sorted(root.rglob("*"))
        if path.is_file() and any(needle in path.read_bytes() for needle in needles)
    ]


def hold(folder: str) -> dict[str, Any]:
    """Keep views of shards, and read on, until a file ``stop`` appears: how often it read, and what was not as before."""
    place = Path(folder)
    facts: dict[str, Any] = {"reads": 0, "changed": 0, "errors": []}
    with open_store(place / "store", mode="r") as store:
        entry = min(store.index.shards().values(), key=lambda entry: entry.number)
        view = shard.open_shard(store.root, entry.name)
        before = (view.keys.tobytes(), view.vectors.tobytes())
        (place / "holding").touch()
        while not (place / "stop").exists():
            for reference, (first, last) in NEEDED.items():
                try:
                    found, mask = store.vectors(reference, "text")
                except CachestoreError as error:
                    facts["errors"].append(f"{type(error).__name__}: {error}")
                    continue
                facts["changed"] += int((found != vectors(range(first, last)))[mask].any())
            facts["changed"] += (view.keys.tobytes(), view.vectors.tobytes()) != before
            facts["reads"] += 1
    return facts


def build_many(folder: str, worker: int) -> dict[str, Any]:
    """Build names of which the rows overlap those of others, and what nothing refers to, one after the other."""
    place = Path(folder) / f"worker-{worker}"
    place.mkdir()
    found: dict[str, Any] = {"names": {}}
    with open_store(Path(folder) / "store") as store:
        for turn in range(6):
            first = 300 + 7 * turn + worker
            build(store, place, 400 + first, 420 + first)
            build(store, place, first, first + 20, f"many-{worker}-{turn}")
            found["names"][f"many-{worker}-{turn}"] = [first, first + 20]
    return found


def build_slowly(folder: str, first: int, last: int, stop_after: str) -> dict[str, Any]:
    """Build, and wait at a point until a file ``go`` appears: after the first "shard" was renamed, or before the "manifest"."""
    place = Path(folder)

    def pause() -> None:
        (place / "paused").touch()
        while not (place / "go").exists():
            time.sleep(0.005)

    if stop_after == "shard":
        real, once = os.rename, threading.Event()

        def rename(source: Any, target: Any) -> None:
            real(source, target)
            if "/shards/" in str(target) and not once.is_set():
                once.set()
                pause()

        os.rename = rename
    else:
        write = Store.write_manifest

        def write_manifest(self: Store, *args: Any) -> Any:
            pause()
            return write(self, *args)

        Store.write_manifest = write_manifest  # type: ignore[method-assign]
    with open_store(place / "store") as store:
        identity = build(store, place, first, last, "slow")
        found, mask = store.vectors(identity, "text")
        return {"whole": bool(mask.all()) and bool((found == vectors(range(first, last))).all())}
