"""gc dies at any step, meets builders that are frozen and readers with views, and runs on a full disk: nothing needed is lost."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cachestore import open_store
from cachestore.errors import StoreFull
from cachestore.gc import collect
from cachestore.gc_rules import Rules
from tests.faults import collecting
from tests.faults.record import Record
from tests.faults.test_full_disk import _mount, _own_mounts, may_mount
from tests.faults.warm import Warm, wait_until

HERE = "tests.faults.collecting:"
STRIDES = [17, pytest.param(1, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
Recording = Callable[[str], Record]


@pytest.fixture
def prepared(warm: Warm, folder: Path) -> Path:
    warm.run(f"{HERE}prepare", folder=str(folder / "prepared")).facts  # noqa: B018  # fails when it did not return
    return folder / "prepared"


def trial(prepared: Path, name: str) -> Path:
    """A copy of the prepared store, its files as old."""
    place = prepared.parent / name
    shutil.copytree(prepared, place)
    return place


def sound(warm: Warm, place: Path, record: Record, **settings: Any) -> None:
    facts = warm.run(f"{HERE}checked", folder=str(place), **settings).facts
    record.trial(lost=facts["lost"], wrong=facts["wrong"])
    assert (facts["lost"], facts["wrong"]) == (0, 0), facts


@pytest.mark.parametrize("stride", STRIDES)
def test_gc_killed_before_any_durable_step_loses_nothing_and_the_next_finishes(
    warm: Warm, prepared: Path, record: Recording, stride: int
) -> None:
    undisturbed = trial(prepared, "undisturbed")
    assert warm.run(f"{HERE}collect", folder=str(undisturbed)).facts["sparse"] > 1
    expected = warm.run(f"{HERE}state", folder=str(undisturbed)).facts
    assert expected["settled"]
    with record("9 gc killed before every durable step") as trials:
        for step in range(1, 1000, stride):
            place = trial(prepared, str(step))
            ended = warm.run(f"{HERE}collect", folder=str(place), die=step)
            facts = warm.run(f"{HERE}aftermath", folder=str(place)).facts
            trials.trial(lost=facts["lost"], wrong=facts["wrong"])
            assert (facts["lost"], facts["wrong"]) == (0, 0), step
            assert facts["state"] == expected, step
            shutil.rmtree(place)
            if ended.code == 0:
                break
            assert ended.killed, ended
    assert step > 40, "the faults did not happen"


@pytest.mark.parametrize("point", ["shard", "manifest"])
def test_a_frozen_builder_makes_gc_refuse_with_its_pid_and_finishes_well(
    warm: Warm, prepared: Path, record: Recording, point: str
) -> None:
    with record("9 gc against a frozen builder") as trials:
        builder = warm.start(f"{HERE}build_slowly", folder=str(prepared), first=100, last=140, stop_after=point)
        wait_until((prepared / "paused").exists, "the builder to pause")
        builder.stop()
        collecting.age(prepared)
        ended = warm.run(f"{HERE}collect", folder=str(prepared), grace=0, wait=0.3, everything=True)
        assert (ended.code, ended.value["error"]) == (3, "StoreLocked")
        assert str(builder.pid) in ended.value["message"]
        sound(warm, prepared, trials, old=True)
        (prepared / "go").touch()
        builder.send(signal.SIGCONT)
        assert builder.wait().facts["whole"]
        warm.run(f"{HERE}collect", folder=str(prepared), grace=0, everything=True).facts  # noqa: B018
        sound(warm, prepared, trials, old=True)
        with open_store(prepared / "store", mode="r") as store:
            assert store.vectors("slow", "text")[1].all()


def test_a_builder_that_died_frozen_leaves_nothing_that_gc_trips_over(
    warm: Warm, prepared: Path, record: Recording
) -> None:
    with record("9 gc after a killed builder") as trials:
        builder = warm.start(f"{HERE}build_slowly", folder=str(prepared), first=100, last=140, stop_after="shard")
        wait_until((prepared / "paused").exists, "the builder to pause")
        builder.send(signal.SIGKILL)
        builder.wait()
        facts = warm.run(f"{HERE}collect", folder=str(prepared), grace=0, everything=True).facts
        assert facts["freed"] > 0
        sound(warm, prepared, trials, old=True)


def test_readers_with_views_read_the_same_bytes_while_gc_collects_and_repacks(
    warm: Warm, prepared: Path, record: Recording
) -> None:
    with record("10 readers with views during gc --repack --grace 0") as trials:
        readers = [warm.start(f"{HERE}hold", folder=str(prepared)) for _ in range(2)]
        wait_until((prepared / "holding").exists, "a reader to hold a shard")
        for turn in range(4):
            with open_store(prepared / "store") as store:
                collecting.build(store, prepared, 200 + 20 * turn, 220 + 20 * turn)
                collecting.build(store, prepared, 200 + 20 * turn, 202 + 20 * turn, f"part-{turn}")
            facts = warm.run(f"{HERE}collect", folder=str(prepared), grace=0, everything=True).facts
            assert facts["gone"] > 0
            sound(warm, prepared, trials)
        (prepared / "stop").touch()
        for reader in readers:
            facts = reader.wait().facts
            assert (facts["changed"], facts["errors"]) == (0, []), facts
            assert facts["reads"] > 1


def test_gc_and_builders_take_turns_and_every_name_is_whole(warm: Warm, prepared: Path, record: Recording) -> None:
    with record("9 gc among live builders") as trials:
        builders = [warm.start(f"{HERE}build_many", folder=str(prepared), worker=worker) for worker in range(3)]
        collected = 0
        while collected < 8:
            warm.run(f"{HERE}collect", folder=str(prepared), grace=0, wait=30, everything=True).facts  # noqa: B018
            collected += 1
        built = {name: rows for builder in builders for name, rows in builder.wait().facts["names"].items()}
        with open_store(prepared / "store", mode="r") as store:
            for name, (first, last) in built.items():
                found, mask = store.vectors(name, "text")
                lost, wrong = (
                    int((~mask).sum()),
                    int((found != collecting.vectors(range(first, last))).any(axis=1).sum()),
                )
                trials.trial(lost=lost, wrong=wrong)
                assert (lost, wrong) == (0, 0), name
        assert len(built) == 18
        sound(warm, prepared, trials, old=True)


def collect_on_a_full_disk(folder: str, size: str) -> dict[str, Any]:
    """A store fills its disk but for nothing; gc frees trash first, then what is unreferenced."""
    place = Path(folder)
    disk = place / "disk"
    disk.mkdir()
    _own_mounts()
    _mount(disk, "size=32m")
    with open_store(disk / "store") as store:
        collecting.build(store, place, 0, 400, "reviews")
        for first in range(400, 2400, 400):
            collecting.build(store, place, first, first + 400)
    trash = disk / "store" / "trash" / "1000000000-old"
    trash.mkdir(parents=True)
    (trash / "file").write_bytes(bytes(int(size)))
    used = sum(path.stat().st_blocks for path in disk.rglob("*")) * 512
    _mount(disk, f"remount,size={used >> 10}k")
    filler = disk / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
    except OSError:
        pass
    facts: dict[str, Any] = {"free": os.statvfs(disk).f_bavail}
    with open_store(disk / "store") as store:
        try:
            plan, done = collect(store, Rules(unreferenced_older_than=0, grace=0))
            facts |= {"freed": done.freed, "gone": len(plan.unreferenced)}
        except StoreFull as error:
            facts["full"] = str(error)
    facts["trash"] = trash.exists()
    with open_store(disk / "store", mode="r") as store:
        facts["whole"] = bool(store.vectors("reviews", "text")[1].all())
    return facts


@pytest.mark.skipif(not may_mount(), reason="only root can mount a small disk")
@pytest.mark.parametrize("size", [0, 1 << 20])
def test_gc_frees_a_full_disk(warm: Warm, folder: Path, record: Recording, size: int) -> None:
    with record("5 gc on a full disk") as trials:
        (folder / "small").mkdir()
        facts = warm.run(
            "tests.faults.test_gc_deaths:collect_on_a_full_disk", folder=str(folder / "small"), size=str(size)
        ).facts
        trials.trial(lost=not facts["whole"])
        assert facts["free"] == 0
        assert facts["whole"]
        assert not facts["trash"]
        assert facts.get("gone", 0) > 0, facts
