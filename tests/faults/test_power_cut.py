"""B3 6: the power fails at any moment, and what was not synced is gone, or there by luck: nothing is lost, nothing partial is seen."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cachestore import open_store
from tests.faults import journal, trials
from tests.faults.invariants import check
from tests.faults.record import Record
from tests.faults.warm import Warm
from tests.store.counting import CountingEncoder

Recording = Callable[[str], Record]
HERE = "tests.faults.test_power_cut:"
LUCK = {"nothing unsynced": 0.0, "half of it": 0.5, "all of it": 1.0}


def cut(folder: str, luck: str, stride: int, seeds: int) -> list[dict[str, Any]]:
    """Build once, noting every step; then, for a power cut after each of them, look at what is left and build again."""
    place = Path(folder)
    (place / "copies").mkdir()
    noted = journal.record(place / "disk", place / "copies")
    promised = _promises(noted)
    (place / "disk").mkdir()
    with open_store(place / "disk" / "store") as store:
        expected = trials.run(store, place / "table.csv", CountingEncoder(), "table").manifest.id
    noted.open = False
    events = noted.events
    named = len(events)  # the build had returned by then
    found = []
    for count in range(1 if stride == 1 else random.Random(seeds).randrange(1, stride), len(events) + 1, stride):
        for seed in range(seeds):
            rolls = random.Random(1000 * count + seed)
            left = place / f"left-{count}-{seed}"
            journal.rebuild(noted, count, left, lambda rolls=rolls: rolls.random() < LUCK[luck])
            found.append({"cut": count, "event": str(events[count - 1])[:200], **_after(left, place, promised(count))})
            found[-1]["same"] = found[-1]["id"] == expected
            found[-1]["kept"] = count < named or found[-1]["versions"] == 1
            shutil.rmtree(left)
    return found


def _promises(noted: journal.Journal) -> Callable[[int], set[Any]]:
    """Notes when keys were said to be stored; the function tells which were by then."""
    from cachestore.index import Index

    commit = Index.commit
    stored: list[tuple[int, list[Any]]] = []

    def noted_commit(self: Index, name: str, encoder: Any, spec: Any, keys: Any, *args: Any, **settings: Any) -> int:
        number = commit(self, name, encoder, spec, keys, *args, **settings)
        stored.append((len(noted.events), list(keys)))
        return number

    Index.commit = noted_commit  # type: ignore[method-assign]
    return lambda count: {key for at, keys in stored if at <= count for key in keys}


def _after(left: Path, place: Path, promised: set[Any]) -> dict[str, Any]:
    cells = trials.payloads(place)
    before = check(left / "store", cells, promised, CountingEncoder())
    encoder = CountingEncoder()
    with open_store(left / "store") as store:
        built = trials.run(store, place / "table.csv", encoder, "table")
        versions = len(store.log("table"))
    after = check(left / "store", cells, promised, CountingEncoder())
    return {
        "lost": before.lost + after.lost,
        "wrong": before.wrong + after.wrong,
        "partial": before.partial + after.partial,
        "id": built.manifest.id,
        "again": len(encoder.seen),
        "most": trials.DISTINCT - len(promised),
        "versions": versions,
    }


@pytest.mark.parametrize(
    ("luck", "stride", "seeds"),
    [
        *((luck, 2, 1) for luck in LUCK),
        *(pytest.param(luck, 1, 20 if 0 < LUCK[luck] < 1 else 1, marks=pytest.mark.long) for luck in LUCK),
    ],
)
def test_a_power_cut_loses_nothing_that_was_stored(
    warm: Warm, folder: Path, record: Recording, luck: str, stride: int, seeds: int
) -> None:
    place = trials.fresh(folder / "trial")
    with record(f"6 power cut, on disk is {luck}") as trial:
        left = warm.run(HERE + "cut", timeout=1800, folder=str(place), luck=luck, stride=stride, seeds=seeds).facts
        assert len(left) > 20
        for facts in left:
            trial.trial(lost=facts["lost"], wrong=facts["wrong"])
            assert (facts["lost"], facts["wrong"], facts["partial"]) == (0, 0, []), facts
            assert (facts["same"], facts["kept"], facts["versions"]) == (True, True, 1), facts
            assert facts["again"] <= facts["most"], facts
