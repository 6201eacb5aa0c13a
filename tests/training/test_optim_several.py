from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.optim import Adam, Sgd
from trainer.optim.several import SeveralAdams, joinable


@pytest.mark.parametrize("amsgrad", [False, True])
def test_adams_that_step_together_do_what_each_does_alone(amsgrad: bool) -> None:
    torch.manual_seed(0)
    start = [torch.randn(3, 4), torch.randn(3)]
    settings = [{"decoupled": False}, {"decoupled": True, "weight_decay": 0.1}, {"betas": (0.5, 0.9), "eps": 1e-4}]

    def optimizers() -> list[Adam]:
        return [Adam([nn.Parameter(t.clone()) for t in start], amsgrad=amsgrad, **each) for each in settings]  # type: ignore[arg-type]

    alone, together = optimizers(), optimizers()
    for part in range(2):  # the second of which goes on where the first stood
        several = SeveralAdams(together)
        for step in range(3):
            rates = [0.1 * (part + 1), 0.01, 0.001 * (step + 1)]
            gradients = [[torch.randn_like(t) for t in start] for _ in settings]
            for group in (alone, together):
                for optimizer, own in zip(group, gradients, strict=True):
                    for parameter, gradient in zip(optimizer.parameters, own, strict=True):
                        parameter.grad = gradient.clone()
            for optimizer, rate in zip(alone, rates, strict=True):
                optimizer.step(rate)
            several.step(rates)
    for one, other in zip(alone, together, strict=True):
        assert all(parameter.grad is None for parameter in other.parameters)
        assert all(torch.equal(a, b) for a, b in zip(one.parameters, other.parameters, strict=True))
        expected = one.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in other.state_dict().items())


def test_only_adams_join() -> None:
    parameters = [nn.Parameter(torch.ones(2))]
    assert joinable(Adam(parameters))
    assert not joinable(Sgd(parameters))


def test_an_adam_that_stepped_with_others_goes_on_alone() -> None:
    torch.manual_seed(0)
    one, other, lone = (nn.Linear(3, 2) for _ in range(3))
    lone.load_state_dict(one.state_dict())
    first, second, alone = (Adam(model.parameters()) for model in (one, other, lone))
    together = SeveralAdams([first, second])
    for step in range(4):
        for model in (one, other, lone):
            model(torch.ones(5, 3)).square().mean().backward()
        if step < 2:
            together.step([0.1, 0.2])
        else:
            first.step(0.1)
        alone.step(0.1)
    assert torch.equal(one.weight, lone.weight)
