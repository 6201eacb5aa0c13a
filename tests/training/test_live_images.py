"""Image encoders in the loop: equal to the store's when frozen, trained whole or by an adapter, on pictures that are decoded once."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from cachestore.dataset import open_dataset
from cachestore.encoders import image as image_encoders
from cachestore.encoders import torchvision_models
from cachestore.encoders.image_model import OneVector
from cachestore.errors import ConfigError, DataError, UsageError
from cachestore.store import Store, open_store
from tests.store import tiny_image_models
from tests.training import live
from trainer import evaluate, load_config, predict, train
from trainer.live import pictures
from trainer.live.build import live_encoder
from trainer.live.encoder import LiveEncoder
from trainer.live.freezing import blocks
from trainer.live.inputs import read_live, start
from trainer.live.pictures import PixelCells

COLOURS = {"card": (200, 40, 40), "parcel": (40, 180, 40), "bank": (40, 40, 200)}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened
    image_encoders.release()


def picture(row: int, topic: str) -> bytes:
    noise = np.random.default_rng(row).integers(-30, 30, (34, 40, 3))
    file = io.BytesIO()
    Image.fromarray(np.clip(noise + COLOURS[topic], 0, 255).astype(np.uint8)).save(file, "png")
    return file.getvalue()


def columns(count: int) -> dict[str, list[Any]]:
    """Pictures whose colour is their topic, beside texts of it."""
    found = live.columns(live.texts(count))
    return {**found, "picture": [picture(row, topic) for row, topic in enumerate(found["topic"])]}


def torchvision_encoder(models: Path, architecture: str) -> dict[str, Any]:
    path = models / f"{architecture}.pth"
    if not path.exists():
        torch.manual_seed(0)
        made = torchvision_models.models.get_model(architecture, weights=None, num_classes=3)
        for module in made.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # statistics as of training
                torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
                torch.nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
        torch.save(made.state_dict(), path)
    return {"type": "torchvision", "model": architecture, "weights_path": str(path)}


def encoder(models: Path, kind: str, **settings: Any) -> dict[str, Any]:
    """A tiny model of transformers, or a small one of torchvision, that computes and stores in float32."""
    usual = {"precision": "float32", "dtype": "float32", **settings}
    if kind not in tiny_image_models.CONFIGS:
        return {**torchvision_encoder(models, kind), **usual}
    place = models / kind
    if not place.exists():
        tiny_image_models.save(place, kind)
    return {"type": "auto_image_transformer", "pretrained_model_name_or_path": str(place), **usual}


def image_input(made: dict[str, Any], *, in_loop: bool | None = None, **preprocessing: Any) -> dict[str, Any]:
    if in_loop is not None:
        preprocessing["cache_encoder_embeddings"] = not in_loop
    return {"name": "picture", "type": "image", "encoder": made, "preprocessing": preprocessing}


def built(
    made: dict[str, Any], store: Store, data: Any, *, weights: bool = True, **trainer: Any
) -> tuple[LiveEncoder, PixelCells]:
    config = load_config(live.config(image_input(made), trainer=trainer))
    (feature,) = config.live
    found = live_encoder(feature, start(feature, store), config, weights=weights)
    cells = read_live(config, open_dataset(data), store)["picture"].cells
    assert isinstance(cells, PixelCells)
    return found, cells


@pytest.mark.parametrize("kind", [*tiny_image_models.CONFIGS, "resnet18", "mnasnet0_5"])
def test_a_frozen_encoder_of_images_gives_in_the_loop_what_the_store_gives(
    tmp_path: Path, models: Path, store: Store, kind: str
) -> None:
    data = columns(18)
    runs = [
        train(
            live.config(image_input(encoder(models, kind), in_loop=in_loop)),
            data,
            store,
            output=tmp_path / f"live-{in_loop}",
        )
        for in_loop in (False, True)
    ]
    live.assert_same_losses(*runs)
    assert [run.encoded for run in runs] == [18, 0]


@pytest.mark.parametrize("tuning", [{"trainable": True}, {"adapter": "lora"}], ids=["full", "lora"])
def test_an_encoder_of_images_is_trained_and_its_run_predicts(
    tmp_path: Path, models: Path, store: Store, tuning: dict[str, Any]
) -> None:
    data = columns(24)
    rate = 0.003 if "trainable" in tuning else 0.01
    wanted = live.config(image_input(encoder(models, "vit", **tuning)), trainer={"epochs": 6, "learning_rate": rate})
    run = train(wanted, data, store, output=tmp_path / "run")
    losses = [loss for _, split, loss in live.losses(run) if split == "train"]
    assert losses[-1] < 0.7 * losses[0]
    assert predict(run.path, data, store).predicted.all()
    assert evaluate(run.path, data, store).metrics["topic"]["loss"] < losses[0]


@pytest.mark.parametrize("tuning", [{"trainable": True}, {"adapter": "lora"}], ids=["full", "lora"])
def test_a_model_of_torchvision_is_trained_and_its_run_predicts(
    tmp_path: Path, models: Path, store: Store, tuning: dict[str, Any]
) -> None:
    data = columns(9)
    made = image_input(encoder(models, "shufflenet_v2_x0_5", **tuning))
    wanted = {**live.config(made, trainer={"epochs": 2, "learning_rate": 0.001, "early_stop": -1})}
    run = train(wanted, data, store, validation=data, output=tmp_path / "run")
    again = evaluate(run.path, data, store)
    assert again.metrics["topic"]["loss"] == pytest.approx(run.metrics["validation"]["topic"]["loss"], abs=1e-5)
    losses = [loss for _, split, loss in live.losses(run) if split == "validation"]
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("kind", "adapter"),
    [
        ("vit", "lora"),
        ("vit", "adalora"),
        ("vit", "ia3"),
        ("vit", {"type": "oft", "oft_block_size": 4}),
        ("dinov2", {"type": "lora", "use_dora": True}),
        ("clip", "loha"),
        ("siglip", {"type": "lora", "target_modules": "all-linear"}),
        ("convnext", {"type": "vera", "r": 4}),
        ("resnet18", "lora"),
        ("resnet18", "lokr"),
        ("mnasnet0_5", "lora"),
    ],
    ids=str,
)
def test_every_trained_weight_of_an_adapter_on_images_gets_a_gradient(
    models: Path, store: Store, kind: str, adapter: Any
) -> None:
    from trainer import adapters

    found, cells = built(encoder(models, kind, adapter=adapter), store, columns(4))
    found.train()
    before = found(cells)
    frozen, _ = built(encoder(models, kind, trainable=True), store, columns(4))
    found.eval()
    frozen.eval()
    assert torch.allclose(found(cells), frozen(cells), atol=1e-4), "an adapter begins by changing nothing"
    before.sum().backward()
    trained = {name: weight for name, weight in found.module.named_parameters() if weight.requires_grad}
    assert trained
    assert all(weight.grad is not None for weight in trained.values())
    with torch.no_grad():
        for weight in trained.values():
            weight.add_(0.05)
    wanted = found(cells)
    assert not torch.allclose(wanted, frozen(cells), atol=1e-3)
    adapters.merged(found.module)
    assert torch.allclose(found(cells), wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", [*tiny_image_models.CONFIGS, "resnet18", "swin_t"])
def test_every_weight_that_is_trained_has_a_share_in_the_vectors(models: Path, store: Store, kind: str) -> None:
    found, cells = built(encoder(models, kind, trainable=True), store, columns(2))
    found.train()
    found(cells).sum().backward()
    trained = [name for name, weight in found.module.named_parameters() if weight.requires_grad]
    assert len(trained) > 10
    assert all(found.module.get_parameter(name).grad is not None for name in trained)
    empty, _ = built(encoder(models, kind, trainable=True), store, columns(2), weights=False)
    assert [name for name, weight in empty.module.named_parameters() if weight.requires_grad] == trained
    assert all(weight.is_meta for weight in (*empty.module.parameters(), *empty.module.buffers()))


@pytest.mark.parametrize(
    ("kind", "how", "after"),
    [
        ("vit", "pooler", {"layernorm", "pooler"}),
        ("dinov2", "cls", {"layernorm"}),
        ("clip", "pooler", {"post_layernorm"}),
        ("siglip", "pooler", {"post_layernorm", "head"}),
        ("convnext", "pooler", {"layernorm"}),
    ],
)
def test_what_comes_after_the_last_blocks_is_trained_with_them(
    models: Path, store: Store, kind: str, how: str, after: set[str]
) -> None:
    found, _ = built(encoder(models, kind, trainable_layers=1, reduce_output=how), store, columns(1))
    backbone = cast("OneVector", found.module).backbone
    last = {id(each) for each in blocks(backbone)[-1].parameters()}
    trained = {name: each for name, each in backbone.named_parameters() if each.requires_grad}
    assert {name.partition(".")[0] for name, each in trained.items() if id(each) not in last} == after
    assert last <= {id(each) for each in trained.values()}


def test_an_adapter_on_layers_of_which_the_model_only_takes_the_weights_is_refused(models: Path, store: Store) -> None:
    adapter = {"type": "lora", "target_modules": ["qkv"]}
    with pytest.raises(ConfigError, match=r"adapter\.target_modules: features\.1\.0\.attn\.qkv cannot be adapted"):
        built(encoder(models, "swin_t", adapter=adapter), store, columns(1), weights=False)
    # left to choose, it takes others
    found, _ = built(encoder(models, "swin_t", adapter="lora"), store, columns(1), weights=False)
    adapted = [name for name, _ in found.module.named_parameters() if "lora_" in name]
    assert adapted
    assert not any("attn" in name for name in adapted)


def test_batch_normalisation_keeps_the_statistics_of_its_weights(models: Path, store: Store) -> None:
    found, cells = built(encoder(models, "resnet18", trainable=True), store, columns(4))
    before = {name: buffer.clone() for name, buffer in found.module.named_buffers()}
    found.train()
    trained = found(cells)
    assert all(torch.equal(buffer, before[name]) for name, buffer in found.module.named_buffers())
    found.eval()
    assert torch.allclose(found(cells), trained, atol=1e-5)
    assert found.module.get_parameter("backbone.bn1.weight").requires_grad


def test_pictures_that_cannot_be_decoded_are_skipped_and_told(tmp_path: Path, models: Path, store: Store) -> None:
    data = columns(18)
    data["picture"][3] = b"no picture"
    data["picture"][7] = data["picture"][6][:200]
    run = train(
        live.config(image_input(encoder(models, "vit", trainable=True)), trainer={"epochs": 1}),
        data,
        store,
        output=tmp_path / "run",
    )
    assert run.skipped == 2
    assert [cell.row for cell in run.skipped_cells] == [3, 7]
    assert run.dropped == {"picture: skipped": 2}
    frozen = train(
        live.config(image_input(encoder(models, "vit")), trainer={"epochs": 1}), data, store, output=tmp_path / "frozen"
    )
    assert [(cell.row, cell.why) for cell in run.skipped_cells] == [
        (cell.row, cell.why) for cell in frozen.skipped_cells
    ]


def test_data_of_which_no_picture_can_be_decoded_names_the_first(tmp_path: Path, models: Path, store: Store) -> None:
    data = columns(6)
    data["picture"] = [b"no picture"] * 6
    config = live.config(image_input(encoder(models, "vit", trainable=True)))
    with pytest.raises(
        DataError, match=r"leaves 0 rows for train.*first .* skipped: .*column 'picture', data row 0 .*: .+"
    ):
        train(config, data, store, output=tmp_path / "run")


@pytest.mark.parametrize("strategy", ["indicator", "drop_row", "bfill", "ffill"])
def test_missing_pictures_are_filled_in_the_loop_as_from_the_store(
    tmp_path: Path, models: Path, store: Store, strategy: str
) -> None:
    data = columns(18)
    for row in (0, 5, 6, 17):
        data["picture"][row] = None
    runs = [
        train(
            live.config(image_input(encoder(models, "vit"), in_loop=in_loop, missing_value_strategy=strategy)),
            data,
            store,
            output=tmp_path / f"live-{in_loop}",
        )
        for in_loop in (False, True)
    ]
    live.assert_same_losses(*runs)


def test_the_most_frequent_picture_is_not_filled_in_the_loop(models: Path, store: Store, tmp_path: Path) -> None:
    made = image_input(encoder(models, "vit", trainable=True), missing_value_strategy="fill_with_mode")
    with pytest.raises(ConfigError, match="use indicator, drop_row, bfill or ffill"):
        train(live.config(made), columns(6), store, output=tmp_path / "run")


def test_equal_pictures_are_kept_once_and_many_lie_in_a_file_without_a_name(
    models: Path, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = columns(9)
    data["picture"] = data["picture"][:6] * 3
    data = {"picture": data["picture"]}
    made = encoder(models, "vit", trainable=True)
    config = load_config(live.config(image_input(made)))
    (feature,) = config.live
    state = start(feature, store)
    whole = pictures.read(feature, state, open_dataset(data), None).cells  # type: ignore[arg-type]
    assert isinstance(whole, PixelCells)
    assert sum(map(len, whole.blocks)) == 1 + 6  # and the black one
    monkeypatch.setattr(pictures, "_BLOCK", 2 * 32 * 32 * 3)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    filed = pictures.read(feature, state, open_dataset(data), 2 * 32 * 32 * 3).cells  # type: ignore[arg-type]
    assert isinstance(filed, PixelCells)
    assert [len(block) for block in filed.blocks] == [2, 2, 2, 1]
    assert [isinstance(block, np.memmap) for block in filed.blocks] == [False, True, True, True]
    places = np.array([17, 0, 3, 3])
    assert np.array_equal(filed.take(places).pixels(), whole.take(places).pixels())
    assert np.array_equal(filed.pixels(), whole.pixels())
    assert [name for name, _ in filed.parts()] == ["pictures", "present"]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(filed.parts(), whole.parts(), strict=True))
    assert not list(tmp_path.glob("tmp*"))


def test_a_full_disk_under_the_pictures_is_told(models: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(live.config(image_input(encoder(models, "vit", trainable=True))))
    (feature,) = config.live

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures.os, "posix_fallocate", full)
    monkeypatch.setattr(pictures, "_BLOCK", 32 * 32 * 3)
    with pytest.raises(UsageError, match=r"no room in .* \(No space left on device\).*set TMPDIR"):
        pictures.read(feature, start(feature, store), open_dataset({"picture": columns(3)["picture"]}), 1)  # type: ignore[arg-type]


def test_pictures_from_a_folder_are_told_by_their_files(models: Path, store: Store, tmp_path: Path) -> None:
    for topic in COLOURS:
        for row in range(4):
            path = tmp_path / "photos" / topic / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(row, topic))
    (tmp_path / "photos" / "card" / "1.png").write_bytes(b"broken")
    config = live.config({**image_input(encoder(models, "vit", adapter="lora")), "column": "image"})
    config["output_features"] = [{"name": "label", "type": "category"}]
    run = train(config, tmp_path / "photos", store, output=tmp_path / "run")
    assert len(run.skipped_cells) == 1
    assert "card/1.png" in run.skipped_cells[0].why


def test_a_cached_text_a_lora_text_and_a_trained_image_encoder_are_one_model(
    tmp_path: Path, models: Path, store: Store
) -> None:
    directory = live.saved(models)
    data = columns(24)
    run = train(
        live.config(
            live.text_input(directory, name="cached", column="title"),
            live.text_input(directory, name="adapted", adapter="lora"),
            image_input(encoder(models, "vit", trainable=True)),
            {"name": "wait", "type": "number"},
        ),
        data,
        store,
        output=tmp_path / "run",
    )
    assert run.encoded == len(set(data["title"]))
    losses = [loss for _, split, loss in live.losses(run) if split == "train"]
    assert losses[-1] < losses[0]
    assert predict(run.path, data, store).predicted.all()
    digest = hashlib.sha256((directory / "model.safetensors").read_bytes()).digest()
    train(live.config(live.text_input(directory, trainable=True)), data, store, output=tmp_path / "other")
    assert hashlib.sha256((directory / "model.safetensors").read_bytes()).digest() == digest
