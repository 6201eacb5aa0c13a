"""Several Adams that step at the same time: what their kernels take is put together once, not before every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trainer.optim.first_order import Adam


class SeveralAdams:
    """Adams, or AdamWs, that have taken equally many steps; until they are dropped, they step together or not at all."""

    def __init__(self, optimizers: Sequence[Adam]) -> None:
        self._optimizers = tuple(optimizers)
        self._count = torch.cat([optimizer._count for optimizer in optimizers])
        sizes = [len(optimizer.parameters) for optimizer in optimizers]
        for optimizer, count in zip(optimizers, torch.split(self._count, sizes), strict=True):
            optimizer.count_in(count)

    @torch.no_grad()
    def step(self, rates: Sequence[float]) -> None:
        """One step of each at its rate, then drop the gradients, which every parameter must have."""
        self._count.add_(1)
        for optimizer, rate in zip(self._optimizers, rates, strict=True):
            gradients = [gradient for parameter in optimizer.parameters if (gradient := parameter.grad) is not None]
            optimizer.update(gradients, rate)
            for parameter in optimizer.parameters:
                parameter.grad = None


def joinable(optimizer: object) -> bool:
    """Whether it may be one of several."""
    return type(optimizer) is Adam and optimizer._fused
