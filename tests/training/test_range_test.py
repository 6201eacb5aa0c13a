from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from cachestore.errors import ConfigError
from tests.training.heads import classifier
from tests.training.test_loop import SETTINGS, kinds, run
from trainer.optim import Adam, Sgd
from trainer.range_test import range_test
from trainer.strategies.ranks import Ranks
from trainer.strategies.single import Single


@pytest.mark.parametrize("make", [Adam, Sgd])
def test_the_rate_it_finds_trains_well_and_depends_on_the_seed_alone(make: type[Adam] | type[Sgd]) -> None:
    model, train = classifier(), kinds(200, noise=1.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rate = range_test(model, train, make(model.parameters()), SETTINGS)
    assert rate == range_test(model, train, make(model.parameters()), SETTINGS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert 1e-4 < rate < 5
    _, epochs = run(classifier(), train, epochs=10, learning_rate=rate)
    assert epochs[-1].metrics["train"]["kind"]["accuracy"] > 0.8


def test_a_loss_that_never_falls_is_an_error() -> None:
    train = kinds(40)
    train.inputs["text"].zero_()
    train.targets["kind"].zero_()
    model = classifier()
    with torch.no_grad():
        model.decoder("kind").scores.bias.copy_(torch.tensor([200.0, 0.0, 0.0]))  # type: ignore[union-attr, operator]
    with pytest.raises(ConfigError, match="range_test found no rate"):
        range_test(model, train, Adam(model.parameters()), dataclasses.replace(SETTINGS, batch_size=8))


class _Told(Ranks):
    def first(self, value: Any) -> Any:
        return math.inf


class Second(Single):  # type: ignore[misc]  # a process whose first one has lost its way
    ranks = _Told(1, 2)


def test_it_stops_where_the_first_process_does() -> None:
    model = classifier()
    with pytest.raises(ConfigError, match="range_test found no rate"):
        range_test(model, kinds(200), Adam(model.parameters()), SETTINGS, Second())
