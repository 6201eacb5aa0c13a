"""What a dry run says of memory is what a run has: of weights and optimizer state to the byte, of activations within a quarter or so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cachestore.encoders import precision
from cachestore.store import Store, open_store
from tests.training import live
from tests.training import test_live_images as images
from trainer import load_config
from trainer.assemble import build_model
from trainer.estimate import Estimate, estimate
from trainer.events import Clock
from trainer.fitting import build_optimizer
from trainer.live.encoder import LiveEncoder
from trainer.live.inputs import read_live
from trainer.precision import autocast
from trainer.prepare import prepare
from trainer.schema import Config
from trainer.strategies import trained_of

ROWS = live.columns(live.texts(60))
FACTOR = 1.5  # of activations; most families are exact


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


def saved_for_backward(encoder: LiveEncoder, batch: dict[str, Tensor], mixed_precision: bool) -> int:
    """Bytes that autograd keeps of a real forward pass, beside weights."""
    weights = {parameter.data_ptr() for parameter in encoder.parameters()}
    kept: dict[int, int] = {}
    held: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        autocast(torch.device("cpu"), mixed_precision),
    ):
        encoder.module(**batch)
    return sum(kept.values())


def tried(config: Config, store: Store) -> tuple[Estimate, int, int, int]:
    """The estimate, and of the real model: bytes of weights, of optimizer state, and of what a forward pass keeps."""
    found = estimate(config, ROWS, store)
    prepared = prepare(config, {"train": ROWS}, store, Clock(None))
    model = build_model(config, prepared.states)
    (name,) = model.live
    encoder = model.encoder(name)
    assert isinstance(encoder, LiveEncoder)
    column = read_live(config, prepared.opened["train"], store)[name]
    longest = column.cells.take(column.cells.lengths().argsort()[-1:])
    batch = {key: tensor.expand(8, *tensor.shape[1:]) for key, tensor in encoder.tensors(longest).items()}
    optimizer = build_optimizer(config, trained_of(model))
    state = sum(tensor.numel() * tensor.element_size() for tensor in optimizer.state_dict().values())
    weights = sum(each.numel() * each.element_size() for each in (*model.parameters(), *model.buffers()))
    return found, weights, state, saved_for_backward(encoder, batch, config.trainer.use_mixed_precision)


def made(models: Path, family: str, trainer: dict[str, Any] | None = None, **settings: Any) -> Config:
    split = {"split": {"type": "random", "probabilities": [1.0, 0.0, 0.0]}}
    return load_config(
        live.config(live.text_input(live.saved(models, family), **settings), trainer=trainer or {}, preprocessing=split)
    )


@pytest.mark.parametrize(
    ("settings", "mixed_precision"),
    [({"trainable": True}, False), ({"adapter": "lora"}, True)],
    ids=["full in float32", "lora in bfloat16"],
)
@pytest.mark.parametrize("family", live.FAMILIES)
def test_the_memory_of_one_process_is_that_of_a_real_step(
    family: str, settings: dict[str, Any], mixed_precision: bool, models: Path, store: Store
) -> None:
    config = made(models, family, {"use_mixed_precision": mixed_precision}, **settings)
    found, weights, state, activations = tried(config, store)
    one = found.memory[0]
    assert (one.strategy, one.workers) == ("one process", 1)
    assert (one.weights, one.optimizer) == (weights, state)
    assert activations / FACTOR < one.activations < activations * FACTOR


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop", "adafactor", "muon"])
def test_the_state_of_every_optimizer_is_counted(optimizer: str, models: Path, store: Store) -> None:
    config = made(models, "bert", {"optimizer": optimizer}, trainable_layers=1)
    found, _, state, _ = tried(config, store)
    assert found.memory[0].optimizer == state
    (encoder,) = found.encoders
    assert 0 < encoder.trained < encoder.parameters


@pytest.mark.parametrize(
    "adapter", ["adalora", "ia3", "vera", "loha", "lokr", "oft", "prompt_tuning", "adaption_prompt"]
)
def test_every_adapter_is_estimated(adapter: str, models: Path, store: Store) -> None:
    settings = {"type": "oft", "oft_block_size": 8} if adapter == "oft" else adapter
    found = estimate(made(models, "llama", adapter=settings), ROWS, store)
    (encoder,) = found.encoders
    assert 0 < encoder.trained < encoder.parameters
    assert encoder.activations


def test_checkpointing_keeps_less_and_strategies_divide(models: Path, store: Store) -> None:
    plain = estimate(made(models, "bert", trainable=True), ROWS, store)
    checkpointed = estimate(made(models, "bert", {"enable_gradient_checkpointing": True}, trainable=True), ROWS, store)
    assert checkpointed.memory[0].activations < plain.memory[0].activations
    one, ddp, fsdp = plain.memory
    assert (ddp.workers, fsdp.workers) == (2, 2)
    assert ddp.weights == one.weights
    assert ddp.activations * 2 == pytest.approx(one.activations, abs=1)
    assert 0.5 * one.optimizer <= fsdp.optimizer < 0.6 * one.optimizer
    assert 0.5 * one.weights <= fsdp.weights < 0.6 * one.weights


def test_rows_tokens_and_steps_are_those_of_the_run(models: Path, store: Store) -> None:
    config = load_config(
        live.config(
            live.text_input(live.saved(models), adapter="lora"),
            {"name": "title", "type": "text", "encoder": "hashing"},
            {"name": "wait", "type": "number"},
            trainer={"gradient_accumulation_steps": 2, "strategy": "fsdp", "num_workers": 4},
        )
    )
    found = estimate(config, ROWS, store)
    assert not list((store.root / "shards").rglob("*.arrow"))  # nothing is encoded
    prepared = prepare(config.model_copy(update={"preprocessing": found_split()}), {"train": ROWS}, store, Clock(None))
    assert found.rows == prepared.batches["train"].rows == 42
    assert (found.at_once, found.step_rows, found.steps_per_epoch, found.steps) == (8, 16, 3, 9)
    text, title = found.encoders
    assert (text.mode, text.model, title.mode, title.model) == ("adapter", "bert", "cached", "hashing")
    assert text.tokens is not None
    assert text.longest is not None
    assert text.longest <= text.tokens <= 42 * text.longest
    assert (found.chosen, [each.workers for each in found.memory]) == ("fsdp", [1, 4, 4])


def found_split() -> Any:
    return load_config(live.config({"name": "wait", "type": "number"}, preprocessing={"split": "random"})).preprocessing


def test_weights_are_not_read(store: Store, tmp_path: Path) -> None:
    place = live.tiny_models.save(tmp_path / "model", "bert")
    weights = place / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])  # which no loading survives
    assert estimate(
        made(tmp_path, "bert", pretrained_model_name_or_path=str(place), trainable=True), ROWS, store
    ).memory


def test_a_precision_is_not_measured(models: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*_: object) -> None:
        pytest.fail("weights were read")

    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "_calibrate", measured)
    for in_the_loop in (True, False):
        assert estimate(made(models, "bert", live=in_the_loop, precision="auto"), ROWS, store).memory


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("vit", {"trainable": True}), ("resnet18", {"trainable": True}), ("resnet18", {"adapter": "lora"})],
    ids=["vit", "resnet18", "resnet18 with lora"],
)
def test_encoders_of_images_are_estimated(kind: str, settings: dict[str, Any], models: Path, store: Store) -> None:
    data = images.columns(12)
    made_input = images.image_input(images.encoder(models, kind, **settings))
    split = {"split": {"type": "random", "probabilities": [1.0, 0.0, 0.0]}}
    config = load_config(live.config(made_input, preprocessing=split))
    found = estimate(config, data, store)
    (needs,) = found.encoders
    assert needs.tokens is None
    assert needs.trained <= needs.parameters
    encoder, cells = images.built(images.encoder(models, kind, **settings), store, data)
    batch = encoder.tensors(cells.take(np.zeros(8, np.int64)))
    real = saved_for_backward(encoder, batch, False)
    assert real / FACTOR < found.memory[0].activations < real * FACTOR
