"""The loop of the product closes: an encoder that a run trained is frozen into the store, and heads are trained on its vectors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import cachestore
from cachestore.encoders import exported
from cachestore.errors import ConfigError, EncoderError, UsageError
from tests.store import tiny_models
from tests.training import live
from trainer import Run, apply, resume_run, train
from trainer.events import EpochDone, Event

ROWS = live.columns(live.texts(24))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live.saved(tmp_path_factory.mktemp("models"))


def trained(bert: Path, place: Path, **encoder: Any) -> Run:
    """A run that trained the encoder of its text."""
    config = live.config(live.text_input(bert, **encoder))
    return train(config, ROWS, place / "store", output=place / "run")


def names(run: Run) -> list[str]:
    with safe_open(run.path / "model.safetensors", "pt") as file:
        return list(file.keys())


def test_a_run_holds_its_encoder_as_a_plain_model_and_the_rest_beside_it(bert: Path, tmp_path: Path) -> None:
    run = trained(bert, tmp_path, trainable=True)
    assert (run.path / "encoders" / "text" / "model.safetensors").is_file()
    assert not (run.path / "adapters").exists()
    assert run.encoders == {"text": run.path / "encoders" / "text"}
    assert names(run)
    assert not any(name.startswith("encoders.feature:text") for name in names(run))


def test_a_head_on_the_frozen_vectors_of_a_trained_encoder(bert: Path, tmp_path: Path) -> None:
    run = trained(bert, tmp_path, trainable=True)
    reference = f"{run.path}#text"
    with cachestore.open_store(tmp_path / "store") as store:
        manifest = cachestore.build(store, ROWS, {"text": reference})
        vectors, _ = store.vectors(manifest, "text")
        before = store.embed(ROWS["text"], live.encoder(bert))
    assert vectors.shape == before.shape
    assert not np.allclose(vectors, before, atol=1e-3)
    head = live.config({"name": "text", "type": "text", "encoder": reference})
    again = train(head, ROWS, tmp_path / "store", output=tmp_path / "head")
    assert again.encoded == 0
    # the run knows the place, not the name of the other run
    config = (again.path / "config.yaml").read_text()
    assert str(exported.folder(run.path, "text").absolute()) in config


def test_a_run_in_the_place_of_another_takes_its_encoders_away(bert: Path, tmp_path: Path) -> None:
    run = trained(bert, tmp_path, trainable=True)
    again = train(live.config(live.text_input(bert)), ROWS, tmp_path / "store", output=run.path)
    assert again.path == run.path
    assert not (run.path / "encoders").exists()


def test_a_run_does_not_take_the_place_of_the_one_whose_encoder_it_has(bert: Path, tmp_path: Path) -> None:
    run = trained(bert, tmp_path, trainable=True)
    for encoder in (f"{run.path}#text", {"type": f"{run.path}#text", "adapter": "lora"}):
        config = live.config({"name": "text", "type": "text", "encoder": encoder})
        with pytest.raises(UsageError, match=r"The encoder of 'text' is one of the run at .*Name another directory"):
            train(config, ROWS, tmp_path / "store", output=run.path)
    assert run.encoders


def test_a_run_that_is_replaced_while_it_is_read_is_not_mixed_with_the_new_one(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(bert, tmp_path, trainable=True)
    build_model = apply.build_model

    def replaced(*arguments: Any) -> Any:
        monkeypatch.setattr(apply, "build_model", build_model)
        trained(bert, tmp_path, trainable=True)
        return build_model(*arguments)

    monkeypatch.setattr(apply, "build_model", replaced)
    with pytest.raises(UsageError, match="was replaced while it was read"):
        run.predict(ROWS, tmp_path / "store")
    assert len(run.predict(ROWS, tmp_path / "store")["topic_predictions"]) == 24


@pytest.mark.parametrize("settings", [{"adapter": "lora"}, {"trainable_layers": 1}], ids=str)
def test_a_base_that_changes_during_training_is_not_mixed_with_what_was_trained_on_the_old_one(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    model = tiny_models.save(tmp_path / "model", **live.NO_DROPOUT["bert"])
    kept = shutil.copytree(model, tmp_path / "kept")

    def change(event: Event) -> None:
        if isinstance(event, EpochDone) and event.epoch == 2:
            tiny_models.save(model, seed=1, **live.NO_DROPOUT["bert"])

    config = live.config(live.text_input(model, **settings))
    with pytest.raises(EncoderError, match="was changed while it was in use"):
        train(config, ROWS, tmp_path / "store", output=tmp_path / "run", progress=change)
    with pytest.raises(EncoderError, match="The encoder of 'text' is not the one that the run was begun with"):
        resume_run(tmp_path / "run", data=ROWS)
    shutil.rmtree(model)
    kept.rename(model)
    resumed = resume_run(tmp_path / "run", data=ROWS)
    whole = train(config, ROWS, tmp_path / "store", output=tmp_path / "whole")
    live.assert_same_losses(resumed, whole, 1e-5)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5"])
def test_an_adapter_is_kept_in_pefts_files_and_merged_into_the_encoder(
    kind: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    model = live.saved(tmp_path_factory.mktemp("models"), kind)
    run = trained(model, tmp_path, adapter={"type": "lora", "dropout": 0.0})
    folder = exported.adapter_folder(run.path, "text")
    assert {path.name for path in folder.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    assert str(model) in (folder / "adapter_config.json").read_text()
    with cachestore.open_store(tmp_path / "store") as store:
        merged = store.embed(ROWS["text"], {"type": f"{run.path}#text", "precision": "float32", "dtype": "float32"})
        before = store.embed(ROWS["text"], live.encoder(model))
    assert not np.allclose(merged, before, atol=1e-3)
    # the head of the run, on the vectors of the store
    head = Run.load(run.path).predict(ROWS, tmp_path / "store")
    assert len(head["topic_predictions"]) == 24


def test_an_encoder_whose_adapter_cannot_be_merged_is_not_there_and_says_so(bert: Path, tmp_path: Path) -> None:
    run = trained(bert, tmp_path, adapter={"type": "prompt_tuning", "num_virtual_tokens": 2})
    assert exported.adapter_folder(run.path, "text").is_dir()
    with cachestore.open_store(tmp_path / "store") as store, pytest.raises(ConfigError, match="cannot be merged"):
        store.embed(["a text"], f"{run.path}#text")


@pytest.mark.parametrize("settings", [{"trainable": True}, {"adapter": "lora"}], ids=str)
def test_what_is_evaluated_again_is_what_was_trained(bert: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    config = live.config(live.text_input(bert, **settings))
    held = live.columns(live.texts(30)[24:])
    run = train(config, ROWS, tmp_path / "store", test=held, output=tmp_path / "run")
    moved = run.path.rename(tmp_path / "moved")
    assert Run.load(moved).evaluate(held).metrics["topic"]["loss"] == pytest.approx(
        run.metrics["test"]["topic"]["loss"], abs=1e-5
    )
