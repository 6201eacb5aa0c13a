"""Processes that tests share, for they take seconds to start."""

from __future__ import annotations

import os
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
def table() -> Iterator[list[str]]:
    """Lines of what was compared; with CACHESTORE_MATRIX they are written to that file, as a table."""
    lines: list[str] = []
    yield lines
    if path := os.environ.get("CACHESTORE_MATRIX"):
        head = [
            "| cell | strategy | steps | loss, difference | gradient norm, relative difference |",
            "|---|---|---|---|---|",
        ]
        Path(path).write_text("\n".join([*head, *lines, ""]), encoding="utf-8")


@pytest.fixture(scope="session")
def pair() -> Iterator[Processes]:
    """Two ranks that have met, for any number of functions to run."""
    from trainer.strategies.processes import Processes

    with Processes(2) as processes:
        yield processes
