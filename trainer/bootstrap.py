"""Intervals of metrics by the bootstrap of rows (Efron and Tibshirani 1993, chapter 13).

1000 times as many rows are drawn, with replacement, and the middle 95 % of the metric's values stand around its value. A
metric is a function of how often each row counts, so many resamples are computed at once. Of more than 5,000 rows that many
are drawn once, without replacement; what their resamples deviate is scaled to the number of rows by its root.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer import metrics

LEVEL = 0.95
RESAMPLES = 1000
RESAMPLED_ROWS = 5_000
_NUMBERS_AT_ONCE = 1 << 19  # of float64, some ten times over while a metric is computed


@dataclass(frozen=True)
class Estimate:
    """A metric and its 95 % interval; NaN where the rows do not define it, or no interval is known."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def to_json(self) -> dict[str, float]:
        """Plain values."""
        return {"value": self.value, "low": self.low, "high": self.high}


class Bootstrap:
    """The resamples of ``rows`` rows, the same for every metric of them; they depend on ``seed`` alone."""

    def __init__(self, rows: int, seed: int, device: torch.device) -> None:
        self.rows = rows
        self.seed = seed
        self.device = device
        self.used = min(rows, RESAMPLED_ROWS)
        self.picked: Tensor | None = None
        if rows > self.used:
            generator = torch.Generator().manual_seed(seed)
            self.picked = torch.randperm(rows, generator=generator)[: self.used].sort().values.to(device)

    def pick(self, values: Tensor) -> Tensor:
        """Of values, one a row (rows, …), those of the rows that are drawn from (used, …)."""
        return values if self.picked is None else values[self.picked]

    def around(
        self,
        values: Mapping[str, float],
        measure: Callable[[Tensor], Mapping[str, Tensor]],
        width: int = 1,
    ) -> dict[str, Estimate]:
        """``values``, metrics of all rows, with their intervals.

        ``measure`` gives those that have one, (resamples,) each, of the picked rows from weights (resamples, used); it makes
        about ``width`` numbers per resample.
        """
        whole = measure(metrics.once(self.used, self.device))
        at_once = max(1, _NUMBERS_AT_ONCE // max(self.used, width))
        generator = torch.Generator().manual_seed(self.seed)
        parts: dict[str, list[Tensor]] = {name: [] for name in values}
        for start in range(0, RESAMPLES, at_once):
            weights = self._weights(min(at_once, RESAMPLES - start), generator)
            for name, found in measure(weights).items():
                parts[name].append(found)
        shrink = math.sqrt(self.used / self.rows)
        estimates = {name: Estimate(value) for name, value in values.items()}
        for name in whole:
            deviations = (torch.cat(parts[name]) - whole[name]) * shrink
            tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64, device=self.device)
            ends = (values[name] + deviations.nanquantile(tails)).clamp(*metrics.RANGES[name])
            low, high = ends.tolist()
            estimates[name] = Estimate(values[name], low, high)
        return estimates

    def _weights(self, resamples: int, generator: torch.Generator) -> Tensor:
        drawn = torch.randint(self.used, (resamples, self.used), generator=generator).to(self.device)
        places = (torch.arange(resamples, device=self.device)[:, None] * self.used + drawn).flatten()
        return torch.bincount(places, minlength=resamples * self.used).view(resamples, self.used).double()
