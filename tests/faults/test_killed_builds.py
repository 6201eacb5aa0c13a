"""A build killed anywhere is finished by the next one: same manifest id, at most one shard encoded again, nothing wrong or partial."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import kill_driver

ROOT = Path(__file__).parents[2]
DISTINCT = kill_driver.ROWS - 30


@pytest.mark.parametrize("mode", ["writes", "random"])
def test_killed_builds_resume(tmp_path, mode):
    # one process that forks: the trials then cost milliseconds, not an interpreter's start
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.kill_driver", mode, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    trials = json.loads(done.stdout)
    killed = [trial for trial in trials if trial["killed"]]
    assert len(killed) >= (50 if mode == "writes" else 3), "the faults did not happen"
    if mode == "writes":
        assert not trials[-1]["killed"], "the sweep ended before a build ran to its end"
    for trial in trials:
        assert trial["status"] == 0, done.stderr
        assert (trial["same_id"], trial["same_vectors"], trial["versions"], trial["temporary"]) == (True, True, 1, 0), (
            trial
        )
        assert DISTINCT <= trial["encoded"] <= DISTINCT + kill_driver.SHARD_ROWS + kill_driver.WINDOW_ROWS, trial
