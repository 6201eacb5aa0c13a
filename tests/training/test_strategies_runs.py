"""Whole runs in two processes: stopped, resumed, and started by torchrun, they are the runs of one process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cachestore.errors import ProcessLost
from tests.training import live
from tests.training.test_run import write
from trainer import train
from trainer.events import Event, StepDone
from trainer.run import resume_run
from trainer.runs import Run

LORA = {"type": "lora", "dropout": 0.0}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    feature = live.text_input(live.saved(tmp_path / "models"), adapter=LORA)
    return live.config(feature, trainer={"epochs": 2, "early_stop": -1})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data.csv", live.texts(60))


def in_two(settings: dict[str, Any], strategy: str) -> dict[str, Any]:
    return {**settings, "trainer": {**settings["trainer"], "strategy": strategy, "num_workers": 2}}


def steps(run: Path) -> list[tuple[int, float, float]]:
    found = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    return [(each["step"], each["loss"], each["gradient_norm"]) for each in found]


def assert_same(run: Run, other: Run) -> None:
    """Two runs took the same steps, and end with the same metrics."""
    for (step, loss, norm), (also, loss_also, norm_also) in zip(steps(run.path), steps(other.path), strict=True):
        assert step == also
        assert loss == pytest.approx(loss_also, abs=1e-4), step
        assert norm == pytest.approx(norm_also, rel=1e-3), step
    live.assert_same_losses(run, other)
    assert run.metrics["test"]["topic"] == pytest.approx(other.metrics["test"]["topic"], abs=1e-4)


def at_step(number: int, action: Callable[[], object]) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == number:
            action()

    return listen


def kill_rank_1() -> None:
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if "trainer.strategies.rank" in words:
            _, rank, _, parent, *_ = words[words.index("trainer.strategies.rank") + 1 :]
            if (rank, parent) == ("1", str(os.getpid())):
                os.kill(int(place.name), signal.SIGKILL)


@pytest.mark.timeout(300)
def test_a_run_of_fsdp_that_is_interrupted_goes_on_to_the_end_of_one_process(
    tmp_path: Path, settings: dict[str, Any], data: Path
) -> None:
    expected = train(settings, data, tmp_path / "store", output=tmp_path / "one")
    interrupt = at_step(3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train(in_two(settings, "fsdp"), data, tmp_path / "store", output=tmp_path / "run", progress=interrupt)
    assert 3 <= len(steps(tmp_path / "run")) < expected.rows["train"] // 8
    assert_same(resume_run(tmp_path / "run"), expected)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_whose_worker_is_killed_says_so_and_goes_on_to_the_end_of_one_process(
    tmp_path: Path, settings: dict[str, Any], data: Path, strategy: str
) -> None:
    expected = train(settings, data, tmp_path / "store", output=tmp_path / "one")
    told = re.escape(f"Go on with: cachestore train --resume {tmp_path / 'run'}")
    with pytest.raises(ProcessLost, match=f"Process 1 of the 2 that train was killed by SIGKILL.*{told}"):
        train(
            in_two(settings, strategy),
            data,
            tmp_path / "store",
            output=tmp_path / "run",
            progress=at_step(5, kill_rank_1),
        )
    assert_same(resume_run(tmp_path / "run"), expected)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_torchrun_starts_the_processes_of_a_run_and_the_first_alone_speaks(
    tmp_path: Path, settings: dict[str, Any], data: Path
) -> None:
    expected = train(settings, data, tmp_path / "store", output=tmp_path / "one")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**settings, "trainer": {**settings["trainer"], "strategy": "ddp"}}))
    program = Path(sys.executable).with_name("cachestore")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python", str(program)]
    options = ["-c", str(config), "--store", str(tmp_path / "store"), "--output", str(tmp_path / "run"), "--json"]
    done = subprocess.run(
        [sys.executable, *launch, "train", str(data), *options],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)  # one object, so one process wrote
    assert summary["metrics"]["test"]["topic"] == pytest.approx(expected.metrics["test"]["topic"], abs=1e-4)
