"""What is done to gradients between the backward pass and the step: a penalty on large weights joins them, then they are clipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """The gradients of some parameters, made ready for a step.

    ``sharded`` are those of ``parameters`` of which other processes have other rows, and ``total`` sums a tensor over all
    processes: a norm is that of the whole gradient. ``measured``: the norm of all is wanted also where nothing is clipped.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        penalty: Penalty,
        clipping: Clipping = Clipping(),
        *,
        sharded: Sequence[nn.Parameter] = (),
        total: Callable[[Tensor], Tensor] | None = None,
        measured: bool = False,
    ) -> None:
        self._parameters, self._penalty, self._clipping = parameters, penalty, clipping
        self._penalised = penalised(parameters) if penalty.l1 or penalty.l2 else []
        self._measured = measured
        self._idle = not self._penalised and clipping == Clipping() and not measured
        self._sharded, self._total = {id(parameter) for parameter in sharded}, total

    @torch.no_grad()
    def settle(self) -> Tensor | None:
        """Add the penalty's gradient to those that are there, then clip them in place.

        Returns the norm of all before they are clipped, float32 (), where it is needed or measured.
        """
        if self._idle:
            return None
        if self._penalised:
            self._penalise()
        clipping = self._clipping
        with_gradients = [parameter for parameter in self._parameters if parameter.grad is not None]
        gradients = [gradient for parameter in with_gradients if (gradient := parameter.grad) is not None]
        if not gradients:
            return None
        norm = None
        if self._measured or clipping.global_norm is not None:
            norm = torch.linalg.vector_norm(self._norms(with_gradients, gradients))
        if clipping.global_norm is not None:
            assert norm is not None
            _scale(gradients, (clipping.global_norm / (norm + _LEAST_NORM)).clamp_(max=1.0))
        if clipping.norm is not None:
            scales = self._norms(with_gradients, gradients).add_(_LEAST_NORM).reciprocal_().mul_(clipping.norm)
            each = [
                scale.to(gradient.device) for scale, gradient in zip(scales.clamp_(max=1.0), gradients, strict=True)
            ]
            torch._foreach_mul_(gradients, each)
        if clipping.value is not None:
            torch._foreach_clamp_min_(gradients, -clipping.value)
            torch._foreach_clamp_max_(gradients, clipping.value)
        return norm

    def _norms(self, parameters: Sequence[nn.Parameter], gradients: list[Tensor]) -> Tensor:
        """Of each whole gradient, (parameters,)."""
        norms = torch.stack([norm.to(gradients[0].device) for norm in torch._foreach_norm(gradients)])
        if self._total is None or not self._sharded:
            return norms
        places = [i for i, parameter in enumerate(parameters) if id(parameter) in self._sharded]
        if places:
            norms[places] = self._total(norms[places].square()).sqrt()
        return norms

    def _penalise(self) -> None:
        weights: list[Tensor] = [parameter for parameter in self._penalised if parameter.grad is not None]
        gradients = [gradient for parameter in weights if (gradient := parameter.grad) is not None]
        if weights and self._penalty.l2:
            torch._foreach_add_(gradients, weights, alpha=2 * self._penalty.l2)
        if weights and self._penalty.l1:
            torch._foreach_add_(gradients, torch._foreach_sign(weights), alpha=self._penalty.l1)


def _scale(gradients: list[Tensor], factor: Tensor) -> None:
    """In place; gradients may be on several devices, as where only sharded parameters are kept in main memory."""
    for device in {gradient.device for gradient in gradients}:
        torch._foreach_mul_([gradient for gradient in gradients if gradient.device == device], factor.to(device))


def penalised(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters that are weights: biases and the scales of norms have one dimension."""
    return [parameter for parameter in parameters if parameter.dim() > 1]
