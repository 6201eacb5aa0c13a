"""What fault tests share."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.record import Record
from tests.faults.warm import Warm


@pytest.fixture
def record() -> Callable[[str], Record]:
    """Use as ``with record("7 bit flips") as trials: … trials.trial(lost=0, wrong=0)``."""
    return Record


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder, in memory where there is such a place: thousands of fsyncs need not wait for a disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    place = Path(tempfile.mkdtemp(prefix="faults-", dir=memory))
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="session")
def _warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    with Warm(tmp_path_factory.mktemp("warm")) as started:
        yield started


@pytest.fixture
def warm(_warm: Warm, folder: Path) -> Iterator[Warm]:
    """Starts the processes of a test; see ``tests.faults.trials``. Those still alive at its end are killed, before its folder goes."""
    yield _warm
    _warm.ask({"end": True})
