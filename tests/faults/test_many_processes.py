"""B3 11, 12, 28: processes that build the same, die and are tried again, or are frozen: each key is encoded once, and nothing is stolen."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cachestore import open_store
from cachestore.index import Index
from tests.faults import trials
from tests.faults.ledger import Ledger
from tests.faults.record import Record
from tests.faults.warm import Child, Warm, wait_until
from tests.faults.warm import state as process_state

Recording = Callable[[str], Record]
HERE = "tests.faults.test_many_processes:"
PARTS, PART_ROWS = 12, 60


class Freezing(trials.Noted):
    """Stops its own process in the middle of its n-th window, when that is claimed and not stored."""

    def __init__(self, notes: Ledger, window: int) -> None:
        super().__init__(notes)
        self.windows = window

    def encode(self, payloads: Sequence[bytes]) -> NDArray[np.float32]:
        vectors = super().encode(payloads)
        self.windows -= 1
        if self.windows == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        return vectors


def build_and_freeze(folder: str, window: int) -> dict[str, Any]:
    """A build that stops in the middle of a window."""
    notes = trials.noting(Path(folder))
    with open_store(Path(folder) / "store") as store:
        return {"id": trials.run(store, Path(folder) / "table.csv", Freezing(notes, window), "table").manifest.id}


def build_part(folder: str, part: int, die: float, seed: int, freeze: bool = False) -> dict[str, Any]:
    """A task of a pool: build one part. The worker dies with probability ``die`` between a shard's rename and its commit, or freezes."""
    rolls = random.Random(seed)
    notes = trials.noting(Path(folder))
    commit = Index.commit

    def fault(self: Index, *args: Any, **settings: Any) -> int:
        if freeze:
            os.kill(os.getpid(), signal.SIGSTOP)
        if rolls.random() < die:
            os._exit(9)
        return commit(self, *args, **settings)

    Index.commit = fault  # type: ignore[method-assign]
    with open_store(Path(folder) / "store") as store:
        name = f"part-{part}"
        return {"id": trials.run(store, Path(folder) / f"{name}.csv", trials.Noted(notes), name).manifest.id}


def be_alone(folder: str, wait: float) -> dict[str, Any]:
    """What gc, forget and repair begin with."""
    with open_store(Path(folder) / "store") as store, store.alone(wait=wait):
        return {"alone": True}


def rows_on_disk(folder: str) -> dict[str, Any]:
    """Rows of all shards, and of the index."""
    with open_store(Path(folder) / "store", mode="r") as store:
        return {"rows": sum(entry.rows for entry in store.index.shards().values()), "settled": store.settled()}


def sound(warm: Warm, place: Path, record: Record) -> dict[str, Any]:
    facts = warm.run("aftermath", folder=str(place)).facts
    record.trial(lost=facts["lost"], wrong=facts["wrong"])
    assert (facts["lost"], facts["wrong"], facts["partial"]) == (0, 0, []), facts
    assert (facts["complete"], facts["versions"], facts["temporary"]) == (True, 1, 0), facts
    return facts


def frozen(child: Child) -> Child:
    wait_until(lambda: process_state(child.pid) == "T", "a process to freeze")
    return child


@pytest.mark.parametrize("rows", [600, pytest.param(20_000, marks=pytest.mark.long)])
def test_eight_processes_that_build_the_same_encode_each_key_once(
    warm: Warm, folder: Path, record: Recording, rows: int
) -> None:
    with record("11 eight builders of the same rows") as trial:
        for number in range(3):
            place = trials.fresh(folder / str(number), rows + rows // 10, rows)
            limits = {"shard_rows": rows // 5, "window_rows": rows // 20}
            builders = [
                warm.start("build", folder=str(place), seconds=0.005, limits=limits, gate=True) for _ in range(8)
            ]
            for builder in builders:
                builder.go()
            ended = [builder.wait() for builder in builders]
            assert len({end.facts["id"] for end in ended}) == 1
            encoded, committed, _ = trials.told(place)
            assert (encoded, len(committed)) == (rows, rows)
            assert warm.run(HERE + "rows_on_disk", folder=str(place)).facts == {"rows": rows, "settled": True}
            assert sound(warm, place, trial)["encoded"] == rows


@pytest.mark.parametrize("pools", [2, pytest.param(30, marks=pytest.mark.long)])
def test_workers_of_a_pool_that_die_between_shard_and_index_are_tried_again(
    warm: Warm, folder: Path, record: Recording, pools: int
) -> None:
    deaths = 0
    with record("12 workers die before they index their shard, and are tried again") as trial:
        for seed in range(pools):
            place = parts(folder / str(seed))
            waiting, running, tries, died = list(range(PARTS)), dict[int, Child](), 0, 0
            while waiting or running:
                while waiting and len(running) < 4:
                    part, tries = waiting.pop(0), tries + 1
                    settings = {"part": part, "die": 0.3, "seed": 1000 * seed + tries}
                    running[part] = warm.start(HERE + "build_part", folder=str(place), **settings)
                part, child = running.popitem()
                ended = child.wait()
                assert ended.code in (0, 9), ended
                if ended.code == 9:
                    waiting.append(part)
                    died += 1
            deaths += died
            facts = sound(warm, place, trial)
            assert facts["named"] == PARTS
            # a worker that dies over a shard leaves it to be found, while others may already encode its rows
            distinct = len(set(trials.payloads(place)))
            on_disk = warm.run(HERE + "rows_on_disk", folder=str(place)).facts
            assert on_disk["settled"]
            assert distinct <= on_disk["rows"] == facts["encoded"] <= distinct + died * trials.SHARD_ROWS
    assert deaths > pools, "the faults did not happen"


def parts(place: Path) -> Path:
    """A table, and its parts, each of which repeats half of the one before."""
    trials.fresh(place, (PARTS + 1) * PART_ROWS // 2, (PARTS + 1) * PART_ROWS // 2)
    rows = (place / "table.csv").read_text().splitlines()[1:]
    for part in range(PARTS):
        first = part * PART_ROWS // 2
        (place / f"part-{part}.csv").write_text("\n".join(["text", *rows[first : first + PART_ROWS]]) + "\n")
    return place


def test_a_worker_that_comes_back_after_its_task_was_done_by_another_changes_nothing(
    warm: Warm, folder: Path, record: Recording
) -> None:
    with record("12 a late writer ends after its task was done again") as trial:
        place = parts(folder / "trial")
        late = frozen(warm.start(HERE + "build_part", folder=str(place), part=0, die=0, seed=0, freeze=True))
        first = warm.run(HERE + "build_part", folder=str(place), part=0, die=0, seed=0).facts
        late.send(signal.SIGCONT)
        while process_state(late.pid) == "T":  # it stops before each commit
            late.send(signal.SIGCONT)
        wait_until(lambda: resumed(late), "the late writer to end")
        assert late.wait().facts == first
        assert trials.told(place)[0] == PART_ROWS
        sound(warm, place, trial)
        on_disk = warm.run(HERE + "rows_on_disk", folder=str(place)).facts
        assert on_disk == {"rows": len(set(trials.payloads(place))), "settled": True}


def resumed(child: Child) -> bool:
    if process_state(child.pid) == "T":
        child.send(signal.SIGCONT)
    return process_state(child.pid) == "Z"


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGCONT])
def test_nobody_takes_the_claims_of_a_frozen_builder_while_it_lives(
    warm: Warm, folder: Path, record: Recording, end: signal.Signals
) -> None:
    with record(f"28 a builder frozen in the middle, then {end.name}") as trial:
        place = trials.fresh(folder / "trial")
        sleeper = frozen(warm.start(HERE + "build_and_freeze", folder=str(place), window=3))
        other = warm.start("build", folder=str(place), clock=3600.0)  # a clock an hour on gives it no right
        rest = trials.DISTINCT - 20  # two of the windows of the frozen one are a shard, the third is not stored
        wait_until(lambda: trials.told(place)[0] == trials.DISTINCT, "the other to encode what is free")
        time.sleep(1.5)
        assert trials.told(place)[0] == trials.DISTINCT
        assert len(trials.told(place)[1]) == rest
        refused = warm.run(HERE + "be_alone", folder=str(place), wait=0.2)
        assert (refused.code, refused.value["error"]) == (3, "StoreLocked")
        assert str(sleeper.pid) in refused.value["message"]
        assert list((place / "store" / "locks").glob("claims-*")), "its claims were swept away"
        sleeper.send(end)
        built = other.wait().facts
        lost = 20 if end == signal.SIGKILL else 0
        if not lost:
            assert sleeper.wait().facts["id"] == built["id"]
        assert trials.told(place)[0] == trials.DISTINCT + lost
        sound(warm, place, trial)
        assert warm.run(HERE + "be_alone", folder=str(place), wait=0.2).facts == {"alone": True}


def test_a_wait_for_a_frozen_builder_is_bounded(warm: Warm, folder: Path, record: Recording) -> None:
    with record("28 a builder frozen for longer than others wait") as trial:
        place = trials.fresh(folder / "trial")
        sleeper = frozen(warm.start(HERE + "build_and_freeze", folder=str(place), window=3))
        other = warm.run("build", folder=str(place), limits={"claim_seconds": 0.5}).facts
        assert trials.told(place)[0] == trials.DISTINCT + 20
        sleeper.send(signal.SIGCONT)
        assert sleeper.wait().facts["id"] == other["id"]
        sound(warm, place, trial)
