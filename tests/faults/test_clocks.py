"""B3 18: a clock that is years off, or set back: no lock is stolen, nothing live is collected, and versions stay in order."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cachestore import open_store
from cachestore.gc import collect
from cachestore.gc_rules import Rules
from tests.faults import injected, trials
from tests.faults.record import Record
from tests.faults.warm import Warm

Recording = Callable[[str], Record]
HERE = "tests.faults.test_clocks:"
DAY = 86_400.0
YEARS = 3650 * DAY


def gc(folder: str, clock: float) -> dict[str, Any]:
    """Collect everything that is old and not referred to, by a clock that is wrong."""
    injected.shift_clock(clock)
    with open_store(Path(folder) / "store") as store:
        _, done = collect(store, Rules(grace=0, unreferenced_older_than=DAY, drop_missing_runs=True))
    return {"freed": done.freed}


def history(folder: str) -> list[list[Any]]:
    """The versions of the name, oldest first: number, manifest, parent."""
    with open_store(Path(folder) / "store", mode="r") as store:
        assert store.manifest("table").id == store.log("table")[-1].manifest
        return [[line.version, line.manifest, line.parent] for line in store.log("table")]


def touch(store: Path, rolls: random.Random) -> None:
    """Give every file a time of its own, years in the past or future."""
    for path in store.rglob("*"):
        moment = path.stat().st_mtime + rolls.uniform(-YEARS, YEARS)
        os.utime(path, (moment, moment))


def test_builders_with_clocks_years_apart_build_the_same(warm: Warm, folder: Path, record: Recording) -> None:
    with record("18 builders whose clocks are twenty years apart") as trial:
        place = trials.fresh(folder / "trial")
        builders = [
            warm.start("build", folder=str(place), seconds=0.02, clock=clock)
            for clock in (-YEARS, YEARS, 0.0, -YEARS, YEARS)
        ]
        assert len({builder.wait().facts["id"] for builder in builders}) == 1
        facts = warm.run("aftermath", folder=str(place)).facts
        trial.trial(lost=facts["lost"], wrong=facts["wrong"])
        assert (facts["lost"], facts["wrong"], facts["partial"], facts["versions"]) == (0, 0, [], 1), facts
        assert facts["encoded"] == trials.DISTINCT, "a claim was stolen"


def test_versions_are_in_the_order_in_which_they_were_made(warm: Warm, folder: Path) -> None:
    place = trials.fresh(folder / "trial")
    made = []
    for clock, rows in ((YEARS, 50), (-YEARS, 70), (0.0, 60)):
        trials.write_table(place / "table.csv", rows, rows)
        made.append(warm.run("build", folder=str(place), clock=clock).facts["id"])
    found = warm.run(HERE + "history", folder=str(place)).facts
    assert found == [[1, made[0], None], [2, made[1], made[0]], [3, made[2], made[1]]]


@pytest.mark.parametrize("clock", [-YEARS, YEARS], ids=["behind", "ahead"])
def test_gc_with_a_wrong_clock_and_wrong_file_times_collects_nothing_live(
    warm: Warm, folder: Path, record: Recording, clock: float
) -> None:
    rolls = random.Random(clock)
    with record("18 gc by a clock that is ten years off, file times at random") as trial:
        for number in range(5):
            place = trials.fresh(folder / str(number))
            assert warm.run("build", folder=str(place)).code == 0
            touch(place / "store", rolls)
            sleeper = warm.start("build", folder=str(place), table="other.csv", seconds=0.05, gate=True, name="other")
            trials.write_table(place / "other.csv", 200, 200)
            sleeper.go()
            collected = warm.run(HERE + "gc", folder=str(place), clock=clock)
            assert collected.code == 0, collected
            assert sleeper.wait().code == 0
            facts = warm.run("aftermath", folder=str(place)).facts
            trial.trial(lost=facts["lost"], wrong=facts["wrong"])
            assert (facts["lost"], facts["wrong"], facts["partial"]) == (0, 0, []), facts
            assert (facts["complete"], facts["encoded"]) == (True, 200), facts


def test_a_file_changed_without_a_change_of_its_time_is_read_again(warm: Warm, folder: Path) -> None:
    place = trials.fresh(folder / "trial")
    table = place / "table.csv"
    past = table.stat().st_mtime - YEARS
    os.utime(table, (past, past))
    first = warm.run("build", folder=str(place)).facts
    table.write_text(table.read_text().replace("row 7\n", "raw 7\n"))
    os.utime(table, (past, past))
    second = warm.run("build", folder=str(place)).facts
    assert second["id"] != first["id"]
    assert second["encoded"] == 1
