"""The learning-rate range test: short training at a rate that rises, and the rate at which the loss falls best."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import torch

from cachestore.errors import ConfigError
from trainer.batches import Batch, Batches
from trainer.epochs import FitSettings
from trainer.loop import seeded
from trainer.model import Model
from trainer.moving import Moving
from trainer.optim import Gradients, Optimizer
from trainer.precision import autocast
from trainer.strategies import Strategy, trained_of
from trainer.strategies.ranks import ALONE, Ranks

_LOWEST: Final = 1e-6
_HIGHEST: Final = 10.0
_STEPS: Final = 100
_SMOOTHING: Final = 0.9
_WINDOW: Final = 10  # steps: the loss of one batch is mostly noise
_LOST: Final = 4.0  # times the least loss: training has diverged


def range_test(
    model: Model, train: Batches, optimizer: Optimizer, settings: FitSettings, strategy: Strategy | None = None
) -> float:
    """The learning rate for ``model``, whose weights are put back after it (Smith 2017); ``optimizer`` is used up.

    Over 100 batches the rate rises from 1e-6 to 10, evenly by its logarithm, until the loss is four times its least. The
    rate is a third of the one in the middle of the ten steps over which the smoothed loss falls most. Depends on the seed
    of ``settings`` alone. Encoders that are trained learn at the same rate. Raises ConfigError when no rate makes the loss fall.
    """
    trained = trained_of(model) if strategy is None else strategy.trained(model)
    moving = Moving(model, trained, _ranks(strategy))
    before = {name: tensor.clone() for name, tensor in moving.tensors().items()}
    with seeded(settings.seed):
        try:
            found = list(_losses(model, train, optimizer, settings, moving, strategy))
        finally:
            moving.load(before)
            for parameter in optimizer.parameters:
                parameter.grad = None
    losses = [loss for _, loss in found]
    falls = [before - after for before, after in zip(losses, losses[_WINDOW:], strict=False)]
    if not falls or max(falls) <= 0:
        raise ConfigError("trainer.learning_rate: range_test found no rate at which the loss falls; set a number")
    return float(f"{found[falls.index(max(falls)) + _WINDOW // 2][0] / 3:.2g}")


def _losses(
    model: Model,
    train: Batches,
    optimizer: Optimizer,
    settings: FitSettings,
    moving: Moving,
    strategy: Strategy | None,
) -> Iterator[tuple[float, float]]:
    """Rate and smoothed loss of each step."""
    ranks = _ranks(strategy)
    gradients = Gradients(
        optimizer.parameters, settings.penalty, settings.clipping, sharded=moving.sharded, total=ranks.sum
    )
    batches = _endless(train, settings)
    model.train()
    mean, least = 0.0, math.inf
    for step in range(_STEPS):
        rate = _LOWEST * (_HIGHEST / _LOWEST) ** (step / (_STEPS - 1))
        with autocast(train.device, settings.mixed_precision):
            output = model(next(batches))
        loss = ranks.first(float(output.loss.detach()))  # for all must stop at the same step
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        smoothed = mean / (1 - _SMOOTHING ** (step + 1))
        if not math.isfinite(loss) or smoothed > _LOST * least:
            return
        least = min(least, smoothed)
        yield rate, smoothed
        if strategy is not None:
            strategy.sync(True)
        output.loss.backward()
        if strategy is not None:
            strategy.settle()
        gradients.settle()
        optimizer.step(rate)


def _ranks(strategy: Strategy | None) -> Ranks:
    return ALONE if strategy is None else strategy.ranks


def _endless(train: Batches, settings: FitSettings) -> Iterator[Batch]:
    order = torch.Generator().manual_seed(settings.seed)
    while True:
        yield from train.shuffled(settings.batch_size, order)
