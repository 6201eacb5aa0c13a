"""A frozen encoder in the loop gives what the store gives: by family of models, and by what is done to texts on their way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cachestore.encoders import text as text_encoders
from cachestore.store import Store, open_store
from tests.store import tiny_models
from tests.training import live
from trainer import train
from trainer.runs import Run


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened
    text_encoders.release()


def both(
    tmp_path: Path,
    store: Store,
    directory: Path,
    data: Any,
    preprocessing: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[Run, Run]:
    """A run from the store, and one with the encoder in the loop."""
    runs = []
    for in_loop in (False, True):
        feature = live.text_input(directory, live=in_loop, **settings)
        feature["preprocessing"].update(preprocessing or {})
        runs.append(train(live.config(feature), data, store, output=tmp_path / f"live-{in_loop}"))
    return runs[0], runs[1]


@pytest.mark.parametrize("kind", live.FAMILIES)
def test_every_family_gives_the_losses_that_the_store_gives(
    tmp_path: Path, models: Path, store: Store, kind: str
) -> None:
    cached, in_loop = both(tmp_path, store, live.saved(models, kind), live.columns(live.texts(40)))
    live.assert_same_losses(cached, in_loop)
    assert (cached.encoded, in_loop.encoded, in_loop.hits) == (40, 0, 0)
    assert in_loop.rows == cached.rows


@pytest.mark.parametrize(
    "settings",
    [
        {"prompt": "topic: "},
        {"prompt": {"template": "{title}: {text}"}},
        {"reduce_output": "cls_pooled+mean", "normalize": True},
        {"layer": 1},
        {"max_sequence_length": 5},
    ],
    ids="-".join,
)
def test_what_is_done_to_a_text_and_its_states_is_done_in_the_loop_too(
    tmp_path: Path, models: Path, store: Store, settings: dict[str, Any]
) -> None:
    data = live.columns(live.texts(40))
    live.assert_same_losses(*both(tmp_path, store, live.saved(models), data, **settings))


@pytest.mark.parametrize(
    "preprocessing",
    [
        {"missing_value_strategy": "indicator"},
        {"missing_value_strategy": "drop_row"},
        {"missing_value_strategy": "fill_with_const", "fill_value": "the parcel"},
        {"missing_value_strategy": "fill_with_mode"},
        {"missing_value_strategy": "bfill"},
        {"missing_value_strategy": "ffill", "missing_value_indicator": True},
    ],
    ids=lambda preprocessing: preprocessing["missing_value_strategy"],
)
def test_missing_texts_are_filled_in_the_loop_as_from_the_store(
    tmp_path: Path, models: Path, store: Store, preprocessing: dict[str, Any]
) -> None:
    data = live.columns(live.texts(45))
    for row in (0, 5, 6, 20, 44):
        data["text"][row] = None
    data["text"][7] = ""  # a text like any other
    cached, in_loop = both(tmp_path, store, live.saved(models), data, preprocessing)
    live.assert_same_losses(cached, in_loop)
    assert cached.dropped == in_loop.dropped


def test_a_sentence_transformers_model_keeps_its_pooling_and_its_layers(
    tmp_path: Path, store: Store, models: Path
) -> None:
    directory = tiny_models.save(tmp_path / "sentences", "bert", **live.NO_DROPOUT["bert"])
    tiny_models.make_sentence_model(directory, {"pooling_mode_max_tokens": True}, normalize=True)
    live.assert_same_losses(*both(tmp_path, store, directory, live.columns(live.texts(40))))


def test_a_frozen_encoder_in_the_loop_computes_in_its_own_precision(tmp_path: Path, models: Path, store: Store) -> None:
    cached, in_loop = both(
        tmp_path, store, live.saved(models), live.columns(live.texts(40)), precision="bfloat16", normalize=True
    )
    live.assert_same_losses(cached, in_loop, 1e-2)  # sums of bfloat16 depend on the batch
    stored, looped = (
        json.loads((run.path / "model.json").read_text())["features"]["text"]["spec"] for run in (cached, in_loop)
    )
    assert stored == looped
    assert looped["precision"] == "bfloat16"


def test_the_packaged_model_gives_the_same_in_the_loop(tmp_path: Path, store: Store) -> None:
    runs = []
    for in_loop in (False, True):
        feature = {
            "name": "text",
            "type": "text",
            "encoder": {"type": "minilm", "precision": "float32", "dtype": "float32"},
            "preprocessing": {"cache_encoder_embeddings": not in_loop},
        }
        wanted = live.config(feature, trainer={"epochs": 2})
        runs.append(train(wanted, live.columns(live.texts(40)), store, output=tmp_path / f"live-{in_loop}"))
    live.assert_same_losses(*runs)
