"""Settings of image encoders and what they are settled to: names, weights files, errors; no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cachestore.encoders import (
    ImageTransformerSettings,
    TorchvisionSettings,
    image_settings,
    label,
    open_encoder,
    parse_settings,
    precision,
    sha256_of_file,
)
from cachestore.encoders.image_specs import table
from cachestore.errors import ConfigError, EncoderError
from cachestore.keys import fingerprint


@pytest.mark.parametrize(
    ("settings", "architecture"),
    [
        ("resnet", "resnet50"),
        ({"type": "resnet", "model_variant": 18}, "resnet18"),
        ({"type": "resnext", "model_variant": "101_32x8d"}, "resnext101_32x8d"),
        ("mobilenetv2", "mobilenet_v2"),
        ({"type": "mobilenetv2", "model_variant": "base"}, "mobilenet_v2"),
        ("inceptionv3", "inception_v3"),
        ({"type": "convnext", "model_variant": "base"}, "convnext_base"),
        ({"type": "efficientnet", "model_variant": "v2_s"}, "efficientnet_v2_s"),
        ({"type": "swin_transformer", "model_variant": "v2_t"}, "swin_v2_t"),
        ({"type": "vgg", "model_variant": "16_bn"}, "vgg16_bn"),
        ({"type": "mnasnet", "model_variant": "1_3"}, "mnasnet1_3"),
        ({"type": "torchvision", "model": "convnext_tiny"}, "convnext_tiny"),
    ],
)
def test_ludwigs_types_name_models_of_torchvision(settings: Any, architecture: str) -> None:
    parsed = parse_settings(settings)
    assert isinstance(parsed, TorchvisionSettings)
    assert parsed.architecture == architecture


def test_the_default_of_every_type_is_a_model() -> None:
    for kind in image_settings.FAMILIES:
        parsed = parse_settings(kind)
        assert isinstance(parsed, TorchvisionSettings)
        assert parsed.architecture in table()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"type": "resnet", "model_variant": 51}, "model_variant: 51 is none of 101, 152, 18, 34, 50"),
        ({"type": "torchvision"}, "torchvision needs model"),
        ({"type": "torchvision", "model": "convnext_tinny"}, "no classification model 'convnext_tinny'.*convnext_tiny"),
        ({"type": "resnet", "model": "resnet50"}, "write type: torchvision"),
        ({"type": "resnet", "weights": "IMAGENET1K_V9"}, "resnet50 has IMAGENET1K_V1, IMAGENET1K_V2"),
        ({"type": "resnet", "use_pretrained": False}, "encoder.use_pretrained: cannot be false"),
        ({"type": "resnet", "batch_size": 0}, "encoder.batch_size: "),
        ({"type": "resnet", "trainable": True}, "encoder.trainable: cannot be set here"),
        ({"type": "auto_image_transformer"}, "needs pretrained_model_name_or_path"),
        ({"type": "dinov2", "reduce_output": "sum"}, "encoder.reduce_output: "),
    ],
)
def test_faulty_settings_are_told(settings: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_settings(settings)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(image_settings.constants, "HF_HUB_OFFLINE", True)
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    return checkpoints


def test_weights_are_found_where_torch_hub_keeps_them(hub: Path) -> None:
    for name, content in (("resnet50-11ad3fa6.pth", b"two"), ("resnet50-0676ba61.pth", b"one")):
        (hub / name).write_bytes(content)
    second = open_encoder({"type": "resnet", "precision": "float32"})
    first = open_encoder({"type": "resnet", "weights": "IMAGENET1K_V1", "precision": "float32"})
    assert second.dim == 2048
    assert second.spec["weights"] == [sha256_of_file(hub / "resnet50-11ad3fa6.pth")]
    assert second.spec["picture"]["resize"] == 232  # type: ignore[index,call-overload]
    assert first.spec["picture"]["resize"] == 256  # type: ignore[index,call-overload]
    assert first.spec["weights"] == [sha256_of_file(hub / "resnet50-0676ba61.pth")]


def test_offline_weights_that_are_missing_are_named_with_their_place(hub: Path) -> None:
    with pytest.raises(EncoderError, match=r"resnet50-11ad3fa6\.pth.*HF_HUB_OFFLINE.*weights_path"):
        open_encoder("resnet")


def test_a_download_that_fails_is_told_and_leaves_nothing(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_settings.constants, "HF_HUB_OFFLINE", False)
    entry = {**table()["resnet18"]["weights"]["IMAGENET1K_V1"], "url": "http://127.0.0.1:9/resnet18-f37072fd.pth"}
    monkeypatch.setitem(table()["resnet18"]["weights"], "IMAGENET1K_V1", entry)  # type: ignore[arg-type]
    with pytest.raises(EncoderError, match=r"could not be downloaded.*weights_path"):
        open_encoder({"type": "resnet", "model_variant": 18})
    assert not list(hub.iterdir())


def test_weights_path_that_is_no_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "mine.pth").write_bytes(b"x")
    with pytest.raises(EncoderError, match=r"mine2\.pth is no file.*mine\.pth"):
        open_encoder({"type": "resnet", "weights_path": str(tmp_path / "mine2.pth")})


def test_what_changes_a_vector_is_in_the_fingerprint_and_nothing_else(tmp_path: Path) -> None:
    for name in ("a.pth", "b.pth", "same.pth"):
        (tmp_path / name).write_bytes(b"b" if name == "b.pth" else b"a")

    def of(**settings: Any) -> bytes:
        base = {"type": "resnet", "weights_path": str(tmp_path / "a.pth"), "precision": "float32"}
        return fingerprint(open_encoder({**base, **settings}).spec)

    same = [
        {"batch_size": 7}, {"model_variant": "50"}, {"weights_path": str(tmp_path / "same.pth")}, {"weights": "DEFAULT"},
        {"type": "torchvision", "model": "resnet50"}, {"use_pretrained": True}, {"weights": "IMAGENET1K_V2"},
    ]  # fmt: skip
    other = [
        {"model_variant": 101}, {"weights_path": str(tmp_path / "b.pth")}, {"weights": "IMAGENET1K_V1"},
        {"precision": "bfloat16"}, {"dtype": "float32"},
    ]  # fmt: skip
    assert {of(**settings) for settings in same} == {of()}
    assert len({of(), *(of(**settings) for settings in other)}) == 1 + len(other)


def model_directory(path: Path, config: Any, processor: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").write_bytes(b"weights")
    if processor is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


VIT = {"image_processor_type": "ViTImageProcessorFast"}


@pytest.mark.parametrize(
    ("config", "processor", "said"),
    [
        ({"model_type": "vit"}, None, "no preprocessor_config.json"),
        ({}, VIT, "names no model_type"),
        ({"model_type": "new"}, VIT, "how wide"),
        (
            {"model_type": "vit"},
            {"image_processor_type": "SamImageProcessor"},
            "SamImageProcessor is not supported yet",
        ),
        ({"model_type": "vit"}, {**VIT, "do_resize": False}, "pictures would differ in size"),
        ({"model_type": "vit"}, {**VIT, "size": {"shortest_edge": 9}}, "pictures would differ in size"),
        ({"model_type": "vit"}, {**VIT, "resample": 5}, "rules for pictures are not supported"),
        ({"model_type": "vit"}, {**VIT, "image_mean": "x"}, "rules for pictures are not supported"),
        ({"model_type": "vit"}, [], "is not a JSON object"),
    ],
)
def test_a_directory_that_cannot_be_used_is_told(tmp_path: Path, config: Any, processor: Any, said: str) -> None:
    directory = model_directory(tmp_path / "model", config, processor)
    with pytest.raises(EncoderError, match=said):
        open_encoder({"type": "auto_image_transformer", "pretrained_model_name_or_path": str(directory)})


@pytest.mark.parametrize(
    ("config", "dim", "pooling"),
    [
        ({"model_type": "vit"}, 768, "cls"),
        ({"model_type": "dinov2", "hidden_size": 384}, 384, "pooler"),
        ({"model_type": "clip", "vision_config": {"hidden_size": 1024}, "projection_dim": 768}, 1024, "pooler"),
        ({"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}}, 768, "pooler"),
        ({"model_type": "convnext", "hidden_sizes": [96, 192, 384, 768]}, 768, "pooler"),
    ],
)
def test_dim_and_pooling_are_those_of_the_model(tmp_path: Path, config: Any, dim: int, pooling: str) -> None:
    directory = model_directory(tmp_path / "model", config, VIT)
    settings = ImageTransformerSettings(
        type="auto_image_transformer", pretrained_model_name_or_path=str(directory), precision="float32"
    )
    encoder = open_encoder(settings)
    assert encoder.dim == dim
    assert encoder.spec["reduce_output"] == pooling
    assert label(encoder.spec) == f"image {config['model_type']} {pooling} float32→float16"
    assert encoder.payload == "image"  # type: ignore[attr-defined]


def test_auto_follows_what_the_store_has_and_otherwise_the_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = model_directory(tmp_path / "model", {"model_type": "vit"}, VIT)
    settings = {"type": "auto_image_transformer", "pretrained_model_name_or_path": str(directory)}
    close = fingerprint(open_encoder({**settings, "precision": "bfloat16"}).spec)
    assert open_encoder(settings, known=lambda name: name == close).spec["precision"] == "bfloat16"
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(precision, "_GPU_DEVICES", ())
    assert open_encoder(settings).spec["precision"] == "float32"


def test_settling_an_image_encoder_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"x")
    settings = {"type": "resnet", "weights_path": str(tmp_path / "w.pth"), "precision": "float32"}
    code = f"import sys; from cachestore.encoders import open_encoder; open_encoder({settings!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"
