"""Processes that tests share, for they take seconds to start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from trainer.strategies.processes import Processes


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the modules of tests keep their tiny models."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def pair() -> Iterator[Processes]:
    """Two ranks that have met, for any number of functions to run."""
    from trainer.strategies.processes import Processes

    with Processes(2) as processes:
        yield processes
