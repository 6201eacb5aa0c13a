"""Running a command in this process, and small data for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.app import run


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout."""
        return json.loads(self.out)


Command = Callable[..., Done]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Call as ``command("build", path, "--json")``."""

    def call(*arguments: object) -> Done:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return Done(code, shown.out, shown.err)

    return call


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Where a store may come to be."""
    return tmp_path / "store"


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """Five rows: four distinct texts, one of them twice, and one missing."""
    path = tmp_path / "reviews.csv"
    path.write_text(
        'text,stars,helpful\nwarm and soft,5,yes\n"too small, sent back",2,no\nwarm and soft,4,yes\n,3,no\n"",1,no\n',
        encoding="utf-8",
    )
    return path
