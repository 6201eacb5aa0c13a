"""What is done to gradients between the backward pass and the step: a penalty on large weights joins them, then they are clipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_LEAST_NORM = 1e-6  # as torch.nn.utils.clip_grad_norm_ has it


@dataclass(frozen=True)
class Penalty:
    """``l1`` Σ|w| + ``l2`` Σw² over the weights of the model: its biases and the scales of its norms are free."""

    l1: float = 0.0
    l2: float = 0.0

    def value(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """What it adds to the loss, float64 ()."""
        weights = [parameter.detach().double() for parameter in penalised(parameters)]
        total = torch.zeros((), dtype=torch.float64)
        for weight in weights:
            total = total + (self.l1 * weight.abs().sum() + self.l2 * weight.square().sum()).cpu()
        return total


@dataclass(frozen=True)
class Clipping:
    """Limits of gradients, None where there is none: the norm of all together, the norm of each parameter's, each value."""

    global_norm: float | None = None
    norm: float | None = None
    value: float | None = None


class Gradients:
    """The gradients of some parameters, made ready for a step."""

    def __init__(self, parameters: Sequence[nn.Parameter], penalty: Penalty, clipping: Clipping = Clipping()) -> None:
        self._parameters, self._penalty, self._clipping = parameters, penalty, clipping
        self._penalised = penalised(parameters) if penalty.l1 or penalty.l2 else []
        self._idle = not self._penalised and clipping == Clipping()

    @torch.no_grad()
    def settle(self) -> None:
        """Add the penalty's gradient to those that are there, then clip them in place."""
        if self._idle:
            return
        if self._penalised:
            self._penalise()
        clipping = self._clipping
        gradients = [gradient for parameter in self._parameters if (gradient := parameter.grad) is not None]
        if not gradients:
            return
        if clipping.global_norm is not None:
            total = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            torch._foreach_mul_(gradients, (clipping.global_norm / (total + _LEAST_NORM)).clamp_(max=1.0))
        if clipping.norm is not None:
            scales = torch.stack(torch._foreach_norm(gradients)).add_(_LEAST_NORM).reciprocal_().mul_(clipping.norm)
            torch._foreach_mul_(gradients, list(scales.clamp_(max=1.0).unbind()))
        if clipping.value is not None:
            torch._foreach_clamp_min_(gradients, -clipping.value)
            torch._foreach_clamp_max_(gradients, clipping.value)

    def _penalise(self) -> None:
        weights: list[Tensor] = [parameter for parameter in self._penalised if parameter.grad is not None]
        gradients = [gradient for parameter in weights if (gradient := parameter.grad) is not None]
        if weights and self._penalty.l2:
            torch._foreach_add_(gradients, weights, alpha=2 * self._penalty.l2)
        if weights and self._penalty.l1:
            torch._foreach_add_(gradients, torch._foreach_sign(weights), alpha=self._penalty.l1)


def penalised(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters that are weights: biases and the scales of norms have one dimension."""
    return [parameter for parameter in parameters if parameter.dim() > 1]
