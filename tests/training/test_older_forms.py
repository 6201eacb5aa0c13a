"""Ludwig's older and flat forms are read as today's, and faults in them name what the user wrote."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from cachestore import yaml_source
from cachestore.errors import ConfigError
from trainer import load_config
from trainer.schema.inputs import TextInput

TODAY: dict[str, Any] = {
    "input_features": [
        {
            "name": "review",
            "type": "text",
            "encoder": {"type": "bert", "trainable": False, "reduce_output": "mean", "max_sequence_length": 64},
        },
        {"name": "age", "type": "number", "preprocessing": {"missing_value_strategy": "bfill"}},
        {"name": "kind", "type": "category", "encoder": {"type": "dense", "embedding_size": 7}},
    ],
    "output_features": [
        {
            "name": "class",
            "type": "category",
            "decoder": {"type": "classifier", "num_fc_layers": 1, "fc_output_size": 32, "fc_dropout": 0.1},
        },
        {"name": "price", "type": "number"},
    ],
    "combiner": {"type": "concat", "num_fc_layers": 1, "output_size": 64},
    "preprocessing": {"split": {"type": "stratify", "column": "class", "probabilities": [0.8, 0.1, 0.1]}},
    "trainer": {"epochs": 3, "eval_batch_size": None},
}


def faults(config: Any, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_config(config, overrides)
    return str(error.value).removeprefix("the config: ").splitlines()


def test_a_config_of_an_older_ludwig_is_that_of_today() -> None:
    older = {
        "input_features": [
            {
                "name": "review",
                "type": "text",
                "encoder": "bert",
                "trainable": False,
                "reduce_output": "avg",
                "preprocessing": {"word_sequence_length_limit": 64},
            },
            {"name": "age", "type": "numerical", "preprocessing": {"missing_value_strategy": "backfill"}},
            {"name": "kind", "type": "category", "embedding_size": 7},
        ],
        "output_features": [
            {
                "name": "class",
                "type": "category",
                "num_fc_layers": 1,
                "fc_size": 32,
                "dropout": 0.1,
                "loss": {"class_weights": 1},
            },
            {"name": "price", "type": "numerical"},
        ],
        "combiner": {"type": "concat", "num_fc_layers": 1, "fc_size": 64},
        "preprocessing": {"force_split": True, "split_probabilities": [0.8, 0.1, 0.1], "stratify": "class"},
        "training": {"epochs": 3, "eval_batch_size": 0},
    }
    written = copy.deepcopy(older)
    assert load_config(older) == load_config(TODAY)
    assert older == written
    text = yaml_source.dump(older)
    assert load_config(yaml_source.parse(text, "older")) == load_config(TODAY)


def test_preprocessing_and_defaults_by_older_types_are_defaults_of_todays() -> None:
    older = {
        "input_features": [{"name": "age", "type": "numerical"}, {"name": "width", "type": "number"}],
        "output_features": [{"name": "y", "type": "binary"}],
    }
    expected = load_config({**older, "defaults": {"number": {"preprocessing": {"normalization": "minmax"}}}})
    assert load_config({**older, "preprocessing": {"numerical": {"normalization": "minmax"}}}) == expected
    assert load_config({**older, "defaults": {"numerical": {"preprocessing": {"normalization": "minmax"}}}}) == expected


def test_defaults_without_a_type_lie_under_every_encoder_of_the_feature_type() -> None:
    config = load_config(
        {
            "input_features": [
                {"name": "a", "type": "text", "encoder": "bert"},
                {"name": "b", "type": "text", "encoder": "minilm"},
            ],
            "output_features": [{"name": "y", "type": "binary"}],
            "preprocessing": {"text": {"max_sequence_length": 32}},
        }
    )
    assert [feature.encoder.max_sequence_length for feature in config.input_features] == [32, 32]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "places"),
    [
        ({"training": {"epochs": 0, "learning_rte": 1}}, ["training.epochs", "training.learning_rte"]),
        ({"training": {"epochs": 3}, "trainer": {"epochs": 0}}, ["training", "trainer.epochs"]),
        (
            {"preprocessing": {"split_probabilities": [0.5, 0.1, 0.1]}},
            ["preprocessing.split_probabilities"],
        ),
        ({"preprocessing": {"force_split": True, "split": "random"}}, ["preprocessing.force_split"]),
        ({"preprocessing": {"numerical": {"normalization": "zscoer"}}}, ["preprocessing.numerical.normalization"]),
        (
            {
                "input_features": [
                    {"name": "t", "type": "text", "encoder": "bert", "trainable": "yes", "adapter": "lroa"}
                ]
            },
            ["input_features.t.trainable", "input_features.t.adapter.type"],
        ),
        (
            {
                "input_features": [
                    {"name": "t", "type": "text", "encoder": {"type": "bert", "trainable": False}, "trainable": True}
                ]
            },
            ["input_features.t.trainable"],
        ),
        (
            {"input_features": [{"name": "t", "type": "text", "encoder": "bert", "reduce_output": "maen"}]},
            ["input_features.t.reduce_output"],
        ),
        ({"output_features": [{"name": "y", "type": "binary", "fc_size": -1}]}, ["output_features.y.fc_size"]),
        ({"combiner": {"fc_layers": [{"fc_size": "big"}]}}, ["combiner.fc_layers[0].fc_size"]),
        (
            {
                "input_features": [
                    {"name": "t", "type": "text", "encoder": {"type": "hashing", "cache_encoder_embeddings": False}}
                ]
            },
            ["input_features.t.encoder.cache_encoder_embeddings"],
        ),
    ],
    ids=str,
)
def test_faults_name_the_place_that_was_written(changes: dict[str, Any], places: list[str]) -> None:
    config = {
        "input_features": [{"name": "age", "type": "number"}],
        "output_features": [{"name": "y", "type": "binary"}],
        **changes,
    }
    lines = [line for line in faults(config) if not line.startswith("the config has")]
    assert sorted(line.partition(": ")[0] for line in lines) == sorted(places)


def test_overrides_meet_the_older_forms() -> None:
    config = {
        "input_features": [{"name": "t", "type": "text", "encoder": "bert", "reduce_output": "sum"}],
        "output_features": [{"name": "y", "type": "numerical"}],
        "training": {"epochs": 3},
    }
    changed = load_config(
        config, ["trainer.epochs=4", "input_features.t.encoder.reduce_output=max", "output_features.y.num_fc_layers=2"]
    )
    assert changed.trainer.epochs == 4
    assert changed.input_features[0].encoder.reduce_output == "max"  # type: ignore[union-attr]
    assert changed.output_features[0].decoder.num_fc_layers == 2  # type: ignore[union-attr]


# the configs in Ludwig's pages on fine-tuning, as people have them
TARGET = "output_features:\n- {name: sentiment, type: category}\n"
PAGES: dict[str, tuple[str, str, str | None]] = {
    "frozen": (
        """
input_features:
- name: review
  type: text
  encoder: {type: auto_transformer, pretrained_model_name_or_path: bert-base-uncased, trainable: false}
  preprocessing: {cache_encoder_embeddings: true}
""",
        "frozen",
        None,
    ),
    "full": (
        """
input_features:
- {name: review, type: text}
defaults: {text: {encoder: {type: bert, trainable: true}}}
trainer:
  epochs: 5
  batch_size: auto
  learning_rate: 0.00001
  learning_rate_scheduler: {warmup_fraction: 0.2, decay: linear}
  optimizer: {type: adamw}
  use_mixed_precision: true
""",
        "full",
        None,
    ),
    "lora": (
        """
input_features:
- name: review
  type: text
  encoder:
    type: auto_transformer
    pretrained_model_name_or_path: meta-llama/Llama-2-7b-hf
    trainable: true
    adapter: {type: lora, r: 16, alpha: 32, dropout: 0.1}
""",
        "adapter",
        None,
    ),
    "ray": (
        """
input_features:
- {name: review, type: text, encoder: {type: bert, trainable: true}}
trainer: {learning_rate: auto, learning_rate_scaling: sqrt, evaluate_training_set: false}
backend: {type: ray, trainer: {strategy: ddp}}
""",
        "full",
        "ddp",
    ),
    "model parallelism": (
        """
input_features:
- {name: review, type: text}
defaults:
  text:
    encoder:
      type: auto_transformer
      pretrained_model_name_or_path: bigscience/bloom-3b
      trainable: true
backend:
  type: ray
  trainer:
    strategy: fsdp
""",
        "full",
        "fsdp",
    ),
}


@pytest.mark.parametrize("name", PAGES)
def test_configs_of_ludwigs_pages_load(name: str, tmp_path: Path) -> None:
    text, mode, strategy = PAGES[name]
    path = tmp_path / "config.yaml"
    path.write_text(text + TARGET, encoding="utf-8")
    config = load_config(path)
    (feature,) = config.input_features
    assert isinstance(feature, TextInput)
    assert (feature.tuning.mode, config.backend.trainer.strategy) == (mode, strategy)
    assert load_config(config.resolved()) == config
