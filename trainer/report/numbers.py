"""Numbers as a reader of a report takes them in, and the ticks of an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise


def short(value: float | None) -> str:
    """About four significant digits: ``0.9286``, ``12.35``, ``1,235``, ``1.2e-05``; an en dash for what is not defined."""
    if value is None or not math.isfinite(value):
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    if value == 0:
        return "0"
    if size < 1e-4 or size >= 1e9:
        return f"{value:.2e}"
    if size < 1:
        return f"{value:.4f}"
    if size < 100:
        return f"{value:.4g}" if value != int(value) else str(int(value))
    return f"{value:,.1f}" if size < 1000 and value != int(value) else f"{value:,.0f}"


def measure(value: float | None) -> str:
    """A metric: four decimals below 10, so that those of a column stand beneath each other."""
    return f"{value:.4f}" if value is not None and abs(value) < 10 else short(value)


def seconds(value: float) -> str:
    """``0.31 s``, ``12 s``, ``3 min 20 s``."""
    if value < 100:
        return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def ticks(low: float, high: float, most: int = 6, whole: bool = False) -> list[float]:
    """Round values within [low, high], at most about ``most`` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / max(most - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    if whole:
        step = max(1.0, float(math.ceil(step)))
    first = math.ceil(low / step - 1e-9)
    return [place * step for place in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """The ticks with as many decimals as tell them apart."""
    largest = max(map(abs, values))
    step = min((b - a for a, b in pairwise(values)), default=largest or 1.0)
    if largest >= 10_000 and step >= 100:
        unit, name = (1e6, "M") if largest >= 1e6 and step >= 1e4 else (1e3, "k")
        return [f"{value / unit:g}{name}" if value else "0" for value in values]
    if 0 < largest < 1e-3 or largest >= 1e7:
        return [f"{value:.0e}" if value else "0" for value in values]
    decimals = 0
    while decimals < 6 and any(abs(round(value, decimals) - value) > step * 1e-3 for value in values):
        decimals += 1
    return [f"{value:,.{decimals}f}" for value in values]
