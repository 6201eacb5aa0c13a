"""What fault tests share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.record import Record


@pytest.fixture
def record() -> Callable[[str], Record]:
    """Use as ``with record("7 bit flips") as trials: … trials.trial(lost=0, wrong=0)``."""
    return Record
