"""B3 27: what was forgotten is in no file, wherever a forget dies and is run again; nothing else is lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import collecting
from tests.faults.record import Record
from tests.faults.test_gc_deaths import HERE, STRIDES, prepared, sound, trial
from tests.faults.warm import Warm, wait_until

__all__ = ["prepared"]

Recording = Callable[[str], Record]


@pytest.mark.parametrize("by_rows", [False, True], ids=["text", "rows"])
@pytest.mark.parametrize("stride", STRIDES)
def test_forget_killed_before_any_durable_step_loses_nothing_else_and_the_next_finishes(
    warm: Warm, prepared: Path, record: Recording, by_rows: bool, stride: int
) -> None:
    undisturbed = trial(prepared, "undisturbed")
    assert warm.run(f"{HERE}forget_one", folder=str(undisturbed), by_rows=by_rows).facts["vectors"] == 3
    expected = warm.run(f"{HERE}state", folder=str(undisturbed)).facts
    assert collecting.traces(undisturbed / "store") == []
    with record("27 forget killed before every durable step") as trials:
        for step in range(1 + by_rows, 1000, stride):
            place = trial(prepared, str(step))
            ended = warm.run(f"{HERE}forget_one", folder=str(place), by_rows=by_rows, die=step)
            facts = warm.run(f"{HERE}aftermath", folder=str(place), by_rows=by_rows).facts
            trials.trial(lost=facts["lost"], wrong=facts["wrong"])
            assert (facts["lost"], facts["wrong"], facts["traces"]) == (0, 0, []), step
            assert facts["state"] | {"chunks": expected["chunks"]} == expected, step
            shutil.rmtree(place)
            if ended.code == 0:
                break
            assert ended.killed, ended
    assert step > 40, "the faults did not happen"


def test_forget_is_refused_while_a_reader_holds_the_shard_and_the_reader_sees_the_same_bytes(
    warm: Warm, prepared: Path, record: Recording
) -> None:
    with record("10 forget while a reader has views") as trials:
        reader = warm.start(f"{HERE}hold", folder=str(prepared))
        wait_until((prepared / "holding").exists, "the reader to hold a shard")
        ended = warm.run(f"{HERE}forget_one", folder=str(prepared), wait=0.3)
        assert (ended.code, ended.value["error"]) == (3, "StoreLocked")
        sound(warm, prepared, trials, old=True)
        waiting = warm.start(f"{HERE}forget_one", folder=str(prepared), wait=30)
        (prepared / "stop").touch()
        facts = reader.wait().facts
        assert (facts["changed"], facts["errors"]) == (0, []), facts
        assert waiting.wait().facts["vectors"] == 3
        sound(warm, prepared, trials, old=True)
        assert collecting.traces(prepared / "store") == []
