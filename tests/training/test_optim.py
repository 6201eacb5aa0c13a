from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.optim import Adam, Optimizer, Sgd, auto_learning_rate, learning_rate_at

STEPS = 60


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))


def rates() -> list[float]:
    return [learning_rate_at(step, STEPS, 0.05, warmup_fraction=0.2, decay="cosine") for step in range(STEPS)]


def batches() -> list[Tensor]:
    draw = torch.Generator().manual_seed(5)
    return [torch.randn(16, 5, generator=draw) for _ in range(STEPS)]


def train(model: nn.Module, step: Callable[[float], None]) -> list[Tensor]:
    for batch, rate in zip(batches(), rates(), strict=True):
        model(batch).square().mean().backward()
        step(rate)
    return [parameter.detach() for parameter in model.parameters()]


def step_of(optimizer: torch.optim.Optimizer) -> Callable[[float], None]:
    def step(rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()

    return step


CASES: list[tuple[str, Callable[[Any], Optimizer], Callable[[Any], torch.optim.Optimizer]]] = [
    ("adam", Adam, lambda p: torch.optim.Adam(p, fused=True)),
    (
        "adam with everything set",
        lambda p: Adam(p, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, amsgrad=True),
        lambda p: torch.optim.Adam(p, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, amsgrad=True, fused=True),
    ),
    (
        "adamw",
        lambda p: Adam(p, weight_decay=0.1, decoupled=True),
        lambda p: torch.optim.AdamW(p, weight_decay=0.1, fused=True),
    ),
    ("sgd", Sgd, lambda p: torch.optim.SGD(p, lr=0.1, fused=True)),
    (
        "sgd with momentum",
        lambda p: Sgd(p, momentum=0.9, weight_decay=0.01, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True, fused=True),
    ),
    (
        "sgd with dampening",
        lambda p: Sgd(p, momentum=0.9, dampening=0.5),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5, fused=True),
    ),
]


@pytest.mark.parametrize(("ours", "theirs"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_weights_are_those_of_torchs_class_bit_for_bit(
    ours: Callable[[Any], Optimizer], theirs: Callable[[Any], torch.optim.Optimizer]
) -> None:
    mine, reference = network(), network()
    found = train(mine, ours(mine.parameters()).step)
    expected = train(reference, step_of(theirs(reference.parameters())))
    assert not torch.equal(found[0], next(network().parameters()))
    for left, right in zip(found, expected, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("make", [case[1] for case in CASES], ids=[case[0] for case in CASES])
def test_the_state_continues_where_it_stood(make: Callable[[Any], Optimizer]) -> None:
    whole, halves = network(), network()
    whole_optimizer, first = make(whole.parameters()), make(halves.parameters())
    for i, batch in enumerate(batches()):
        for model, optimizer in ((whole, whole_optimizer), (halves, first)):
            model(batch).square().mean().backward()
            optimizer.step(0.05)
        if i == STEPS // 2:
            state = {name: tensor.clone() for name, tensor in first.state_dict().items()}
            first = make(halves.parameters())
            first.load_state_dict(state)
    for left, right in zip(whole.parameters(), halves.parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("make", [case[1] for case in CASES], ids=[case[0] for case in CASES])
def test_a_parameter_without_a_gradient_stays(make: Callable[[Any], Optimizer]) -> None:
    model, late = network(), nn.Parameter(torch.ones(3))
    optimizer = make([*model.parameters(), late])
    model(batches()[0]).square().mean().backward()
    optimizer.step(0.1)
    assert torch.equal(late, torch.ones(3))
    assert all(parameter.grad is None for parameter in model.parameters())
    (model(batches()[1]).square().mean() + late.sum()).backward()
    optimizer.step(0.1)
    assert not torch.equal(late, torch.ones(3))


def test_frozen_parameters_are_left_out() -> None:
    model = network()
    model[0].requires_grad_(False)
    assert len(Adam(model.parameters()).parameters) == len(Sgd(model.parameters()).parameters) == 2


def test_warm_up_is_linear_from_zero_and_counts_steps() -> None:
    found = [learning_rate_at(step, 100, 1.0, warmup_fraction=0.1) for step in range(12)]
    assert found == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0])


def test_linear_decay_begins_after_the_warm_up_and_would_end_at_zero() -> None:
    found = [learning_rate_at(step, 10, 1.0, warmup_fraction=0.2, decay="linear") for step in range(10)]
    assert found == pytest.approx([0.0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])


def test_cosine_decay_is_half_a_period() -> None:
    found = [learning_rate_at(step, 8, 2.0, decay="cosine") for step in range(8)]
    assert found[0] == 2.0
    assert found[4] == pytest.approx(1.0)
    assert all(later < earlier for earlier, later in pairwise(found))
    assert 0 < found[-1] < 0.1


def test_without_warm_up_or_decay_the_rate_is_constant() -> None:
    assert {learning_rate_at(step, 7, 0.3) for step in range(7)} == {0.3}


def test_a_run_that_is_all_warm_up_never_decays() -> None:
    assert learning_rate_at(3, 4, 1.0, warmup_fraction=1.0, decay="linear") == pytest.approx(0.75)


def test_the_auto_rate_falls_with_the_magnitude_of_the_inputs_and_with_depth() -> None:
    assert auto_learning_rate(15.5, hidden=False) == pytest.approx(0.0097, rel=0.01)
    assert auto_learning_rate(310.0, hidden=False) == pytest.approx(0.0097 / 20, rel=0.01)
    assert auto_learning_rate(15.5, hidden=True) < auto_learning_rate(15.5, hidden=False)
    assert auto_learning_rate(0.0, hidden=False) == 3e-2
    assert auto_learning_rate(1e9, hidden=True) == 1e-4
