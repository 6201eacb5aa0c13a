"""B3 3, 4: a write or sync that fails ends a build with a sentence and exit code 3, nothing partial is seen, the next build finishes it."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import strace, trials
from tests.faults.record import Record
from tests.faults.warm import Ended, Warm

Recording = Callable[[str], Record]
REFUSAL = strace.refusal()
STRACE = pytest.mark.skipif(REFUSAL is not None, reason=str(REFUSAL))
STRIDES = pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.long)])


def sweep(folder: Path, stride: int) -> Iterator[tuple[int, Path]]:
    for step in itertools.count(1, stride):
        assert step < 5000
        yield step, trials.fresh(folder / str(step))


def after(warm: Warm, place: Path, ended: Ended, record: Record) -> None:
    """The build said what happened, left nothing partial, and is finished by the next."""
    if ended.code != 0:
        assert ended.code == 3, ended
        assert ended.value["error"] in {"StoreWriteFailed", "StoreFull"}, ended
        assert str(place / "store") in ended.value["message"]
        assert "run again" in ended.value["message"]
    facts = warm.run("aftermath", folder=str(place)).facts
    record.trial(lost=facts["lost"], wrong=facts["wrong"])
    assert (facts["lost"], facts["wrong"], facts["partial"]) == (0, 0, []), facts
    assert (facts["complete"], facts["versions"], facts["temporary"]) == (True, 1, 0), facts
    # a failed write is not tried again, so what was encoded for that shard is encoded once more
    assert trials.DISTINCT <= facts["encoded"] <= trials.DISTINCT + trials.SHARD_ROWS + trials.WINDOW_ROWS, facts
    shutil.rmtree(place)


@pytest.mark.parametrize("persistent", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("name", ["write", "fsync", "rename", "mkdir", "commit"])
def test_a_build_whose_nth_step_fails_ends_with_a_sentence(
    warm: Warm, folder: Path, record: Recording, name: str, persistent: bool
) -> None:
    fault = "4 fsync fails" if name == "fsync" else "3 a durable step fails with EIO"
    with record(f"{fault} {'from then on' if persistent else 'once'}") as trial:
        for step, place in sweep(folder, 1):
            ended = warm.run("build", folder=str(place), fail=(step, [name], persistent))
            after(warm, place, ended, trial)
            if ended.code == 0 and ended.facts["steps"] < step:
                break
    assert step > 2, "the faults did not happen"


@STRACE
@STRIDES
@pytest.mark.parametrize("persistent", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("call", strace.WRITES)
def test_a_build_whose_nth_write_call_fails_ends_with_a_sentence(
    warm: Warm, folder: Path, record: Recording, call: str, persistent: bool, stride: int
) -> None:
    with record(f"3 a system call that writes fails with EIO {'from then on' if persistent else 'once'}") as trial:
        injected_sweep(warm, folder, trial, call, f"error=EIO:when={{}}{'+' if persistent else ''}", stride)


@STRACE
@STRIDES
@pytest.mark.parametrize("call", strace.SYNCS)
def test_a_build_whose_nth_sync_call_fails_ends_with_a_sentence(
    warm: Warm, folder: Path, record: Recording, call: str, stride: int
) -> None:
    with record("4 fsync or fdatasync fails once, LMDB's too") as trial:
        injected_sweep(warm, folder, trial, call, "error=EIO:when={}", stride)


@STRACE
@STRIDES
@pytest.mark.parametrize("call", strace.WRITES)
def test_a_build_on_a_disk_that_fills_at_its_nth_write_call_ends_with_a_sentence(
    warm: Warm, folder: Path, record: Recording, call: str, stride: int
) -> None:
    with record("5 no space from the n-th system call on") as trial:
        injected_sweep(warm, folder, trial, call, "error=ENOSPC:when={}+", stride)


def injected_sweep(warm: Warm, folder: Path, record: Record, call: str, fault: str, stride: int) -> None:
    """Fail the first such call, the second, … until a build makes fewer."""
    failed = 0
    for step, place in sweep(folder, stride):
        child = warm.start("build", folder=str(place), gate=True)
        with strace.injecting(child, call, fault.format(step)) as happened:
            ended = child.wait()
        after(warm, place, ended, record)
        failed += ended.code != 0
        if not happened():
            assert ended.code == 0, ended
            break
    assert failed or call not in strace.CALLED, "the faults did not happen"
