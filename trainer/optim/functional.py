"""The other optimizers of torch that take one gradient a step: Adadelta, Adafactor, Adagrad, Adamax, Muon, NAdam, RAdam, RMSprop.

As in first_order.py, they are torch's functional forms, whose weights equal those of its classes bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import _adafactor as torch_adafactor
from torch.optim import _muon as torch_muon
from torch.optim import adadelta as torch_adadelta
from torch.optim import adagrad as torch_adagrad
from torch.optim import adamax as torch_adamax
from torch.optim import nadam as torch_nadam
from torch.optim import radam as torch_radam
from torch.optim import rmsprop as torch_rmsprop

from trainer.optim.first_order import Adam

Parameters: TypeAlias = Iterable[nn.Parameter]
State: TypeAlias = dict[str, list[Any]]  # by name, one tensor or None for each parameter
Update: TypeAlias = Callable[[list[Tensor], list[Tensor], State, float], None]

_MUON: Final = (torch_muon.DEFAULT_A, torch_muon.DEFAULT_B, torch_muon.DEFAULT_C)


class Functional:
    """One of torch's functional optimizers with the state it keeps for each parameter."""

    def __init__(
        self,
        parameters: Parameters,
        state: Mapping[str, Callable[[nn.Parameter], Tensor | None]],
        update: Update,
    ) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._state: State = {name: [start(each) for each in self.parameters] for name, start in state.items()}
        self._update = update

    def step(self, learning_rate: float) -> None:
        """Update every parameter that has a gradient, then drop the gradients."""
        rows = [i for i, parameter in enumerate(self.parameters) if parameter.grad is not None]
        gradients = [gradient for parameter in self.parameters if (gradient := parameter.grad) is not None]
        state = {name: [values[i] for i in rows] for name, values in self._state.items()}
        with torch.no_grad():
            self._update([self.parameters[i] for i in rows], gradients, state, learning_rate)
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """The state by its name and the position of its parameter."""
        return {
            f"{name}.{i}": value
            for name, values in self._state.items()
            for i, value in enumerate(values)
            if value is not None
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where the optimizer that gave ``state`` stood."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


def adadelta(parameters: Parameters, *, rho: float, eps: float, weight_decay: float) -> Functional:
    """Zeiler 2012."""

    def update(weights: list[Tensor], gradients: list[Tensor], state: State, rate: float) -> None:
        torch_adadelta.adadelta(
            *(weights, gradients, state["square"], state["change"], state["step"]),
            lr=rate,
            rho=rho,
            eps=eps,
            weight_decay=weight_decay,
            maximize=False,
        )

    return Functional(parameters, {"square": _zeros, "change": _zeros, "step": _count}, update)


def adafactor(
    parameters: Parameters, *, beta2_decay: float, eps: tuple[float | None, float], d: float, weight_decay: float
) -> Functional:
    """Shazeer and Stern 2018."""

    def update(weights: list[Tensor], gradients: list[Tensor], state: State, rate: float) -> None:
        torch_adafactor.adafactor(
            *(weights, gradients, state["row"], state["column"], state["whole"], state["step"]),
            d=d,
            lr=rate,
            beta2_decay=beta2_decay,
            weight_decay=weight_decay,
            eps1=eps[0],  # type: ignore[arg-type]
            eps2=eps[1],
            maximize=False,
        )

    def row(parameter: nn.Parameter) -> Tensor | None:
        return parameter.new_zeros(*parameter.shape[:-1], 1) if parameter.dim() > 1 else None

    def column(parameter: nn.Parameter) -> Tensor | None:
        shape = (*parameter.shape[:-2], 1, parameter.shape[-1])
        return parameter.new_zeros(shape) if parameter.dim() > 1 else None

    def whole(parameter: nn.Parameter) -> Tensor | None:
        return None if parameter.dim() > 1 else torch.zeros_like(parameter)

    return Functional(parameters, {"row": row, "column": column, "whole": whole, "step": _count}, update)


def adagrad(
    parameters: Parameters, *, initial_accumulator_value: float, lr_decay: float, eps: float, weight_decay: float
) -> Functional:
    """Duchi, Hazan and Singer 2011."""

    def update(weights: list[Tensor], gradients: list[Tensor], state: State, rate: float) -> None:
        torch_adagrad.adagrad(
            *(weights, gradients, state["sum"], state["step"]),
            lr=rate,
            weight_decay=weight_decay,
            lr_decay=lr_decay,
            eps=eps,
            maximize=False,
        )

    def start(parameter: nn.Parameter) -> Tensor:
        return torch.full_like(parameter, initial_accumulator_value)

    return Functional(parameters, {"sum": start, "step": _count}, update)


def adamax(parameters: Parameters, *, betas: tuple[float, float], eps: float, weight_decay: float) -> Functional:
    """Kingma and Ba 2015, section 7."""

    def update(weights: list[Tensor], gradients: list[Tensor], state: State, rate: float) -> None:
        torch_adamax.adamax(
            *(weights, gradients, state["first"], state["largest"], state["step"]),
            eps=eps,
            beta1=betas[0],
            beta2=betas[1],
            lr=rate,
            weight_decay=weight_decay,
        )

    return Functional(parameters, {"first": _zeros, "largest": _zeros, "step": _count}, update)


def nadam(
    parameters: Parameters, *, betas: tuple[float, float], eps: float, weight_decay: float, momentum_decay: float
) -> Functional:
    """Dozat 2016."""

    def update(weights: list[Tensor], gradients: list[Tensor], state: State, rate: float) -> None:
        torch_nadam.nadam(
            *(weights, gradients, state["first"], state["second"], state["momentum"], state["step"]),
            beta1=betas[0],
            beta2=betas[1],
            lr=rate,
            weight_decay=weight_decay,
            momentum_decay=momentum_decay,
            eps=eps,
        )

    states = {"first": _zeros, "second": _zeros, "momentum": lambda _: torch.ones(()), "step": _count}
    return Functional(parameters, states, update)


def radam(parameters: Parameters, *, betas: tuple[float, float], eps: float, weight_decay: float) -> Functional:
    """Liu et al. 2020."""

    def update(weights: list[Tensor], gradients: list[Tensor], state: State, rate: float) -> None:
        torch_radam.radam(
            *(weights, gradients, state["first"], state["second"], state["step"]),
            beta1=betas[0],
            beta2=betas[1],
            lr=rate,
            weight_decay=weight_decay,
            eps=eps,
        )

    return Functional(parameters, {"first": _zeros, "second": _zeros, "step": _count}, update)


def rmsprop(
    parameters: Parameters, *, alpha: float, momentum: float, centered: bool, eps: float, weight_decay: float
) -> Functional:
    """Hinton's lecture 6e; ``centered`` as Graves 2013."""

    def update(weights: list[Tensor], gradients: list[Tensor], state: State, rate: float) -> None:
        torch_rmsprop.rmsprop(
            *(weights, gradients, state["square"], state.get("mean", []), state.get("momentum", []), state["step"]),
            lr=rate,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
        )

    states: dict[str, Callable[[nn.Parameter], Tensor | None]] = {"square": _zeros, "step": _count}
    if momentum:
        states["momentum"] = _zeros
    if centered:
        states["mean"] = _zeros
    return Functional(parameters, states, update)


class Muon:
    """Muon for weight matrices (Jordan et al. 2024), AdamW for all else."""

    def __init__(
        self,
        parameters: Parameters,
        *,
        momentum: float,
        nesterov: bool,
        ns_steps: int,
        adjust_lr_fn: Literal["original", "match_rms_adamw"],
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]

        def update(weights: list[Tensor], gradients: list[Tensor], state: State, rate: float) -> None:
            torch_muon.muon(
                *(weights, gradients, state["momentum"]),
                lr=rate,
                weight_decay=weight_decay,
                momentum=momentum,
                nesterov=nesterov,
                ns_coefficients=_MUON,
                ns_steps=ns_steps,
                eps=torch_muon.EPS,
                adjust_lr_fn=adjust_lr_fn,
                has_complex=False,
            )

        matrices = [parameter for parameter in self.parameters if parameter.dim() == 2]
        others = [parameter for parameter in self.parameters if parameter.dim() != 2]
        self._matrices = Functional(matrices, {"momentum": _zeros}, update)
        self._others = Adam(others, betas=betas, eps=eps, weight_decay=weight_decay, decoupled=True)

    def step(self, learning_rate: float) -> None:
        """Update every parameter that has a gradient, then drop the gradients."""
        self._matrices.step(learning_rate)
        self._others.step(learning_rate)

    def state_dict(self) -> dict[str, Tensor]:
        """The states of both."""
        both = {"matrices": self._matrices.state_dict(), "others": self._others.state_dict()}
        return {f"{part}.{name}": tensor for part, state in both.items() for name, tensor in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where the optimizer that gave ``state`` stood."""
        for part, optimizer in (("matrices", self._matrices), ("others", self._others)):
            own = {name.removeprefix(f"{part}."): tensor for name, tensor in state.items() if name.startswith(part)}
            optimizer.load_state_dict(own)


def _zeros(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter)


def _count(_: nn.Parameter) -> Tensor:
    return torch.zeros(())  # on the CPU, where torch's classes have it: kernel launches are dear
