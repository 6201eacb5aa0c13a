"""What is wrong with the data or the model of an encoder in the loop is told before it is trained, and by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cachestore.errors import DataError, EncoderError, TrainingDiverged
from tests.training import live
from trainer import checkpoint, resume, train
from trainer.events import Event, Notice, StepDone


def test_a_validation_metric_that_cannot_be_is_told_before_the_first_step(models: Path, tmp_path: Path) -> None:
    rows = [{**row, "urgent": "yes" if row["wait"] > 20 else "no"} for row in live.texts(24)]
    held = [{**row, "urgent": "no"} for row in live.texts(6)]
    config = live.config(live.text_input(live.saved(models), trainable=True), trainer={"batch_size": "auto"})
    config["output_features"] = [{"name": "urgent", "type": "binary"}]
    told: list[Event] = []
    with pytest.raises(DataError, match="roc_auc of 'urgent' is undefined on the validation rows"):
        train(
            config,
            live.columns(rows),
            tmp_path / "store",
            validation=live.columns(held),
            output=tmp_path / "run",
            progress=told.append,
        )
    assert not [event for event in told if isinstance(event, StepDone)]
    assert not [event for event in told if isinstance(event, Notice) and "batch_size" in event.text]
    assert not (tmp_path / "run").exists()  # or it would have to be removed by hand, and --resume would fail alike


@pytest.mark.parametrize("trainable", [False, True])
def test_a_column_without_any_value_is_told(trainable: bool, models: Path, tmp_path: Path) -> None:
    rows = [{**row, "remark": None} for row in live.texts(12)]
    directory = live.saved(models)
    config = live.config(
        live.text_input(directory), live.text_input(directory, name="remark", column="remark", trainable=trainable)
    )
    told: list[str] = []

    def hear(event: Event) -> None:
        if isinstance(event, Notice):
            told.append(event.text)

    train(config, live.columns(rows), tmp_path / "store", output=tmp_path / "run", progress=hear)
    assert [line for line in told if "no training row has a value for 'remark'" in line]
    assert not [line for line in told if "'text'" in line]


@pytest.mark.parametrize("settings", [{"trainable": True}, {"adapter": "lora"}], ids=str)
def test_weights_that_are_no_numbers_are_named_with_their_model(
    settings: dict[str, Any], models: Path, tmp_path: Path
) -> None:
    directory = live.saved(tmp_path / "broken")
    weights = load_file(directory / "model.safetensors")
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name][3, 2] = torch.nan
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    config = live.config(live.text_input(directory, **settings))
    with pytest.raises(
        EncoderError, match=r"encoder of 'text', .*bert, has NaN .* embeddings\.word_embeddings\.weight"
    ):
        train(config, live.columns(live.texts(12)), tmp_path / "store", output=tmp_path / "run")


def test_a_loss_that_is_not_finite_names_the_rate_of_the_encoder_too(models: Path, tmp_path: Path) -> None:
    config = live.config(
        live.text_input(live.saved(models), trainable=True),
        trainer={"encoder_learning_rate": 1e25, "learning_rate": 0.01, "gradient_clipping": {"clipglobalnorm": None}},
    )
    with pytest.raises(
        TrainingDiverged,
        match=r"at learning rate 0\.01, 1e\+25 of the encoder of 'text'\. Set .* a lower trainer\.encoder_learning_rate",
    ):
        train(config, live.columns(live.texts(24)), tmp_path / "store", output=tmp_path / "run")


def test_a_run_that_ends_well_leaves_no_older_one_that_was_stopped_beside_it(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0.0)
    config = live.config(live.text_input(live.saved(models), trainable=True), trainer={"epochs": 1})
    data, store, place = live.columns(live.texts(24)), tmp_path / "store", tmp_path / "run"

    def interrupt(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 2:
            raise KeyboardInterrupt

    train(config, data, store, output=place)
    first = checkpoint.run_id(place)
    with pytest.raises(KeyboardInterrupt):
        train(config, data, store, output=place, progress=interrupt)
    assert len(list(tmp_path.glob(".run.new-*"))) == 1
    (tmp_path / ".run.new-other").mkdir()  # not a run
    train(config, data, store, output=place)
    assert checkpoint.run_id(place) != first
    assert [path.name for path in tmp_path.glob(".run.*")] == [".run.new-other"]
