"""The loop of the product closes: an encoder that a run trained is frozen into the store, and heads are trained on its vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import cachestore
from cachestore.encoders import exported
from tests.training import live
from trainer import Run, train

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
