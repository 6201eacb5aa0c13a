"""Several Adams that step at the same time: what their kernels take is put together once, not before every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.optim.adam import adam
from torch.optim.adamw import adamw

from trainer.optim.first_order import Adam


class SeveralAdams:
    """Adams, or AdamWs, that have taken equally many steps; until they are dropped, they step together or not at all."""

    def __init__(self, optimizers: Sequence[Adam]) -> None:
        self._optimizers = tuple(optimizers)
        counts = [step for optimizer in optimizers for step in optimizer._steps]
        self._steps = torch.stack(counts)
        views = iter(self._steps.unbind())  # of one tensor, which one addition moves on
        for optimizer in optimizers:
            optimizer._steps = [next(views) for _ in optimizer._steps]

    @torch.no_grad()
    def step(self, rates: Sequence[float]) -> None:
        """One step of each at its rate, then drop the gradients, which every parameter must have."""
        self._steps.add_(1)
        for optimizer, rate in zip(self._optimizers, rates, strict=True):
            kernel = torch._fused_adam_ if optimizer._update is adam else torch._fused_adamw_
            kernel(
                list(optimizer.parameters),
                [gradient for parameter in optimizer.parameters if (gradient := parameter.grad) is not None],
                optimizer._first,
                optimizer._second,
                optimizer._largest,
                optimizer._steps,
                lr=rate,
                beta1=optimizer._betas[0],
                beta2=optimizer._betas[1],
                weight_decay=optimizer._weight_decay,
                eps=optimizer._eps,
                amsgrad=optimizer._amsgrad,
                maximize=False,
            )
            for parameter in optimizer.parameters:
                parameter.grad = None


def joinable(optimizer: object) -> bool:
    """Whether it may be one of several."""
    return type(optimizer) is Adam and optimizer._fused and optimizer._update in (adam, adamw)
