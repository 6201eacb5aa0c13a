"""What every test stands on: no network, no store but its own, and one thread per worker."""

from __future__ import annotations

import os
from pathlib import Path

# Read when their libraries are imported, so they are set before any test module is; subprocesses inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# A deadline measures the machine, and a shared one is slow by turns; the hang timeout is pytest's.
settings.register_profile("project", deadline=None)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def _store_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHESTORE_STORE", str(tmp_path / "default-store"))
