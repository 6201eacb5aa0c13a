"""Optimizers and learning-rate schedules of the frozen loop.

Constructing any ``torch.optim.Optimizer`` imports torch._dynamo, about two seconds; torch's functional optimizers do
not. They are the same kernels, so the weights equal those of the classes bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

Decay: TypeAlias = Literal["linear", "cosine"]

_FUSED: Final = ("cpu", "cuda")


class Optimizer(Protocol):
    """Updates its parameters from their gradients."""

    parameters: list[nn.Parameter]

    def step(self, learning_rate: float) -> None:
        """Update every parameter that has a gradient, then drop the gradients."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything but the parameters that the next step depends on; tensors are shared, not copied."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where the optimizer that gave ``state`` stood."""


class Adam:
    """Adam (Kingma and Ba 2015), or with ``decoupled`` weight decay AdamW (Loshchilov and Hutter 2019)."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        decoupled: bool = False,
    ) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._update = adamw if decoupled else adam
        self._betas, self._eps, self._weight_decay, self._amsgrad = betas, eps, weight_decay, amsgrad
        self._fused = all(parameter.device.type in _FUSED for parameter in self.parameters)
        self._first = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._second = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._largest = [torch.zeros_like(parameter) for parameter in self.parameters] if amsgrad else []
        # on the parameter's device, where the fused kernel wants it: moving it there costs a copy a step
        self._steps = [torch.zeros((), dtype=torch.float32, device=parameter.device) for parameter in self.parameters]

    def step(self, learning_rate: float) -> None:
        """Update every parameter that has a gradient, then drop the gradients."""
        rows = [i for i, parameter in enumerate(self.parameters) if parameter.grad is not None]
        gradients = [gradient for parameter in self.parameters if (gradient := parameter.grad) is not None]
        with torch.no_grad():
            self._update(
                [self.parameters[i] for i in rows],
                gradients,
                [self._first[i] for i in rows],
                [self._second[i] for i in rows],
                [self._largest[i] for i in rows] if self._amsgrad else [],
                [self._steps[i] for i in rows],
                fused=self._fused,
                foreach=not self._fused,
                amsgrad=self._amsgrad,
                beta1=self._betas[0],
                beta2=self._betas[1],
                lr=learning_rate,
                weight_decay=self._weight_decay,
                eps=self._eps,
                maximize=False,
            )
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and step counts, by the position of their parameter."""
        groups = {"first": self._first, "second": self._second, "largest": self._largest, "step": self._steps}
        return {f"{name}.{i}": tensor for name, tensors in groups.items() for i, tensor in enumerate(tensors)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where the optimizer that gave ``state`` stood."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


class Sgd:
    """Stochastic gradient descent, with momentum and Nesterov's variant of it as ``torch.optim.SGD`` has them."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._momentum, self._dampening = momentum, dampening
        self._weight_decay, self._nesterov = weight_decay, nesterov
        self._fused = all(parameter.device.type in _FUSED for parameter in self.parameters)
        self._buffers: list[Tensor | None] = [None] * len(self.parameters)

    def step(self, learning_rate: float) -> None:
        """Update every parameter that has a gradient, then drop the gradients."""
        rows = [i for i, parameter in enumerate(self.parameters) if parameter.grad is not None]
        # a parameter that gets its first gradient later than others starts its momentum then
        begun = [i for i in rows if self._buffers[i] is not None]
        fresh = [i for i in rows if self._buffers[i] is None]
        for group in filter(None, (begun, fresh)):
            self._apply(group, learning_rate)
        for parameter in self.parameters:
            parameter.grad = None

    def _apply(self, rows: list[int], learning_rate: float) -> None:
        buffers = [self._buffers[i] for i in rows]
        gradients = [gradient for i in rows if (gradient := self.parameters[i].grad) is not None]
        with torch.no_grad():
            sgd(
                [self.parameters[i] for i in rows],
                gradients,
                buffers,
                fused=self._fused,
                foreach=not self._fused,
                weight_decay=self._weight_decay,
                momentum=self._momentum,
                lr=learning_rate,
                dampening=self._dampening,
                nesterov=self._nesterov,
                maximize=False,
            )
        for i, buffer in zip(rows, buffers, strict=True):
            self._buffers[i] = buffer

    def state_dict(self) -> dict[str, Tensor]:
        """Momentum buffers, by the position of their parameter; those not begun are left out."""
        return {f"momentum.{i}": buffer for i, buffer in enumerate(self._buffers) if buffer is not None}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where the optimizer that gave ``state`` stood."""
        saved = [state.get(f"momentum.{i}") for i in range(len(self.parameters))]
        self._buffers = [None if buffer is None else buffer.clone() for buffer in saved]


def learning_rate_at(
    step: int, steps: int, learning_rate: float, *, warmup_fraction: float = 0.0, decay: Decay | None = None
) -> float:
    """The rate of optimizer step ``step`` (from 0) of ``steps``.

    Linear from 0 over the first ``warmup_fraction`` of the steps, then ``decay`` to 0 over the steps that remain:
    linear, or half a cosine period (Loshchilov and Hutter 2017, without restarts).
    """
    warmup = round(steps * warmup_fraction)
    if step < warmup:
        return learning_rate * step / warmup
    done = (step - warmup) / max(1, steps - warmup)
    match decay:
        case None:
            return learning_rate
        case "linear":
            return learning_rate * (1 - done)
        case "cosine":
            return learning_rate * (1 + math.cos(math.pi * done)) / 2


def auto_learning_rate(magnitude: float, hidden: bool) -> float:
    """What ``learning_rate: auto`` means to Adam and AdamW where inputs sum to ``magnitude`` in absolute value.

    Adam moves every weight by about the learning rate, so one step moves a score by about rate × magnitude; what trains
    well is a fixed size of that product. Measured on MiniLM vectors (magnitude 15.5, and 310 when scaled by 20) and hashed
    bags of words (4.2), batch 128, 20 epochs, best validation accuracy, the rates of each row from low to high:

        banking77, linear head      0.001 0.880, 0.003 0.916, 0.01 0.930, 0.03 0.930; × 20: 0.0003 0.923, 0.001 0.931
        banking77, hashed, linear   0.001 0.733, 0.003 0.816, 0.01 0.838, 0.03 0.840, 0.1 0.839
        banking77, hidden layer     0.0003 0.891, 0.001 0.920, 0.003 0.923, 0.01 0.922, 0.03 0.913; × 20: 0.0003 0.928
        polarity, linear head       0.0003 0.744, 0.001 0.757, 0.003 0.759, 0.01 0.766, 0.03 0.768; × 20: 0.001 0.767
        polarity, hidden layer      0.0003 0.768, 0.001 0.777, 0.003 0.767, 0.01 0.762, 0.03 0.754

    Hence 0.15 / magnitude for a linear head (0.0097 on MiniLM), 0.03 / magnitude with hidden layers (0.0019).
    """
    product, highest = (0.03, 3e-3) if hidden else (0.15, 3e-2)
    return min(highest, max(1e-4, product / max(magnitude, 1e-9)))
