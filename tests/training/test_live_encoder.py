"""The module of an encoder in the loop: chunks, missing cells, its own dropout, and activations computed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cachestore.dataset import open_dataset
from cachestore.errors import ConfigError
from cachestore.store import open_store
from tests.store import tiny_models
from tests.training import live
from trainer import load_config
from trainer.live.build import live_encoder
from trainer.live.cells import TextCells
from trainer.live.encoder import LiveEncoder
from trainer.live.inputs import read_live

DATA = live.columns(live.texts(30))


def made(
    tmp_path: Path, directory: Path, trainer: dict[str, Any] | None = None, *, weights: bool = True, **settings: Any
) -> tuple[LiveEncoder, TextCells]:
    """The encoder of a config in train mode, and the cells of DATA."""
    config = load_config(live.config(live.text_input(directory, **settings), trainer=trainer or {}))
    with open_store(tmp_path / "store") as store:
        column = read_live(config, open_dataset(DATA), store)["text"]
    assert isinstance(column.cells, TextCells)
    torch.manual_seed(0)
    encoder = live_encoder(config.live[0], column.state, config, weights=weights)
    return encoder.train(), column.cells


@pytest.mark.parametrize("kind", tiny_models._SIZES)
def test_vectors_of_every_kind_of_model_are_those_of_the_store(tmp_path: Path, models: Path, kind: str) -> None:
    directory = models / f"any-{kind}"
    tiny_models.save(directory, kind)
    encoder, cells = made(tmp_path, directory, live=True, prompt="say: ")
    settings = {**live.encoder(directory), "prompt": "say: "}
    with open_store(tmp_path / "store") as store:
        expected = store.embed(DATA["text"], settings)
    np.testing.assert_allclose(encoder(cells).numpy(), expected, rtol=0, atol=2e-5)


def test_what_a_sentence_transformers_model_puts_on_its_pooling_is_in_the_loop(tmp_path: Path) -> None:
    directory = live.with_layers_after_pooling(tiny_models.save(tmp_path / "model", **live.NO_DROPOUT["bert"]))
    encoder, cells = made(tmp_path, directory, live=True)
    with open_store(tmp_path / "store") as store:
        expected = store.embed(DATA["text"], live.encoder(directory))
    assert expected.shape[1] == encoder.dim
    np.testing.assert_allclose(encoder(cells).numpy(), expected, rtol=0, atol=2e-5)
    trained, _ = made(tmp_path, directory, trainable=True, trainable_layers=1)
    assert any(name.startswith("module.head.") for name, weight in trained.named_parameters() if weight.requires_grad)
    adapted, _ = made(tmp_path, directory, adapter="lora")
    assert all("lora_" in name for name, weight in adapted.named_parameters() if weight.requires_grad)


def test_in_chunks_by_length_vectors_are_those_of_one_batch(tmp_path: Path, models: Path) -> None:
    encoder, cells = made(tmp_path, live.saved(models), trainable=True)
    whole = encoder(cells)
    assert whole.requires_grad
    encoder.batch_tokens = 40
    for chunked in (encoder.eval()(cells).detach(), torch.no_grad()(encoder.train())(cells)):
        torch.testing.assert_close(chunked, whole.detach(), rtol=0, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(cells), whole.detach(), rtol=0, atol=1e-5)


def test_a_missing_cell_is_a_zero_vector_that_moves_no_weight(tmp_path: Path, models: Path) -> None:
    encoder, cells = made(tmp_path, live.saved(models), trainable=True)
    present = np.arange(len(cells)) % 2 == 0
    vectors = encoder(TextCells(cells.tokens, cells.starts, cells.stops, present))
    assert (vectors[~present] == 0).all()
    assert (vectors[present] != 0).any(dim=1).all()
    vectors[~present].sum().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in encoder.parameters())


def test_a_frozen_encoder_never_drops_anything_and_takes_no_gradient(tmp_path: Path) -> None:
    directory = tiny_models.save(tmp_path / "model", hidden_dropout_prob=0.5)
    encoder, cells = made(tmp_path, directory, live=True)
    first, second = encoder(cells), encoder(cells)
    assert not first.requires_grad
    assert torch.equal(first, second)
    assert torch.equal(first, encoder.eval()(cells))


def test_its_dropout_leaves_the_draws_of_the_rest_alone_and_follows_from_the_global_generator(tmp_path: Path) -> None:
    directory = tiny_models.save(tmp_path / "model", hidden_dropout_prob=0.5)
    encoder, cells = made(tmp_path, directory, trainable=True)

    def drawn(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(3)
        return encoder(cells.take(np.arange(rows))).detach(), torch.rand(4)

    (few, after_few), (many, after_many) = drawn(3), drawn(30)
    assert torch.equal(after_few, after_many)
    assert torch.equal(drawn(30)[0], many)
    assert not torch.equal(encoder(cells).detach(), many)
    assert few.shape == (3, 16)


def test_what_is_computed_again_drops_what_was_dropped(tmp_path: Path) -> None:
    directory = tiny_models.save(tmp_path / "model", hidden_dropout_prob=0.5)
    found = []
    for again in (False, True):
        encoder, cells = made(tmp_path, directory, {"enable_gradient_checkpointing": again}, trainable=True)
        torch.manual_seed(1)
        encoder(cells).square().sum().backward()
        found.append([weight.grad for weight in encoder.parameters() if weight.grad is not None])
    for gradient, same in zip(*found, strict=True):
        torch.testing.assert_close(same, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", live.FAMILIES)
@pytest.mark.parametrize("tuning", [{"trainable": True}, {"adapter": "lora"}], ids=["full", "lora"])
def test_activations_computed_again_give_the_same_gradients(
    tmp_path: Path, models: Path, kind: str, tuning: dict[str, Any]
) -> None:
    found = []
    for again in (False, True):
        trainer = {"enable_gradient_checkpointing": again}
        adapted = {"adapter": {"type": "lora", "dropout": 0.0}} if "adapter" in tuning else tuning
        encoder, cells = made(tmp_path, live.saved(models, kind), trainer, **adapted)
        torch.manual_seed(1)
        encoder(cells).square().sum().backward()
        found.append({name: weight.grad for name, weight in encoder.named_parameters() if weight.grad is not None})
        assert {name for name, weight in encoder.named_parameters() if weight.requires_grad} == set(found[-1])
    assert found[0]
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_a_model_that_cannot_compute_activations_again_is_told(tmp_path: Path) -> None:
    directory = tiny_models.save(tmp_path / "model", "albert")
    with pytest.raises(ConfigError, match="enable_gradient_checkpointing: models of type 'albert'"):
        made(tmp_path, directory, {"enable_gradient_checkpointing": True}, trainable=True)


def test_without_weights_the_encoder_has_the_same_names_and_sizes_and_reads_no_weights(
    tmp_path: Path, models: Path
) -> None:
    for settings in ({"trainable": True}, {"adapter": "lora"}):
        whole, _ = made(tmp_path, live.saved(models, "llama"), **settings)
        empty, _ = made(tmp_path, live.saved(models, "llama"), weights=False, **settings)
        assert {name: weight.shape for name, weight in empty.named_parameters()} == {
            name: weight.shape for name, weight in whole.named_parameters()
        }
        assert all(weight.is_meta for weight in empty.parameters())
        trained = [{n for n, w in each.named_parameters() if w.requires_grad} for each in (empty, whole)]
        assert trained[0] == trained[1]


def test_the_draws_of_a_new_adapter_leave_those_of_the_rest_alone(tmp_path: Path, models: Path) -> None:
    after = []
    for settings in ({"live": True}, {"adapter": "lora"}, {"trainable": True}):
        made(tmp_path, live.saved(models), **settings)
        after.append(torch.rand(3))
    assert torch.equal(after[0], after[1])
    assert torch.equal(after[0], after[2])
