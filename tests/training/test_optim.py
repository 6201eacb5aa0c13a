from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from tests.training.heads import classifier
from tests.training.test_loop import SETTINGS, kinds
from trainer.config import load_config
from trainer.fitting import build_optimizer, fit_settings
from trainer.layers import Dropout
from trainer.loop import evaluate, fit
from trainer.optim import Adam, Groups, Optimizer, Schedule, Sgd, auto_learning_rate, functional
from trainer.schema import Config
from trainer.schema.optimizers import Adadelta, StepOptimizer
from trainer.schema.training import TrainerConfig
from trainer.strategies import trained_of

STEPS = 60


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))


def rates() -> list[float]:
    rate = Schedule("cosine", warmup_fraction=0.2).over(STEPS, STEPS, 0.05)
    return [rate(step) for step in range(STEPS)]


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


CASES += [
    (
        "adadelta",
        lambda p: functional.adadelta(p, rho=0.8, eps=1e-5, weight_decay=0.01),
        lambda p: torch.optim.Adadelta(p, rho=0.8, eps=1e-5, weight_decay=0.01),
    ),
    (
        "adafactor",
        lambda p: functional.adafactor(p, beta2_decay=-0.7, eps=(None, 1e-3), d=1.5, weight_decay=0.01),
        lambda p: torch.optim.Adafactor(p, beta2_decay=-0.7, d=1.5, weight_decay=0.01),
    ),
    (
        "adagrad",
        lambda p: functional.adagrad(p, initial_accumulator_value=0.1, lr_decay=0.01, eps=1e-9, weight_decay=0.01),
        lambda p: torch.optim.Adagrad(
            p, initial_accumulator_value=0.1, lr_decay=0.01, eps=1e-9, weight_decay=0.01, fused=False, foreach=False
        ),
    ),
    (
        "adamax",
        lambda p: functional.adamax(p, betas=(0.8, 0.9), eps=1e-7, weight_decay=0.01),
        lambda p: torch.optim.Adamax(p, betas=(0.8, 0.9), eps=1e-7, weight_decay=0.01),
    ),
    (
        "nadam",
        lambda p: functional.nadam(p, betas=(0.8, 0.9), eps=1e-7, weight_decay=0.01, momentum_decay=0.01),
        lambda p: torch.optim.NAdam(p, betas=(0.8, 0.9), eps=1e-7, weight_decay=0.01, momentum_decay=0.01),
    ),
    (
        "radam",
        lambda p: functional.radam(p, betas=(0.8, 0.9), eps=1e-7, weight_decay=0.01),
        lambda p: torch.optim.RAdam(p, betas=(0.8, 0.9), eps=1e-7, weight_decay=0.01),
    ),
    (
        "rmsprop",
        lambda p: functional.rmsprop(p, alpha=0.9, momentum=0.0, centered=False, eps=1e-7, weight_decay=0.01),
        lambda p: torch.optim.RMSprop(p, alpha=0.9, eps=1e-7, weight_decay=0.01),
    ),
    (
        "rmsprop with everything set",
        lambda p: functional.rmsprop(p, alpha=0.9, momentum=0.5, centered=True, eps=1e-7, weight_decay=0.01),
        lambda p: torch.optim.RMSprop(p, alpha=0.9, momentum=0.5, centered=True, eps=1e-7, weight_decay=0.01),
    ),
]


def muon(parameters: Any) -> Optimizer:
    return functional.Muon(
        parameters,
        momentum=0.9,
        nesterov=True,
        ns_steps=5,
        adjust_lr_fn="match_rms_adamw",
        betas=(0.9, 0.99),
        eps=1e-8,
        weight_decay=0.01,
    )


def test_muon_moves_matrices_as_torchs_class_does_and_biases_as_adamw() -> None:
    mine, reference = network(), network()
    found = train(mine, muon(mine.parameters()).step)
    matrices = torch.optim.Muon(
        [each for each in reference.parameters() if each.dim() == 2],
        momentum=0.9,
        adjust_lr_fn="match_rms_adamw",
        weight_decay=0.01,
    )
    biases = torch.optim.AdamW(
        [each for each in reference.parameters() if each.dim() == 1], betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )

    def step(rate: float) -> None:
        step_of(matrices)(rate)
        step_of(biases)(rate)

    expected = train(reference, step)
    assert all(torch.equal(left, right) for left, right in zip(found, expected, strict=True))


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


@pytest.mark.parametrize("make", [*(case[1] for case in CASES), muon], ids=[*(case[0] for case in CASES), "muon"])
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


@pytest.mark.parametrize("make", [*(case[1] for case in CASES), muon], ids=[*(case[0] for case in CASES), "muon"])
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


@pytest.mark.parametrize("settings", get_args(StepOptimizer), ids=lambda settings: settings.__name__)
def test_every_optimizer_of_the_config_trains_with_its_defaults(settings: Any) -> None:
    model, train = classifier(), kinds(100)
    chosen = Config.model_construct(trainer=TrainerConfig(optimizer=settings()))
    before = evaluate(model, train)["kind"]["loss"]
    run = dataclasses.replace(SETTINGS, epochs=10, learning_rate=1.0 if settings is Adadelta else 0.05)
    fit(model, train, None, optimizer=build_optimizer(chosen, trained_of(model)), settings=run, on_epoch=lambda _: None)
    assert evaluate(model, train)["kind"]["loss"] < 0.8 * before


def test_frozen_parameters_are_left_out() -> None:
    model = network()
    model[0].requires_grad_(False)
    assert len(Adam(model.parameters()).parameters) == len(Sgd(model.parameters()).parameters) == 2


def test_the_auto_rate_falls_with_the_magnitude_of_the_inputs_and_with_depth() -> None:
    assert auto_learning_rate(15.5, hidden=False) == pytest.approx(0.0097, rel=0.01)
    assert auto_learning_rate(310.0, hidden=False) == pytest.approx(0.0097 / 20, rel=0.01)
    assert auto_learning_rate(15.5, hidden=True) < auto_learning_rate(15.5, hidden=False)
    assert auto_learning_rate(0.0, hidden=False) == 3e-2
    assert auto_learning_rate(1e9, hidden=True) == 1e-4


def test_the_automatic_learning_rate_is_not_one_of_chance() -> None:
    """Its inputs may pass a module that drops some of them while it trains."""
    model = classifier()
    model.encoders[next(iter(model.encoders))] = Dropout(0.5)
    given = {
        "input_features": [{"name": "text", "type": "text", "encoder": "hashing"}],
        "output_features": [{"name": "kind", "type": "category"}],
        "trainer": {"learning_rate": "auto"},
    }
    before = torch.get_rng_state()
    rates = {fit_settings(load_config(given), model, kinds(40)).learning_rate for _ in range(3)}
    assert len(rates) == 1
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("make", [Adam, lambda parameters: Sgd(parameters, momentum=0.9)])
def test_groups_step_as_optimizers_of_their_own_would_and_go_on_from_their_state(make: Any) -> None:
    def parameters() -> list[nn.Parameter]:
        draw = torch.Generator().manual_seed(0)
        return [nn.Parameter(torch.randn(shape, generator=draw)) for shape in ((3, 2), (2,), (4, 2))]

    def step(optimizers: Sequence[Any], rates: Sequence[float], over: list[nn.Parameter], seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        for parameter in over:
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.step(rate)

    apart, together, again = parameters(), parameters(), parameters()
    own = [make(apart[:1]), make(apart[1:])]
    groups = Groups(together, [(make(together[:1]), 0.5), (make(together[1:]), 1.0)])
    for seed in range(3):
        step(own, (0.05, 0.1), apart, seed)
        step([groups], (0.1,), together, seed)
    assert groups.parameters == together
    state = {name: tensor.clone() for name, tensor in groups.state_dict().items()}
    # names are positions among all, so that other groups of the same parameters may go on from it
    resumed = Groups(again, [(make(again[1:2]), 1.0), (make([again[0], again[2]]), 1.0)])
    with torch.no_grad():
        for mine, other in zip(again, together, strict=True):
            mine.copy_(other)
    resumed.load_state_dict(state)
    for name, tensor in resumed.state_dict().items():
        assert torch.equal(tensor, state[name])
    step(own, (0.1, 0.1), apart, 9)
    step([resumed], (0.1,), again, 9)
    for mine, other in zip(again, apart, strict=True):
        torch.testing.assert_close(mine, other)
