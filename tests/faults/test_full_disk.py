"""B3 5, 29: a full disk, a file-size limit, few file descriptors: what is stored is served, and with room the build ends well."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cachestore import open_store
from cachestore.errors import CachestoreError
from cli.app import run as command
from tests.faults import trials
from tests.faults.invariants import check
from tests.faults.ledger import Ledger
from tests.faults.record import Record
from tests.faults.warm import Warm
from tests.store.counting import CountingEncoder

Recording = Callable[[str], Record]
_CLONE_NEWNS = 0x00020000
ROWS = 6_000


class Wide(CountingEncoder):
    """Vectors long enough to fill a disk."""

    dim = 256

    def __init__(self, notes: Ledger) -> None:
        super().__init__(dim=self.dim)
        self.notes = notes

    def encode(self, payloads: Sequence[bytes]) -> NDArray[np.float32]:
        self.notes.encoded(len(payloads))
        return np.tile(super().encode(payloads), (1, self.dim // 8))


def build_on_a_small_disk(folder: str, size: str) -> dict[str, Any]:
    """Build until the disk is full, use what is stored, give the disk room and build on."""
    place = Path(folder)
    disk = place / "disk"
    disk.mkdir()
    _own_mounts()
    _mount(disk, f"size={size}")
    notes = trials.noting(place)
    truth = Wide(Ledger(place / "truth"))
    limits = trials.Limits(shard_rows=500, window_rows=250)

    def build() -> str:
        with open_store(disk / "store") as store:
            return trials.run(store, place / "table.csv", Wide(notes), "table", limits).manifest.id

    facts: dict[str, Any] = {}
    try:
        build()
    except CachestoreError as error:
        facts["error"] = [type(error).__name__, error.exit_code, str(error)]
    full = check(disk / "store", trials.payloads(place), notes.facts()[1], truth)
    facts["ls"] = command(["ls", "--store", str(disk / "store"), "--json"]) if full.stored else 0
    _mount(disk, "remount,size=64m")
    facts["id"] = build()
    encoded, committed, _ = notes.facts()
    after = check(disk / "store", trials.payloads(place), committed, truth)
    return facts | {
        "stored": [full.stored, after.stored],
        "lost": full.lost + after.lost,
        "wrong": full.wrong + after.wrong,
        "partial": full.partial + after.partial,
        "encoded": encoded,
        "left": os.listdir(disk / "store" / "tmp"),
    }


def _own_mounts() -> None:
    """Mounts made from now on are seen by this process only, and end with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    subprocess.run(["mount", "--make-rprivate", "/"], check=True, capture_output=True)


def _mount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True, capture_output=True)


def may_mount() -> bool:
    probe = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    return (
        shutil.which("unshare") is not None and subprocess.run(probe, capture_output=True, check=False).returncode == 0
    )


@pytest.mark.skipif(not may_mount(), reason="only root can mount a small disk")
@pytest.mark.parametrize(
    "sizes",
    [
        ["16k", "100k", "700k", "2m"],
        pytest.param([f"{4 * step * step}k" for step in range(1, 28)], marks=pytest.mark.long),
    ],
)
def test_a_full_disk_ends_a_build_with_a_sentence_and_room_lets_it_go_on(
    warm: Warm, folder: Path, record: Recording, sizes: list[str]
) -> None:
    found = set()
    with record("5 disk full") as trial:
        for size in sizes:
            place = trials.fresh(folder / size, ROWS, ROWS)
            facts = warm.run("tests.faults.test_full_disk:build_on_a_small_disk", folder=str(place), size=size).facts
            trial.trial(lost=facts["lost"], wrong=facts["wrong"])
            assert (facts["lost"], facts["wrong"], facts["partial"], facts["left"]) == (0, 0, [], []), facts
            kind, code, message = facts["error"]
            assert (kind, code) == ("StoreFull", 3), facts
            assert "Free some" in message
            assert facts["ls"] == 0
            assert facts["stored"][1] == ROWS
            assert ROWS <= facts["encoded"] <= ROWS + 500 + 250, facts
            found.add(facts["id"])
    assert len(found) == 1, "room made another manifest than the other disks had"


def test_a_file_size_limit_ends_a_build_with_a_sentence(warm: Warm, folder: Path, record: Recording) -> None:
    with record("5 file-size limit") as trial:
        for limit in (100, 2_000, 4_096, 10_000, 30_000, 60_000):
            place = trials.fresh(folder / str(limit))
            ended = warm.run("build", folder=str(place), resources={"RLIMIT_FSIZE": limit})
            assert (ended.code, ended.value["error"]) == (3, "StoreFull"), (limit, ended)
            facts = warm.run("aftermath", folder=str(place)).facts
            trial.trial(lost=facts["lost"], wrong=facts["wrong"])
            assert (facts["lost"], facts["wrong"], facts["partial"], facts["complete"]) == (0, 0, [], True), facts


def test_few_file_descriptors_are_enough_for_many_shards(warm: Warm, folder: Path, record: Recording) -> None:
    with record("29 64 file descriptors") as trial:
        place = trials.fresh(folder / "trial", 600, 600)
        few = {"RLIMIT_NOFILE": 64}
        built = warm.run("build", folder=str(place), resources=few, limits={"shard_rows": 4, "window_rows": 4})
        assert built.code == 0, built
        assert len(list((place / "store" / "shards").rglob("*.arrow"))) == 150
        facts = warm.run("aftermath", folder=str(place), resources=few).facts
        trial.trial(lost=facts["lost"], wrong=facts["wrong"])
    assert (facts["lost"], facts["wrong"], facts["partial"], facts["encoded"]) == (0, 0, [], 600), facts
