"""Sweeps of configs whose encoders are trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cachestore.store import open_store
from tests.training import live
from trainer import train
from trainer.events import Notice
from trainer.sweep import sweep


def losses(lines: str) -> list[tuple[int, str, float]]:
    found = [json.loads(line) for line in lines.splitlines()]
    return [
        (line["epoch"], line["split"], line["metrics"]["topic"]["loss"]) for line in found if line["split"] != "test"
    ]


@pytest.mark.timeout(300)
def test_a_trial_trains_its_encoder_as_a_run_of_its_own_does(tmp_path: Path) -> None:
    data = live.columns(live.texts(60))
    feature = live.text_input(live.saved(tmp_path / "models"), trainable=True)
    given = live.config(feature, trainer={"epochs": 2, "encoder_learning_rate": 1e-3})
    with open_store(tmp_path / "store") as store:
        run = train(given, data, store, output=tmp_path / "run")
        grid = {"hyperopt": {"parameters": {"trainer.encoder_learning_rate": [1e-3, 1e-2]}}}
        done = sweep({**given, **grid}, data, store, output=tmp_path / "sweep")
    first, second = (losses(path.read_text()) for path in sorted(done.path.glob("trials/*/metrics.jsonl")))
    assert first == losses((run.path / "metrics.jsonl").read_text())
    assert first != second


@pytest.mark.timeout(300)
def test_trials_of_the_same_rows_try_sizes_of_batches_once(tmp_path: Path) -> None:
    data = live.columns(live.texts(60))
    feature = live.text_input(live.saved(tmp_path / "models"), trainable=True)
    given = live.config(feature, trainer={"epochs": 1, "batch_size": "auto", "max_batch_size": 8})
    grid = {"hyperopt": {"parameters": {"trainer.encoder_learning_rate": [1e-3, 1e-2]}}}
    told: list[str] = []

    def note(event: Any) -> None:
        if isinstance(event, Notice):
            told.append(event.text)

    with open_store(tmp_path / "store") as store:
        sweep({**given, **grid}, data, store, output=tmp_path / "sweep", progress=note)
    assert sum("batch_size: auto is 8 here" in text for text in told) == 2  # the trials once, and the winner's run
