"""The step of every trial of a stack, from gradients that are stacked: penalties and clipping of all at once, then each optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.epochs import FitSettings
from trainer.optim import Clipping, Optimizer, Penalty
from trainer.optim.first_order import Adam
from trainer.optim.several import SeveralAdams, joinable
from trainer.sweep.layers import Parameters

_LEAST_NORM = 1e-6  # as trainer.optim.gradients has it


class Steps:
    """What is done between the backward pass of a stack and the next: as ``Gradients.settle`` and ``Optimizer.step`` of each."""

    def __init__(
        self, parameters: Parameters, optimizers: Sequence[Optimizer], settings: Sequence[FitSettings]
    ) -> None:
        self._parameters = parameters
        self._optimizers = tuple(optimizers)
        self._settle = _Settle([each.penalty for each in settings], [each.clipping for each in settings])
        self._joined = [isinstance(optimizer, Adam) and joinable(optimizer) for optimizer in optimizers]
        adams = [optimizer for optimizer in optimizers if isinstance(optimizer, Adam) and joinable(optimizer)]
        self._adams = SeveralAdams(adams) if adams else None

    @torch.no_grad()
    def step(self, rates: Sequence[float]) -> None:
        """Step every trial at its rate, and drop the gradients."""
        self._settle(self._parameters.leaves)
        self._parameters.share_gradients()
        if self._adams is not None:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # the parameters of one trial are too few to share
            self._adams.step([rate for rate, joined in zip(rates, self._joined, strict=True) if joined])
            torch.set_num_threads(threads)
        for optimizer, rate, joined in zip(self._optimizers, rates, self._joined, strict=True):
            if not joined:
                optimizer.step(rate)


class _Settle:
    def __init__(self, penalties: Sequence[Penalty], clippings: Sequence[Clipping]) -> None:
        self._l1 = _own([penalty.l1 for penalty in penalties], 0.0)
        self._l2 = _own([penalty.l2 for penalty in penalties], 0.0)
        self._global = _own([_limit(clipping.global_norm) for clipping in clippings], math.inf)
        self._norm = _own([_limit(clipping.norm) for clipping in clippings], math.inf)
        self._value = _own([_limit(clipping.value) for clipping in clippings], math.inf)

    def __call__(self, leaves: Sequence[Tensor]) -> None:
        found = [(leaf, gradient) for leaf in leaves if (gradient := leaf.grad) is not None]
        gradients = [gradient for _, gradient in found]
        for leaf, gradient in found:
            if leaf.dim() > 2:  # a weight of each trial, no bias or scale
                if self._l2 is not None:
                    gradient.addcmul_(leaf, _across(2 * self._l2, leaf))
                if self._l1 is not None:
                    gradient.addcmul_(leaf.sign(), _across(self._l1, leaf))
        if self._global is not None:
            total = torch.linalg.vector_norm(torch.stack([_norms(gradient) for gradient in gradients]), dim=0)
            scale = (self._global.to(total) / (total + _LEAST_NORM)).clamp_(max=1.0)
            for gradient in gradients:
                gradient.mul_(_across(scale, gradient))
        if self._norm is not None:
            for gradient in gradients:
                scale = (self._norm.to(gradient) / (_norms(gradient) + _LEAST_NORM)).clamp_(max=1.0)
                gradient.mul_(_across(scale, gradient))
        if self._value is not None:
            for gradient in gradients:
                limit = _across(self._value, gradient)
                gradient.clamp_(-limit, limit)


def _own(values: Sequence[float], none: float) -> Tensor | None:
    """The value of each trial, None where none has one."""
    return None if all(value == none for value in values) else torch.tensor(values, dtype=torch.float32)


def _limit(value: float | None) -> float:
    return math.inf if value is None else value


def _norms(gradient: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return norms


def _across(values: Tensor, like: Tensor) -> Tensor:
    """One value per trial, in the shape that multiplies ``like``."""
    return values.to(like).view(-1, *[1] * (like.dim() - 1))
