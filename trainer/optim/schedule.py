"""The learning rate over the steps of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Decay: TypeAlias = Literal["linear", "cosine", "one_cycle", "exponential", "inverse_sqrt", "polynomial"]

_RISING: Final = 0.3  # of one cycle, as torch's OneCycleLR has it
_FIRST: Final = 25.0
_LAST: Final = 1e4


@dataclass(frozen=True)
class Schedule:
    """A linear warm-up from 0, then ``decay`` over the steps that remain.

    The warm-up lasts the longest of ``warmup_fraction`` of all steps, ``warmup_steps`` and ``warmup_epochs``. linear,
    polynomial (1 − x)^``power`` and cosine, half a period (Loshchilov and Hutter 2017, without restarts), go down to
    ``least``; exponential multiplies by ``decay_rate`` every ``decay_steps`` steps, at once with ``staircase``;
    inverse_sqrt is √(t / (t + steps after the warm-up)), t being the steps of the warm-up or, without one,
    ``decay_steps`` (Vaswani 2017). one_cycle (Smith and Topin 2018) rises from a 25th of the rate to the rate within the
    warm-up, or 0.3 of the steps, and falls to a 10,000th of where it began, both as half a cosine period.
    """

    decay: Decay | None = None
    warmup_fraction: float = 0.0
    warmup_steps: int = 0
    warmup_epochs: float = 0.0
    decay_rate: float = 0.96
    decay_steps: int = 10_000
    staircase: bool = False
    power: float = 1.0
    least: float = 0.0

    def over(self, steps: int, per_epoch: int, learning_rate: float) -> Callable[[int], float]:
        """The rate of each optimizer step, from 0, of a run of ``steps``."""
        warmup = max(round(steps * self.warmup_fraction), self.warmup_steps, round(self.warmup_epochs * per_epoch))
        if self.decay == "one_cycle":
            return _one_cycle(steps, warmup or _RISING * steps, learning_rate)
        remaining = max(1, steps - warmup)
        after = self._after(warmup, remaining, learning_rate)

        def rate(step: int) -> float:
            return learning_rate * step / warmup if step < warmup else after(step - warmup)

        return rate

    def _after(self, warmup: int, remaining: int, learning_rate: float) -> Callable[[int], float]:
        """The rate so many steps after the warm-up."""
        span = learning_rate - self.least
        match self.decay:
            case "linear":
                return lambda step: self.least + span * (1 - step / remaining)
            case "polynomial":
                return lambda step: self.least + span * float((1 - step / remaining) ** self.power)
            case "cosine":
                return lambda step: self.least + span * (1 + math.cos(math.pi * step / remaining)) / 2
            case "exponential" if self.staircase:
                return lambda step: learning_rate * float(self.decay_rate ** (step // self.decay_steps))
            case "exponential":
                return lambda step: learning_rate * float(self.decay_rate ** (step / self.decay_steps))
            case "inverse_sqrt":
                unit = warmup or self.decay_steps
                return lambda step: learning_rate * math.sqrt(unit / (unit + step))
            case _:
                return lambda step: learning_rate


def _one_cycle(steps: int, rising: float, highest: float) -> Callable[[int], float]:
    first = highest / _FIRST
    last = first / _LAST
    top, end = rising - 1, steps - 1

    def rate(step: int) -> float:
        if step < top:
            return _between(first, highest, step / top)
        return _between(highest, last, (step - top) / (end - top) if end > top else 1.0)

    return rate


def _between(start: float, end: float, done: float) -> float:
    """Half a cosine period from ``start`` to ``end``."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Plateau:
    """Multiply the rate by ``factor``, ``times`` times at most, when ``metric`` of ``split`` was no better for ``patience`` epochs."""

    times: int
    patience: int
    factor: float
    metric: str
    split: Literal["train", "validation"]
