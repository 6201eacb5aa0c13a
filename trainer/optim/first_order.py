"""Adam and stochastic gradient descent.

Constructing any ``torch.optim.Optimizer`` imports torch._dynamo, about two seconds; torch's functional optimizers do
not. They are the same kernels, so the weights equal those of the classes bit for bit. Adam's fused kernel is called as it is
where every parameter has a gradient: what its function does around it takes a tenth of a small step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

_FUSED: Final = ("cpu", "cuda")


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
        # on the parameters' device, where the fused kernel wants them: moving them there costs a copy a step
        device = self.parameters[0].device if self.parameters else None
        self.count_in(torch.zeros(len(self.parameters), dtype=torch.float32, device=device))
        self._kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_

    def step(self, learning_rate: float) -> None:
        """Update every parameter that has a gradient, then drop the gradients."""
        gradients = [gradient for parameter in self.parameters if (gradient := parameter.grad) is not None]
        with torch.no_grad():
            if self._fused and len(gradients) == len(self.parameters):
                self._count.add_(1)
                self.update(gradients, learning_rate)
            else:
                self._step_some(gradients, learning_rate)
        for parameter in self.parameters:
            parameter.grad = None

    def count_in(self, count: Tensor) -> None:
        """Keep the step counts in ``count`` (parameters,), which may be a part of another tensor: one addition moves all on."""
        self._count, self._steps = count, list(count.unbind())

    def update(self, gradients: list[Tensor], learning_rate: float) -> None:
        """The fused kernel, for gradients of all parameters, after their steps were counted."""
        self._kernel(
            list[Tensor](self.parameters),
            gradients,
            self._first,
            self._second,
            self._largest,
            self._steps,
            lr=learning_rate,
            beta1=self._betas[0],
            beta2=self._betas[1],
            weight_decay=self._weight_decay,
            eps=self._eps,
            amsgrad=self._amsgrad,
            maximize=False,
        )

    def _step_some(self, gradients: list[Tensor], learning_rate: float) -> None:
        rows = [i for i, parameter in enumerate(self.parameters) if parameter.grad is not None]
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

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and step counts, by the position of their parameter."""
        steps = [step.clone() for step in self._steps]
        groups = {"first": self._first, "second": self._second, "largest": self._largest, "step": steps}
        return {f"{name}.{i}": tensor for name, tensors in groups.items() for i, tensor in enumerate(tensors)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where the optimizer that gave ``state`` stood."""
        groups = {"first": self._first, "second": self._second, "largest": self._largest, "step": self._steps}
        for name, tensors in groups.items():
            for i, tensor in enumerate(tensors):
                tensor.copy_(state[f"{name}.{i}"])


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
        saved = [(each, state.get(f"momentum.{i}")) for i, each in enumerate(self.parameters)]
        self._buffers = [None if buffer is None else buffer.to(each.device, copy=True) for each, buffer in saved]
