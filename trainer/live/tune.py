"""``batch_size: auto`` where encoders are trained: the size at which a step takes most rows a second, found by trying."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

import torch

from cachestore.errors import ConfigError, OutOfMemory
from trainer.batches import Batch, Batches
from trainer.epochs import FitSettings
from trainer.fitting import build_optimizer
from trainer.live.batches import LiveBatches
from trainer.live.memory import Peak, available
from trainer.live.steps import out_of_memory
from trainer.loop import seeded
from trainer.model import Model
from trainer.moving import Moving
from trainer.optim import Clipping, Gradients, Lbfgs, Penalty
from trainer.precision import autocast
from trainer.schema import Config
from trainer.strategies import Strategy
from trainer.strategies.ranks import Ranks

_FIRST: Final = 8
_SHARE: Final = 0.2  # of the rows: an epoch of fewer steps than five learns little
_MOST: Final = {"cpu": 128, "cuda": 512}
_TIMED: Final = 3  # steps of a size, of which the fastest counts
_LONG: Final = 1.0  # seconds: two steps are measure enough
_SECONDS: Final = 60.0  # after which no further size is tried
_GAIN: Final = 1.05
_PATIENCE: Final = 2  # sizes in a row that are no faster: the machine is noisy
_FILLED: Final = 0.8  # of the memory that there is


def with_batch_size(
    config: Config, model: Model, train: Batches, strategy: Strategy, say: Callable[[str], None]
) -> Config:
    """The config with a number where it has ``batch_size: auto`` and an encoder is trained; all ranks of ``strategy`` call it.

    Powers of two from 8 on are tried by steps on the longest rows, until two in a row are not 5 % faster, a minute or memory
    ends, or the size is a fifth of the rows, 128 (512 on a GPU) or max_batch_size. The model is left as it was. Raises
    ConfigError when memory does not suffice for the first, OutOfMemory when one of several ranks has too little for a size.
    """
    trainer = config.trainer
    whole, times = trainer.effective_batch_size, trainer.gradient_accumulation_steps
    fixed = trainer.batch_size != "auto" or (whole != "auto" and times != "auto")
    if fixed or not config.trained or not isinstance(train, LiveBatches):
        return config
    most = min(
        _MOST.get(train.device.type, _MOST["cpu"]),
        trainer.max_batch_size,
        max(_FIRST, int(_SHARE * train.rows)),
        train.rows,
        *([whole] if whole != "auto" else []),
    )
    rates = _tried(config, model, train, most, strategy)
    found = _best(rates)
    if whole != "auto":  # what it stands for stays the same on every machine
        found = max(size for size in range(1, found + 1) if whole % size == 0)
    tried = ", ".join(f"{size} {rate:,.1f}" for size, rate in rates.items())
    say(f"batch_size: auto is {found} here (rows a second by size, on the longest rows: {tried}).")
    return config.model_copy(update={"trainer": trainer.model_copy(update={"batch_size": found})})


def _best(rates: dict[int, float]) -> int:
    """The last size that was clearly faster than all before it."""
    best = next(iter(rates))
    for size, rate in rates.items():
        if rate > _GAIN * rates[best]:
            best = size
    return best


def _tried(config: Config, model: Model, train: LiveBatches, most: int, strategy: Strategy) -> dict[int, float]:
    """Rows a second by size, in the order they were tried."""
    ranks = strategy.ranks
    trained = strategy.trained(model)
    moving = Moving(model, trained, ranks)
    before = {name: tensor.clone() for name, tensor in moving.tensors().items()}
    steps = _Steps(config, model, strategy, moving)
    free = available(train.device)
    rates: dict[int, float] = {}
    size, waited, grown, began = min(_FIRST, most), 0, 0, time.perf_counter()
    with seeded(config.random_seed):
        model.train()
        try:
            while size <= most and waited < _PATIENCE:
                # twice what a step of the last size took
                too_much = free is not None and 2 * grown * _sharing(train.device, ranks) > _FILLED * free
                if ranks.most(int(too_much or time.perf_counter() - began > _SECONDS)):
                    break
                batch = train.longest(size)
                peak = Peak(train.device)
                seconds = _seconds(steps, batch, ranks)
                if seconds is None:
                    break
                grown = peak.grown() or 0
                fastest = max(rates.values(), default=0.0)
                rates[size] = size / seconds
                waited = 0 if rates[size] > _GAIN * fastest else waited + 1
                size *= 2
        finally:
            steps.drop()
            moving.load(before)
    if not rates:
        raise ConfigError(
            f"trainer.batch_size: auto found no room for a step of {min(_FIRST, most)} rows. Set a smaller one, and "
            "enable_gradient_checkpointing: true, or train an adapter such as lora"
        )
    return rates


def _seconds(steps: _Steps, batch: Batch, ranks: Ranks) -> float | None:
    """What a step takes at best, on rank 0; None where memory does not suffice for it."""
    try:
        steps(batch)  # the first one takes memory, and makes the optimizer's state
        taken = math.inf
        for number in range(_TIMED):
            began = time.perf_counter()
            steps(batch)
            taken = min(taken, time.perf_counter() - began)
            if number and ranks.first(taken) > _LONG:
                break
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        if ranks.world > 1:  # the others wait for this one, and end with it
            raise OutOfMemory(
                f"trainer.batch_size: auto tried {batch.rows} rows at once, and one of the {ranks.world} processes has not enough "
                "memory for its share of them. Set trainer.batch_size to a smaller number."
            ) from error
        steps.drop()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None
    return ranks.first(taken)


def _sharing(device: torch.device, ranks: Ranks) -> int:
    """How many processes take of the same memory."""
    return -(-ranks.world // torch.cuda.device_count()) if device.type == "cuda" else ranks.world


class _Steps:
    """Whole steps that leave the weights nearly as they are: at a learning rate of 0."""

    def __init__(self, config: Config, model: Model, strategy: Strategy, moving: Moving) -> None:
        self._model, self._strategy = model, strategy
        self._mixed_precision = config.trainer.use_mixed_precision
        settings = FitSettings(1, 1, 1.0, "", "")
        optimizer = build_optimizer(config, strategy.trained(model), settings)
        assert not isinstance(optimizer, Lbfgs)  # the config's own check
        self._optimizer = optimizer
        total = strategy.ranks.sum if strategy.ranks.world > 1 else None
        clipping = Clipping(global_norm=1.0)
        self._gradients = Gradients(
            optimizer.parameters, Penalty(), clipping, sharded=moving.sharded, total=total, measured=True
        )

    def __call__(self, batch: Batch) -> None:
        self._strategy.sync(True)
        with autocast(self._strategy.device, self._mixed_precision):
            output = self._model(batch)
        output.loss.backward()
        self._strategy.settle()
        self._gradients.settle()
        self._optimizer.step(0.0)
        if self._strategy.device.type == "cuda":
            torch.cuda.synchronize(self._strategy.device)

    def drop(self) -> None:
        """Forget gradients of a step that was not finished."""
        for parameter in (*self._optimizer.parameters, *self._model.parameters()):
            parameter.grad = None
