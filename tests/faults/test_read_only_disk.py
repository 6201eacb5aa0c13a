"""B3 17: on a disk that is mounted read-only, or in a folder without permission to write, reading and training work, and what must
write says so in one line with exit code 3."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults import damage
from tests.faults.damage import command
from tests.faults.record import Record
from tests.faults.warm import Warm

Recording = Callable[[str], Record]
ROOT = Path(__file__).parents[2]
CONFIG = """\
input_features:
  - {name: text, type: text, encoder: {type: hashing, dim: 32}}
output_features:
  - {name: stars, type: number}
preprocessing: {split: {type: random, probabilities: [0.6, 0.4, 0.0]}}
trainer: {epochs: 2, validation_metric: loss}
"""
PROGRAM = """
import contextlib, io, json, os, sys
from cli.app import run
found = []
for line in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(line)
    found.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""


def refusal(line: Sequence[str]) -> str | None:
    """Why this machine does not let a test do that; None where it does."""
    if shutil.which(line[0]) is None:
        return f"there is no {line[0]} here"
    done = subprocess.run([*line, "true"], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"{line[0]} is not permitted here: {done.stderr.strip()}"


MOUNT = ("unshare", "--mount") if os.geteuid() == 0 else ("unshare", "--user", "--map-root-user", "--mount")
PERMISSION = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ("env",)


@dataclass(frozen=True)
class Place:
    """Where a store is that may only be read, and how a process is started for which it is so."""

    store: Path
    start: tuple[str, ...]

    def run(self, *lines: Sequence[object]) -> list[tuple[int, str, str]]:
        """Run commands; for each its exit code, stdout and stderr."""
        settings = json.dumps([[*map(str, line), "--store", str(self.store)] for line in lines])
        program = [sys.executable, "-W", "ignore", "-c", PROGRAM, settings]
        done = subprocess.run([*self.start, *program], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [(code, out, err) for code, out, err in json.loads(done.stdout)]


@pytest.fixture
def data(folder: Path) -> Path:
    (folder / "config.yaml").write_text(CONFIG)
    table = folder / "table.csv"
    table.write_text("text,stars\n" + "".join(f"text {row % 17},{row % 5}\n" for row in range(40)))
    new = folder / "new.csv"
    new.write_text("text,stars\n" + "".join(f"new {row},{row % 5}\n" for row in range(10)))
    return table


@pytest.fixture(params=["mounted read-only", "without permission"])
def place(request: pytest.FixtureRequest, warm: Warm, folder: Path, data: Path) -> Any:
    """A store of that table, with a run trained on it, that from now on may only be read."""
    refused = refusal(MOUNT if request.param == "mounted read-only" else PERMISSION)
    if refused:
        pytest.skip(refused)
    store = folder / "store"
    done = command(warm, "train", data, "-c", folder / "config.yaml", "--output", folder / "run", "--store", store)
    assert done.code == 0, done
    if request.param == "mounted read-only":
        bind = f'mount --bind "{store}" "{store}" && mount -o remount,ro,bind "{store}" && exec "$@"'
        yield Place(store, (*MOUNT, "sh", "-c", bind, "sh"))
        return
    paths = [store, *store.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield Place(store, PERMISSION)
    for path in paths:
        path.chmod(0o755)


def test_a_store_that_may_only_be_read_serves_what_it_has_and_refuses_the_rest(
    place: Place, folder: Path, data: Path, record: Recording
) -> None:
    before = damage.digests(place.store)
    config = ["-c", folder / "config.yaml"]
    with record("17 a read-only disk, and no permission to write") as trial:
        reads = [
            ["ls"],
            ["log", "table"],
            ["verify", "--read-data"],
            ["stats"],
            ["gc", "--dry-run"],
            ["export", "table", "--output", folder / "table.parquet"],
            ["build", data, *config],
            ["build", folder / "new.csv", *config, "--dry-run"],
            ["train", data, *config, "--output", folder / "second"],
            ["evaluate", folder / "run", data],
            ["predict", folder / "run", data, "--output", folder / "predictions.csv"],
        ]
        writes = [
            ["build", folder / "new.csv", *config],
            ["train", folder / "new.csv", *config, "--output", folder / "third"],
            ["gc", "--grace", "0"],
            ["repair"],
            ["tag", "table", "v1"],
            ["forget", "--text", "text 3"],
        ]
        found = place.run(*reads, *writes)
        for line, (code, out, err) in zip(reads, found, strict=False):
            assert code == 0, (line, code, out, err)
            trial.trial()
        for line, (code, out, err) in zip(writes, found[len(reads) :], strict=True):
            assert code == 3, (line, code, out, err)
            errors = [text for text in err.splitlines() if text.startswith("error:")]
            assert len(errors) == 1, (line, err)
            assert "Traceback" not in err, (line, err)
            assert str(place.store) in errors[0], (line, err)
            trial.trial()
    assert damage.digests(place.store) == before
    assert not (folder / "third" / "run.json").exists()
