"""The points of a search: every combination of the grids, and draws from the other spaces."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from typing import Any, Final

from cachestore.errors import ConfigError
from trainer.schema.hyperopt import (
    Choice,
    Grid,
    Hyperopt,
    Int,
    LogRandInt,
    LogUniform,
    QLogUniform,
    QRandInt,
    QUniform,
    RandInt,
    RandN,
    Space,
    Uniform,
)

_SAMPLES: Final = 10  # Ludwig's default


def points(settings: Hyperopt, seed: int) -> list[dict[str, Any]]:
    """Path → value, one mapping per candidate, in the order of the section; the same section and seed give the same points.

    Raises ConfigError where ``num_samples`` or the search asks for what the spaces do not have.
    """
    grids = {path: space.values for path, space in settings.parameters.items() if isinstance(space, Grid)}
    drawn = {path: space for path, space in settings.parameters.items() if not isinstance(space, Grid)}
    samples = settings.executor.num_samples
    if settings.search_alg.type == "grid" and drawn:
        raise ConfigError(
            f"hyperopt.search_alg.type: grid tries the values of grids, and {', '.join(drawn)} is drawn at random; "
            "write it as space: grid_search with values, or leave search_alg out"
        )
    if not drawn and samples is not None and samples > 1:
        raise ConfigError(
            "hyperopt.executor.num_samples: every parameter is a grid, of which each point is tried once; leave "
            "num_samples out, and repeat trials with --seeds"
        )
    generator = random.Random(
        settings.search_alg.random_state if settings.search_alg.random_state is not None else seed
    )
    found: list[dict[str, Any]] = []
    for _ in range((samples or _SAMPLES) if drawn else 1):
        for combination in itertools.product(*grids.values()):
            values = dict(zip(grids, combination, strict=True))
            values |= {path: draw(space, generator) for path, space in drawn.items()}
            ordered = {path: values[path] for path in settings.parameters}
            if ordered not in found:  # a choice may come up again
                found.append(ordered)
    return found


def draw(space: Space, generator: random.Random) -> Any:
    """One value of a space that is no grid."""
    match space:
        case Choice(categories=categories):
            return generator.choice(categories)
        case Uniform(lower=lower, upper=upper):
            return generator.uniform(lower, upper)
        case QUniform(lower=lower, upper=upper, q=q):
            return _rounded(generator.uniform(lower, upper), q)
        case LogUniform(lower=lower, upper=upper):
            return _log_uniform(lower, upper, generator)
        case QLogUniform(lower=lower, upper=upper, q=q):
            return _rounded(_log_uniform(lower, upper, generator), q)
        case RandInt(lower=lower, upper=upper):
            return generator.randrange(lower, upper)
        case QRandInt(lower=lower, upper=upper, q=q):
            return generator.randint(-(-lower // q), upper // q) * q
        case LogRandInt(lower=lower, upper=upper):
            return min(upper - 1, math.floor(_log_uniform(lower, upper, generator)))
        case Int(lower=lower, upper=upper):
            return generator.randint(lower, upper)
        case RandN(mean=mean, sd=sd):
            return generator.gauss(mean, sd)
        case Grid():
            raise ValueError("a grid is not drawn from")


def grid(options: Mapping[str, tuple[Any, ...]]) -> dict[str, Grid]:
    """Values by path as grids."""
    return {path: Grid(values=values) for path, values in options.items()}


def _log_uniform(lower: float, upper: float, generator: random.Random) -> float:
    return math.exp(generator.uniform(math.log(lower), math.log(upper)))


def _rounded(value: float, step: float) -> float:
    return float(f"{round(value / step) * step:.12g}")  # 0.3, not 0.30000000000000004
