from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.commands.conftest import Command
from tests.training.test_run import config, messages, write
from trainer import resume, train
from trainer.loop import EpochDone


def test_a_run_that_was_stopped_goes_on(
    command: Command, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0.0)

    def interrupt(event: Any) -> None:
        if isinstance(event, EpochDone) and event.epoch == 4:
            raise KeyboardInterrupt

    data = write(tmp_path / "messages.csv", messages(90))
    with pytest.raises(KeyboardInterrupt):
        train(config(), data, store, output=tmp_path / "run", progress=interrupt)
    done = command("train", "--resume", tmp_path / "run", "--json")
    assert done.code == 0
    assert done.json["epochs"] >= 4
    assert done.json["run"] == str(tmp_path / "run")
    again = command("train", "--resume", tmp_path / "run")
    assert again.code == 2
    assert "is finished; there is nothing to resume" in again.err


def test_resume_takes_nothing_beside_it_and_train_needs_data_and_a_config(command: Command, tmp_path: Path) -> None:
    beside = command("train", tmp_path / "data.csv", "--resume", tmp_path / "run")
    assert beside.code == 2
    assert "Give no DATA, config or other option but --store" in beside.err
    alone = command("train", tmp_path / "data.csv")
    assert alone.code == 2
    assert "train needs DATA and --config" in alone.err
