"""What an encoder cannot be trained as is told before its weights are loaded and the data is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cachestore.errors import ConfigError
from cachestore.store import Store, open_store
from tests.store import tiny_models
from tests.training import live
from trainer import load_config
from trainer.live.check import check_models


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


def checked(store: Store, *inputs: dict[str, Any], **sections: Any) -> list[str]:
    """The lines of what is wrong; none where nothing is."""
    config = load_config(
        {
            "input_features": list(inputs),
            "output_features": [{"name": "topic", "type": "category"}],
            **sections,
        }
    )
    try:
        check_models(config, store)
    except ConfigError as error:
        return str(error).removeprefix("the config: ").splitlines()
    return []


@pytest.mark.parametrize("family", live.FAMILIES)
def test_every_family_takes_full_training_and_lora(family: str, models: Path, store: Store) -> None:
    directory = live.saved(models, family)
    assert not checked(store, live.text_input(directory, trainable=True))
    assert not checked(store, live.text_input(directory, adapter={"type": "lora", "init_lora_weights": "pissa"}))


@pytest.mark.parametrize(
    ("family", "settings", "trainer", "place", "why"),
    [
        ("bert", {"adapter": "adaption_prompt"}, {}, "input_features.text.encoder.adapter", "llama, mistral, gpt2; bert models take"),
        ("gpt2", {"adapter": "loha"}, {}, "input_features.text.encoder.adapter", "(Conv1D); gpt2 models take lora, adalora"),
        ("bert", {"adapter": {"type": "lora", "target_modules": ["q_proj"]}}, {}, "input_features.text.encoder.adapter", "q_proj"),
        ("bert", {"trainable_layers": 9}, {}, "input_features.text.encoder.trainable_layers", "9 is more than the 2 blocks"),
        (
            "bert",
            {"trainable": True},
            {"layers_to_freeze_regex": "decoder"},
            "trainer.layers_to_freeze_regex",
            "'decoder' is in the name of no weight",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_the_model_is_told(
    family: str, settings: dict[str, Any], trainer: dict[str, Any], place: str, why: str, models: Path, store: Store
) -> None:
    (line,) = checked(store, live.text_input(live.saved(models, family), **settings), trainer=trainer)
    assert line.startswith(f"{place}: "), line
    assert why in line


def test_a_model_that_leaves_out_layers_by_chance_is_refused_under_fsdp(models: Path, store: Store) -> None:
    directory = tiny_models.save(models / "dropping", "opt", layerdrop=0.1)
    feature = live.text_input(directory, trainable=True)
    (line,) = checked(store, feature, trainer={"strategy": "fsdp"})
    assert line.startswith("input_features.text.encoder: the model leaves out layers by chance (layerdrop in its")
    assert not checked(store, feature, trainer={"strategy": "ddp"})


def test_faults_of_all_encoders_are_told_together(models: Path, store: Store) -> None:
    lines = checked(
        store,
        live.text_input(live.saved(models), name="a", adapter="adaption_prompt"),
        live.text_input(live.saved(models, "gpt2"), name="b", adapter="oft"),
    )
    assert lines[0] == "the config has 2 faults:"
    assert [line.partition(": ")[0] for line in lines[1:]] == [
        "input_features.a.encoder.adapter",
        "input_features.b.encoder.adapter",
    ]


def test_weights_are_not_read(models: Path, store: Store, tmp_path: Path) -> None:
    place = live.tiny_models.save(tmp_path / "model", "bert")
    weights = place / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])  # which no loading survives
    assert not checked(store, live.text_input(place, trainable=True))
