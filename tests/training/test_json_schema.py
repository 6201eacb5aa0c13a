"""The JSON Schema takes what load_config takes, and refuses what it refuses, as far as a schema can."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest

from cachestore.errors import ConfigError
from trainer import load_config
from trainer.json_schema import config_schema
from trainer.schema import Config
from trainer.sweep.plan import make_plan

SCHEMA = config_schema()
KINDS: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int, "number": (int, float),
}  # fmt: skip
HANDLED = {
    "type", "properties", "required", "additionalProperties", "items", "prefixItems", "minItems", "maxItems", "anyOf", "oneOf",
    "allOf", "$ref", "enum", "const", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "propertyNames",
}  # fmt: skip
SAID = {"title", "description", "default", "$defs", "$schema", "discriminator"}


def valid(value: Any, schema: dict[str, Any]) -> bool:
    """Whether ``value`` is valid: the keywords of JSON Schema that ours has. Fails on any other."""
    assert not schema.keys() - HANDLED - SAID, schema.keys()
    if "$ref" in schema and not valid(value, SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]):
        return False
    kind = schema.get("type")
    if kind is not None and (not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if isinstance(value, dict) and not _object(value, schema):
        return False
    if isinstance(value, list) and not _array(value, schema):
        return False
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        if not low <= value <= high or (above is not None and value <= above) or (below is not None and value >= below):
            return False
    if isinstance(value, str) and len(value) < schema.get("minLength", 0):
        return False
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        return False
    return (
        all(valid(value, part) for part in schema.get("allOf", ()))
        and ("anyOf" not in schema or any(valid(value, part) for part in schema["anyOf"]))
        and ("oneOf" not in schema or sum(valid(value, part) for part in schema["oneOf"]) == 1)
    )


def _object(value: dict[str, Any], schema: dict[str, Any]) -> bool:
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    names = schema.get("propertyNames", {})
    return (
        all(key in value for key in schema.get("required", ()))
        and all(valid(key, names) for key in value)
        and all(
            valid(item, properties[key])
            if key in properties
            else others is True or (others is not False and valid(item, others))
            for key, item in value.items()
        )
    )


def _array(value: list[Any], schema: dict[str, Any]) -> bool:
    first = schema.get("prefixItems", [])
    return (
        schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        and all(valid(item, part) for item, part in zip(value, first, strict=False))
        and all(valid(item, schema.get("items", {})) for item in value[len(first) :])
    )


BASE: dict[str, Any] = {
    "input_features": [{"name": "review", "type": "text", "encoder": "minilm"}],
    "output_features": [{"name": "y", "type": "category"}],
}
GOOD: list[dict[str, Any]] = [
    {},
    {
        "input_features": [
            {"name": "a", "type": "text", "encoder": {"type": "bert", "trainable": False, "adapter": None}}
        ]
    },
    {"input_features": [{"name": "a", "type": "text"}], "defaults": {"text": {"encoder": "hashing"}, "number": None}},
    {"input_features": [{"name": "k", "type": "category", "encoder": {"embedding_size": 7}, "preprocessing": None}]},
    {"input_features": [{"name": "i", "type": "image", "encoder": "resnet", "column": "path"}]},
    {
        "output_features": [
            {"name": "n", "type": "number", "loss": "huber"},
            {"name": "b", "type": "binary", "threshold": 0.2},
        ]
    },
    {"output_features": [{"name": "n", "type": "number", "loss": {"weight": 2}, "decoder": "regressor"}]},
    {"combiner": "concat", "trainer": {"optimizer": "adamw", "batch_size": "auto", "learning_rate_scheduler": None}},
    {"trainer": {"optimizer": {"weight_decay": 0.1}, "learning_rate": 0.01, "validation_metric": "loss"}},
    {"preprocessing": {"split": {"probabilities": [0.8, 0.1, 0.1]}}, "backend": "local", "random_seed": 7},
    {"preprocessing": {"split": {"type": "stratify", "column": "y"}}},
    {
        "input_features": [
            {"name": "a", "type": "text", "encoder": {"type": "bert", "trainable": True, "trainable_layers": 2}}
        ]
    },
    {"input_features": [{"name": "a", "type": "text", "encoder": {"type": "bert", "adapter": "lora"}}]},
    {
        "input_features": [
            {
                "name": "a",
                "type": "text",
                "encoder": {
                    "type": "bert",
                    "adapter": {"type": "lora", "r": 4, "lora_alpha": 8, "target_modules": ["query"]},
                },
            }
        ]
    },
    {"input_features": [{"name": "i", "type": "image", "encoder": {"type": "resnet", "trainable": True}}]},
    {"backend": {"type": "ray", "trainer": {"strategy": "fsdp", "num_workers": 2}, "storage_path": "/shared"}},
    {"backend": {"trainer": {"strategy": "ddp"}}},
]
BAD: list[dict[str, Any]] = [
    {"trainr": {}},
    {"trainer": {"epoch": 3}},
    {"trainer": {"epochs": "3"}},
    {"trainer": {"optimizer": "adm"}},
    {"trainer": {"optimizer": {"type": "adam", "momentum": 0.9}}},
    {"combiner": {"type": "concat", "num_fc_layers": -1}},
    {"input_features": []},
    {"input_features": [{"name": "a", "type": "nmber"}]},
    {"input_features": [{"name": "a", "type": "text", "encoder": {"type": "bert", "reduce_outputs": "mean"}}]},
    {"input_features": [{"name": "a", "type": "text", "encoder": {"type": "bert", "trainable": "yes"}}]},
    {"input_features": [{"name": "a", "type": "text", "encoder": {"type": "hashing", "trainable": True}}]},
    {"input_features": [{"name": "a", "type": "text", "encoder": {"type": "bert", "adapter": "lroa"}}]},
    {
        "input_features": [
            {"name": "a", "type": "text", "encoder": {"type": "bert", "adapter": {"type": "ia3", "r": 8}}}
        ]
    },
    {"input_features": [{"name": "a", "type": "text", "encoder": "bert", "tuning": {"trainable": True}}]},
    {"backend": {"trainer": {"strategy": "fspd"}}},
    {"backend": {"type": "local", "trainer": {"use_gpu": True}}},
    {"input_features": [{"name": "a", "type": "text", "encoder": "resnet"}]},
    {"input_features": [{"name": "a", "type": "text", "encoder": {"type": "dinov2"}}]},
    {"input_features": [{"name": "a", "type": "image", "encoder": {"type": "bert"}}]},
    {"output_features": [{"type": "number"}]},
    {"preprocessing": {"split": {"type": "random", "column": "y"}}},
    {"preprocessing": {"split": {"probabilities": [0.8, 0.1]}}},
    {"defaults": {"text": {"decoder": "classifier"}}},
    {"random_seed": -1},
]


@pytest.mark.parametrize("changes", GOOD, ids=str)
def test_what_can_be_read_is_valid(changes: dict[str, Any]) -> None:
    config = {**copy.deepcopy(BASE), **changes}
    resolved = load_config(config).resolved()
    assert valid(config, SCHEMA)
    assert valid(json.loads(json.dumps(resolved)), SCHEMA)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_the_encoder_of_a_run_is_valid(kind: str) -> None:
    for encoder in ("runs/lora#text", {"type": "runs/lora#text", "dtype": "float32", "adapter": "lora"}):
        feature = {"name": "a", "type": kind}
        assert valid({**BASE, "input_features": [{**feature, "encoder": encoder}]}, SCHEMA)
        assert valid({**BASE, "input_features": [feature], "defaults": {kind: {"encoder": encoder}}}, SCHEMA)
    assert not valid({**BASE, "input_features": [{"name": "a", "type": "category", "encoder": "runs/a#b"}]}, SCHEMA)


@pytest.mark.parametrize("changes", BAD, ids=str)
def test_what_cannot_be_read_is_not_valid(changes: dict[str, Any]) -> None:
    config = {**copy.deepcopy(BASE), **changes}
    with pytest.raises(ConfigError):
        load_config(config)
    assert not valid(config, SCHEMA)


SWEEPS: list[dict[str, Any]] = [
    {"parameters": {"trainer.learning_rate": [0.001, 0.01], "review.encoder": ["minilm", {"type": "hashing"}]}},
    {"parameters": {"trainer.learning_rate": {"space": "loguniform", "lower": 1e-4, "upper": 1}}},
    {
        "parameters": {"trainer.batch_size": {"space": "choice", "categories": [32, 64]}},
        **{"goal": "maximize", "metric": "accuracy", "output_feature": "y", "split": "validation"},
        **{"executor": {"num_samples": 4}, "search_alg": "random"},
    },
    {
        "parameters": {"trainer.epochs": {"space": "grid_search", "values": [1, 2]}},
        "executor": "ray",
        "search_alg": None,
    },
]
NO_SWEEPS: list[dict[str, Any]] = [
    {"parameters": {"trainer.learning_rate": []}},
    {"parameters": {"trainer.learning_rate": {"lower": 1e-4, "upper": 1.0}}},
    {"parameters": {"trainer.learning_rate": {"space": "loguniforn", "lower": 1e-4, "upper": 1.0}}},
    {"parameters": {"trainer.learning_rate": {"space": "uniform", "lower": 1e-4, "uper": 1.0}}},
    {"parameters": {"trainer.learning_rate": [1.0]}, "gaol": "minimize"},
    {"parameters": {"trainer.learning_rate": [1.0]}, "executor": {"num_samples": 0}},
]


@pytest.mark.parametrize("section", SWEEPS, ids=str)
def test_what_a_sweep_can_read_is_valid(section: dict[str, Any]) -> None:
    config = {**copy.deepcopy(BASE), "hyperopt": section}
    assert make_plan(config).trials
    assert valid(config, SCHEMA)


@pytest.mark.parametrize("section", NO_SWEEPS, ids=str)
def test_what_a_sweep_cannot_read_is_not_valid(section: dict[str, Any]) -> None:
    config = {**copy.deepcopy(BASE), "hyperopt": section}
    with pytest.raises(ConfigError):
        make_plan(config)
    assert not valid(config, SCHEMA)


def test_every_section_is_in_it() -> None:
    assert set(SCHEMA["properties"]) == {*Config.model_fields, "defaults", "hyperopt"}
    assert SCHEMA["additionalProperties"] is False
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
