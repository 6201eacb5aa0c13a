from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cachestore.errors import ConfigError
from tests.training.heads import classifier
from tests.training.test_loop import kinds, run
from tests.training.test_run import config
from trainer import load_config
from trainer.fitting import _batch_sizes
from trainer.precision import Scaler


def weights(**changes: Any) -> torch.Tensor:
    model = classifier()
    run(model, kinds(50), **changes)
    return torch.cat([tensor.flatten() for tensor in model.state_dict().values()])


def test_gradients_of_several_batches_make_the_step_of_a_large_one() -> None:
    torch.testing.assert_close(weights(batch_size=8, accumulation=2), weights(batch_size=16))


def test_train_steps_end_training_within_an_epoch() -> None:
    fitted, epochs = run(classifier(), kinds(64), epochs=100, steps=6)  # four steps an epoch
    assert fitted.epochs == epochs[-1].epochs == 2
    _, whole = run(classifier(), kinds(64), epochs=2)
    assert epochs[0].metrics == whole[0].metrics
    assert epochs[1].metrics != whole[1].metrics


@pytest.mark.parametrize(
    ("section", "sizes"),
    [
        ({}, (128, 1)),
        ({"max_batch_size": 32}, (32, 1)),
        ({"batch_size": 16, "gradient_accumulation_steps": 4}, (16, 4)),
        ({"effective_batch_size": 64}, (64, 1)),
        ({"effective_batch_size": 64, "batch_size": 16}, (16, 4)),
        ({"effective_batch_size": 64, "gradient_accumulation_steps": 2}, (32, 2)),
    ],
)
def test_two_of_the_three_sizes_give_the_third(section: dict[str, Any], sizes: tuple[int, int]) -> None:
    assert _batch_sizes(load_config({**config(), "trainer": section}).trainer) == sizes


@pytest.mark.parametrize(
    "section",
    [
        {"effective_batch_size": 64, "batch_size": 10},
        {"effective_batch_size": 64, "gradient_accumulation_steps": 3},
        {"effective_batch_size": 64, "batch_size": 16, "gradient_accumulation_steps": 3},
    ],
)
def test_sizes_that_do_not_multiply_are_named(section: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="effective_batch_size"):
        load_config({**config(), "trainer": section})


def test_the_scaler_gives_gradients_back_and_skips_those_that_overflow() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    scaler = Scaler(torch.device("cpu"), scale=1024.0)
    scaler.scaled(parameter.square().sum()).backward()
    assert scaler.unscale([parameter])
    assert torch.equal(parameter.grad, torch.tensor([2.0, 4.0]))  # type: ignore[arg-type]
    parameter.grad = torch.tensor([float("inf"), 1.0])
    assert not scaler.unscale([parameter])
    assert scaler.state_dict()["scale"].item() == 512.0
    again = Scaler(torch.device("cpu"))
    again.load_state_dict(scaler.state_dict())
    assert again.state_dict()["scale"].item() == 512.0
