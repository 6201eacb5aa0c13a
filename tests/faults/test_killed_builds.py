"""B3 1, 2: a build killed anywhere is finished by the next: same manifest, at most one shard encoded again, nothing lost."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults import strace, trials
from tests.faults.record import Record
from tests.faults.warm import Warm

Recording = Callable[[str], Record]
LONG = pytest.mark.long


def undisturbed(warm: Warm, folder: Path) -> str:
    """The manifest id of the build that nothing disturbs."""
    identity: str = warm.run("build", folder=str(trials.fresh(folder / "undisturbed"))).facts["id"]
    return identity


def after(warm: Warm, place: Path, expected: str, record: Record) -> dict[str, Any]:
    """The invariants hold, and the same build again ends as the undisturbed one."""
    facts = warm.run("aftermath", folder=str(place)).facts
    record.trial(lost=facts["lost"], wrong=facts["wrong"])
    assert (facts["lost"], facts["wrong"], facts["partial"]) == (0, 0, []), facts
    assert (facts["id"], facts["complete"], facts["versions"], facts["temporary"]) == (expected, True, 1, 0), facts
    most = trials.DISTINCT + trials.SHARD_ROWS + trials.WINDOW_ROWS
    assert trials.DISTINCT <= facts["encoded"] <= most, facts
    shutil.rmtree(place)
    return facts


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=LONG)])
def test_a_build_killed_at_a_random_moment_is_finished_by_the_next(
    warm: Warm, folder: Path, record: Recording, kills: int
) -> None:
    expected = undisturbed(warm, folder)
    began = time.monotonic()
    assert warm.run("build", folder=str(trials.fresh(folder / "timed")), seconds=0.005).code == 0
    seconds = time.monotonic() - began
    random_ = random.Random(7)
    reached: list[int] = []
    with record("1 SIGKILL at a random moment") as trial:
        for number in range(kills):
            place = trials.fresh(folder / str(number))
            child = warm.start("build", folder=str(place), seconds=0.005)
            time.sleep(random_.uniform(0, seconds))
            child.send(signal.SIGKILL)
            child.wait()
            reached.append(after(warm, place, expected, trial)["stored"])
    if kills > 20:  # of a few, chance and a busy machine may put all at one place
        assert len(set(reached)) > 2, f"they were all killed at the same place: {reached}"


def test_a_build_killed_before_any_durable_step_is_finished_by_the_next(
    warm: Warm, folder: Path, record: Recording
) -> None:
    expected = undisturbed(warm, folder)
    with record("2 SIGKILL before every durable step") as trial:
        for step in range(1, 1000):
            place = trials.fresh(folder / str(step))
            ended = warm.run("build", folder=str(place), die=step)
            after(warm, place, expected, trial)
            if ended.code == 0:
                break
            assert ended.killed, ended
    assert step > 50, "the faults did not happen"


@pytest.mark.skipif(strace.refusal() is not None, reason=str(strace.refusal()))
@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=LONG)])
@pytest.mark.parametrize("call", [*strace.WRITES, *strace.SYNCS, *strace.RENAMES])
def test_a_build_killed_at_any_system_call_that_writes_is_finished_by_the_next(
    warm: Warm, folder: Path, record: Recording, call: str, stride: int
) -> None:
    expected = undisturbed(warm, folder)
    with record("2 SIGKILL at every system call that writes, LMDB's too") as trial:
        for step in range(1, 5000, stride):
            place = trials.fresh(folder / str(step))
            child = warm.start("build", folder=str(place), gate=True)
            with strace.injecting(child, call, f"signal={signal.SIGKILL.name}:when={step}"):
                ended = child.wait()
            after(warm, place, expected, trial)
            if ended.code == 0:
                break
            assert ended.killed, ended
    assert step > 1 or call not in strace.CALLED, "the fault did not happen"
