"""B3 14, 15: many readers, killed readers, and a map that grows under a reader: the index stays small, and nobody is shut out."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cachestore import environment, open_store
from cachestore.keys import fingerprint, keys
from tests.faults import trials
from tests.faults.record import Record
from tests.faults.warm import Child, Warm, state, wait_until
from tests.store.counting import CountingEncoder

Recording = Callable[[str], Record]
HERE = "tests.faults.test_readers:"


def write_more(folder: str, rows: int, shard: int, ready: str = "") -> dict[str, Any]:
    """Write so many new rows in shards, and tell how large the index is then. With ``ready``, opens the store and waits for ``go``."""
    place = Path(folder)
    notes = trials.noting(place)
    encoder = trials.Noted(notes)
    texts = [f"more {row}" for row in range(rows)]
    (place / "more.csv").write_text("\n".join(["text", "the first", *texts]) + "\n")
    with open_store(place / "store") as store:
        store.embed(["the first"], encoder)
        if ready:
            (place / ready).touch()
            wait_until((place / "go").exists, "the word to go", timeout=600)
        for at in range(0, rows, shard):
            store.embed(texts[at : at + shard], encoder)
        info = store.index._current()._lmdb.info()
    return {"bytes": (place / "store" / "index" / "data.mdb").stat().st_size, "readers": info["num_readers"]}


def read_for_ever(folder: str, inside: bool, seen: str) -> None:
    """A reader: inside one read transaction until it is killed, or looking rows up again and again."""
    place = Path(folder)
    names = [key for key in keys(fingerprint(CountingEncoder().spec), trials.payloads(place)) if key]
    with open_store(place / "store", mode="r") as store:

        def sit(txn: Any) -> None:
            txn.get(names[0])
            (place / seen).touch()
            while True:
                signal.pause()

        if inside:
            store.index._read(b"keys", sit)
        while not (place / "stop").exists():
            assert (store.index.lookup(names).shards >= 0).all()
            (place / seen).touch()
            time.sleep(1)  # hundreds of them share the machine with the writer


def read_while_it_grows(folder: str, map_size: int) -> dict[str, Any]:
    """Look rows up until a build has ended that began with a tiny map; every row stays where it was, and is as it was."""
    environment._MAP_SIZE = map_size
    place = Path(folder)
    encoder = CountingEncoder()
    names = [key for key in keys(fingerprint(encoder.spec), trials.payloads(place)) if key]
    truth = encoder.encode(trials.payloads(place)).astype(np.float16)
    rounds = wrong = 0
    with open_store(place / "store", mode="r") as store:
        while not (place / "stop").exists() or rounds == 0:
            found = store.index.lookup(names)
            out = np.zeros(truth.shape, np.float16)
            store.gather(np.frombuffer(b"".join(names), "V32"), found, out)
            wrong += int((out != truth).any(axis=1).sum())
            rounds += 1
            (place / "seen").touch()
    return {"rounds": rounds, "wrong": wrong}


def grow(folder: str, map_size: int, rows: int) -> dict[str, Any]:
    """Write more than a tiny map holds."""
    environment._MAP_SIZE = map_size
    return write_more(folder, rows, 200)


def readers(warm: Warm, place: Path, count: int, inside: bool) -> list[Child]:
    named = [f"seen-{inside}-{number}" for number in range(count)]
    started = [warm.start(HERE + "read_for_ever", folder=str(place), inside=inside, seen=name) for name in named]
    wait_until(lambda: all((place / name).exists() for name in named), "all readers to read", timeout=60 + count)
    return started


def kill(children: list[Child]) -> None:
    for child in children:
        child.send(signal.SIGKILL)
    wait_until(lambda: all(state(child.pid) == "Z" for child in children), "the readers to die")


@pytest.mark.parametrize(
    ("opened", "count"),
    [
        ("before", 300),
        ("after", 40),
        *(pytest.param(opened, 900, marks=pytest.mark.long) for opened in ("before", "after")),
    ],
)
def test_the_places_of_killed_readers_are_given_to_others_and_the_index_stays_small(
    warm: Warm, folder: Path, record: Recording, opened: str, count: int
) -> None:
    rows, shard = 10 * trials.DISTINCT, 30
    calm = trials.fresh(folder / "calm")
    assert warm.run("build", folder=str(calm)).code == 0
    undisturbed = warm.run(HERE + "write_more", folder=str(calm), rows=rows, shard=shard).facts["bytes"]
    with record(f"14 readers killed, the writer opened the store {opened}") as trial:
        place = trials.fresh(folder / "trial")
        assert warm.run("build", folder=str(place)).code == 0
        more = {"folder": str(place), "rows": rows, "shard": shard}
        if opened == "before":
            writer = warm.start(HERE + "write_more", **more, ready="ready")
            wait_until((place / "ready").exists, "the writer to open the store")
        # half of them die inside a transaction, which keeps every page that it may see; the others live and look up
        dying, living = readers(warm, place, count // 2, True), readers(warm, place, count // 2, False)
        kill(dying)
        if opened == "after":
            writer = warm.start(HERE + "write_more", **more)
        (place / "go").touch()
        facts = writer.wait(timeout=300).facts
        (place / "stop").touch()
        assert [child.wait().code for child in living] == [0] * len(living)
        assert facts["bytes"] < 2 * undisturbed, f"{facts['bytes']:,} bytes, undisturbed {undisturbed:,}"
        left = warm.run("aftermath", folder=str(place)).facts
        trial.trial(lost=left["lost"], wrong=left["wrong"])
        assert (left["lost"], left["wrong"], left["partial"], left["complete"]) == (0, 0, [], True)


@pytest.mark.long
def test_more_readers_in_turn_than_there_are_places_are_all_served(warm: Warm, folder: Path, record: Recording) -> None:
    with record("14 1,300 readers killed in turn, of 1,024 places") as trial:
        place = trials.fresh(folder / "trial")
        assert warm.run("build", folder=str(place)).code == 0
        for turn in range(5):
            kill(readers(warm, place, 260, True))
            for name in place.glob("seen-*"):
                name.unlink()
            left = warm.run("aftermath", folder=str(place)).facts
            trial.trial(lost=left["lost"], wrong=left["wrong"])
            assert (left["lost"], left["wrong"], left["partial"]) == (0, 0, []), turn


@pytest.mark.parametrize("map_size", [1 << 16, 1 << 18])
def test_a_map_grows_while_another_process_reads(warm: Warm, folder: Path, record: Recording, map_size: int) -> None:
    with record("15 a map that is full grows under a reader") as trial:
        place = trials.fresh(folder / "trial")
        assert warm.run("build", folder=str(place)).code == 0
        reader = warm.start(HERE + "read_while_it_grows", folder=str(place), map_size=map_size)
        wait_until((place / "seen").exists, "the reader to read")
        grown = warm.run(HERE + "grow", folder=str(place), map_size=map_size, rows=6_000).facts
        (place / "stop").touch()
        facts = reader.wait().facts
        assert grown["bytes"] > 2 * map_size or grown["bytes"] > 1 << 18
        left = warm.run("aftermath", folder=str(place)).facts
        trial.trial(lost=left["lost"], wrong=left["wrong"] + facts["wrong"])
        assert (facts["wrong"], left["lost"], left["wrong"], left["partial"]) == (0, 0, 0, [])
