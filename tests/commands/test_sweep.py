from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.app import run
from tests.training.test_run import config, messages, write


@pytest.fixture
def sweep(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command on data of its own; returns the exit code and what was written."""
    data = write(tmp_path / "messages.csv", messages(60))
    settings = config(trainer={"epochs": 2, "batch_size": 16, "learning_rate": 0.05, "optimizer": {"type": "sgd"}})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(["sweep", str(data), "-c", str(path), "--store", str(tmp_path / "store"), *arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return call


def test_a_sweep_shows_its_leaderboard(tmp_path: Path, sweep: Any) -> None:
    arguments = ("--grid", "trainer.learning_rate=0.01,0.1", "--seeds", "2", "-o", str(tmp_path / "sweep"))
    code, out, err = sweep(*arguments)
    assert code == 0
    head, first, second = out.splitlines()[:3]
    assert head.split() == ["rank", "accuracy", "(validation)", "learning_rate", "epochs", "trials"]
    assert first.split()[0] == "1"
    assert second.split()[0] == "2"
    assert " ± " in first
    assert "2 candidates, 4 trials in " in out
    assert "4 trials train together: 000, 001, 002, 003." in err
    code, out, _ = sweep(*arguments, "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["reused"], found["trials"], found["failed"]) == (4, 4, 0)
    assert found["winner"]["run"] == str(tmp_path / "sweep" / "winner")
    assert found["standings"][0]["values"].keys() == {"trainer.learning_rate"}


def test_a_failed_trial_is_told_by_the_exit_code(tmp_path: Path, sweep: Any) -> None:
    code, out, err = sweep("--grid", "trainer.learning_rate=0.1,1e60", "-o", str(tmp_path / "sweep"))
    assert code == 5
    assert "Trial 001 failed: The loss is not finite" in err
    assert "failed" in out
    code, _, err = sweep("--grid", "trainer.learning_rate=1e60", "-o", str(tmp_path / "none"))
    assert code == 2
    assert "error: Every trial failed, the first with: The loss is not finite" in err


def test_wrong_use_is_one_sentence(tmp_path: Path, sweep: Any) -> None:
    (tmp_path / "x.csv").write_text("text,topic\nhello,one\n", encoding="utf-8")
    for arguments, why in (
        ((), "nothing varies"),
        (("--grid", "trainer.epochs"), "is no grid; write it as path=value,value"),
        (("--grid", "trainer.epochs=1", "--folds", "1"), "--folds must be at least 2"),
        (
            ("--grid", "trainer.epochs=1", "--folds", "2", "--test", str(tmp_path / "x.csv")),
            "leave --validation and --test out",
        ),
        (("--grid", "trainer.epochs=1,0"), "trainer.epochs: must be greater than 0"),
    ):
        code, out, err = sweep(*arguments, "-o", str(tmp_path / "sweep"))
        assert (code, out) == (2, "")
        assert why in err
        assert "Traceback" not in err
