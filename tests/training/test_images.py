"""Image inputs: from folders and tables of paths, through a frozen model and the store, to predictions."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cachestore.encoders import _torchvision
from cachestore.errors import ConfigError, EncoderError
from cachestore.store import Store, open_store
from cli.app import run as run_command
from trainer import evaluate, load_config, predict, train

_torchvision.make_importable()

import transformers  # noqa: E402  after the line above

COLOURS = {"blue": (20, 40, 200), "green": (30, 180, 40), "red": (200, 30, 30)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny vision transformer with random weights: colours stay apart in what it gives."""
    directory = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    made = transformers.ViTModel(transformers.ViTConfig(image_size=16, patch_size=8, initializer_range=0.5, **sizes))
    made.save_pretrained(directory)
    words = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    (directory / "preprocessor_config.json").write_text(json.dumps(words))
    return directory


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder per split and class."""
    numbers = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        for label, colour in COLOURS.items():
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                noise = numbers.integers(-20, 20, (20, 20, 3))
                Image.fromarray(np.clip(noise + colour, 0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with open_store(tmp_path / "store") as opened:
        yield opened


def settings(model: Path, **changes: Any) -> dict[str, Any]:
    encoder = {"type": "auto_image_transformer", "pretrained_model_name_or_path": str(model), "precision": "float32"}
    return {
        "input_features": [{"name": "image", "type": "image", "encoder": encoder}],
        "output_features": [{"name": "label", "type": "category"}],
        "preprocessing": {"split": {"type": "fixed", "column": "split"}},
        "trainer": {"epochs": 30, "batch_size": 12, "learning_rate": 0.05},
        **changes,
    }


def test_a_folder_per_split_and_class_is_trained_on_and_a_table_of_paths_predicted(
    tmp_path: Path, photos: Path, model: Path, store: Store
) -> None:
    run = train(settings(model), photos, store, output=tmp_path / "run")
    assert run.rows == {"train": 36, "validation": 12, "test": 12}
    assert run.metrics["test"]["label"]["accuracy"] == 1.0
    assert run.encoded == 60
    again = train(settings(model), photos, store, output=tmp_path / "again")
    assert (again.encoded, again.hits) == (0, 60)

    (photos / "new.csv").write_text("image,label\ntest/red/0.png,red\ntrain/blue/1.png,blue\ngone.png,red\n,green\n")
    found = predict(tmp_path / "run", photos / "new.csv", store)
    assert found.columns["label_predictions"].tolist()[:2] == ["red", "blue"]
    assert found.predicted.tolist() == [True, True, False, True]
    assert [(cell.row, cell.why) for cell in found.skipped_cells] == [(2, "'gone.png' does not exist")]
    assert found.encoded == 0
    measured = evaluate(tmp_path / "run", photos / "new.csv", store)
    assert measured.rows == 3


def test_a_run_is_put_to_use_without_its_model_while_all_is_stored_and_asks_for_it_when_not(
    tmp_path: Path, photos: Path, model: Path, store: Store
) -> None:
    train(settings(model), photos, store, output=tmp_path / "run")
    moved = model.rename(model.with_name("moved"))
    try:
        assert evaluate(tmp_path / "run", photos, store).rows == 60
        Image.new("RGB", (9, 9), (1, 2, 3)).save(photos / "train" / "red" / "new.png")
        with pytest.raises(EncoderError):
            evaluate(tmp_path / "run", photos, store)
    finally:
        moved.rename(model)


def test_pictures_and_texts_are_inputs_of_one_model_and_a_missing_picture_has_an_indicator(
    tmp_path: Path, photos: Path, model: Path, store: Store
) -> None:
    lines = [
        f"{'' if row % 5 == 4 else f'train/{label}/{row}.png'},{label} thing,{label}"
        for label in COLOURS
        for row in range(12)
    ]
    (photos / "both.csv").write_text("\n".join(["image,text,label", *lines]) + "\n")
    wanted = settings(model, preprocessing={"split": {"type": "random", "probabilities": [0.7, 0.1, 0.2]}})
    wanted["input_features"].append({"name": "text", "type": "text", "encoder": {"type": "hashing", "dim": 32}})
    run = train(wanted, photos / "both.csv", store, output=tmp_path / "run")
    described = json.loads((tmp_path / "run" / "model.json").read_text())
    assert described["features"]["image"]["missing"] is True
    assert run.skipped == 0
    dropping = {
        **wanted,
        "input_features": [{**wanted["input_features"][0], "preprocessing": {"missing_value_strategy": "drop_row"}}],
    }
    assert train(dropping, photos / "both.csv", store).dropped == {"image: missing": 6}


def test_the_commands_take_folders_and_tables_of_paths(
    tmp_path: Path, photos: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*arguments: object) -> tuple[int, str, str]:
        code = run_command([str(argument) for argument in (*arguments, "--store", tmp_path / "store")])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(settings(model)))
    code, out, err = command("build", photos, "-c", config, "--json")
    assert code == 0, err
    assert json.loads(out)["encoded"] == 60
    encoder = json.dumps(settings(model)["input_features"][0]["encoder"])
    code, out, err = command("build", str(photos) + os.sep, "--column", "image", "--encoder", encoder, "--json")
    assert (json.loads(out)["name"], json.loads(out)["hits"]) == ("photos", 60)
    (photos / "train" / "red" / "0.png").write_bytes(b"<html>404")
    code, out, err = command("build", photos, "-c", config)
    assert "0 pictures encoded" in out
    assert code == 5
    assert "'train/red/0.png' is an HTML page" in err
    code, out, err = command("train", photos, "-c", config, "-o", tmp_path / "run", "--quiet")
    assert code == 5, err
    (photos / "new.csv").write_text("image\ntest/red/0.png\n")
    code, out, err = command("predict", tmp_path / "run", photos / "new.csv", "--quiet")
    assert code == 0, err
    assert "red" in out


def faults(inputs: Mapping[str, Any], **changes: Any) -> str:
    feature = {"name": "image", "type": "image", "encoder": "resnet", **inputs}
    with pytest.raises(ConfigError) as caught:
        load_config(
            {"input_features": [feature], "output_features": [{"name": "label", "type": "category"}], **changes}
        )
    return str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "place", "why"),
    [
        ({"encoder": None}, "image.encoder", "is missing; an image feature needs one: encoder: resnet"),
        ({"encoder": {"type": "resnet", "trainable": 1}}, "image.encoder.trainable", "must be true or false or null"),
        ({"encoder": "minilm"}, "image.encoder.type", "'minilm' is an encoder of text; choose one of torchvision"),
        ({"encoder": "stacked_cnn"}, "image.encoder.type", "is not supported yet; choose one of torchvision, alexnet"),
        ({"encoder": {"type": "resnet", "model_variant": 51}}, "image.encoder", "51"),
        ({"preprocessing": {"height": 28}}, "image.preprocessing.height", "belongs to the encoder"),
        ({"preprocessing": {"num_channels": 1}}, "image.preprocessing.num_channels", "belongs to the encoder"),
        ({"preprocessing": {"in_memory": False}}, "image.preprocessing.in_memory", "are read once"),
        ({"preprocessing": {"missing_value_strategy": "fill_with_const"}}, "missing_value_strategy", "choose one of"),
        ({"augmentation": True}, "image.augmentation", "a picture is seen as it is"),
    ],
)  # fmt: skip
def test_what_an_image_feature_cannot_have_is_told(inputs: dict[str, Any], place: str, why: str) -> None:
    said = faults(inputs)
    assert place in said
    assert why in said


def test_a_text_feature_takes_no_encoder_of_images() -> None:
    said = faults({"type": "text", "encoder": "dinov2"})
    assert "input_features.image.encoder.type: 'dinov2' is an encoder of images; choose one of hashing" in said


def test_ludwigs_forms_are_taken() -> None:
    written = {"type": "resnet", "model_variant": 18, "trainable": False, "use_pretrained": True}
    preprocessing = {"cache_encoder_embeddings": True}
    feature = {"name": "image_path", "type": "image", "encoder": written, "preprocessing": preprocessing}
    outputs = [{"name": "label", "type": "category"}]
    config = load_config({"input_features": [feature], "output_features": outputs})
    assert config.input_features[0].encoder.architecture == "resnet18"  # type: ignore[union-attr]
    shared = {"image": {"encoder": {"type": "resnet", "model_variant": 18}}}
    config = load_config(
        {"input_features": [{"name": "a", "type": "image"}], "output_features": outputs, "defaults": shared}
    )
    assert config.input_features[0].encoder.architecture == "resnet18"  # type: ignore[union-attr]
    assert load_config(config.resolved()) == config
