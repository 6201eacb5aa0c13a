"""The hyperopt section: what a sweep varies and what it looks for, with Ludwig's names (which are Ray Tune's)."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from trainer.frozen import Frozen

Split: TypeAlias = Literal["training", "validation", "test"]


class _Range(Frozen):
    """Lower below upper."""

    @model_validator(mode="after")
    def _in_order(self) -> _Range:
        lower, upper = getattr(self, "lower"), getattr(self, "upper")  # noqa: B009  # of the classes below
        if not lower < upper:
            raise PydanticCustomError("range", "lower must be less than upper")
        return self


class Grid(Frozen):
    """Every one of ``values``, with every combination of the other grids."""

    space: Literal["grid_search"] = "grid_search"
    values: tuple[Any, ...] = Field(min_length=1)


class Choice(Frozen):
    """One of ``categories``, each equally likely."""

    space: Literal["choice"] = "choice"
    categories: tuple[Any, ...] = Field(min_length=1)


class Uniform(_Range):
    """A number from ``lower`` up to ``upper``."""

    space: Literal["uniform"] = "uniform"
    lower: float
    upper: float


class QUniform(_Range):
    """As uniform, rounded to a multiple of ``q``."""

    space: Literal["quniform"] = "quniform"
    lower: float
    upper: float
    q: PositiveFloat


class LogUniform(_Range):
    """A number whose logarithm is uniform; ``base`` is of no consequence, as in Ludwig."""

    space: Literal["loguniform"] = "loguniform"
    lower: PositiveFloat
    upper: PositiveFloat
    base: PositiveFloat = 10.0


class QLogUniform(_Range):
    """As loguniform, rounded to a multiple of ``q``."""

    space: Literal["qloguniform"] = "qloguniform"
    lower: PositiveFloat
    upper: PositiveFloat
    q: PositiveFloat
    base: PositiveFloat = 10.0


class RandInt(_Range):
    """A whole number from ``lower`` to ``upper`` - 1, as Ray Tune draws it."""

    space: Literal["randint"] = "randint"
    lower: int
    upper: int


class QRandInt(_Range):
    """A multiple of ``q`` from ``lower`` to ``upper``, the latter included."""

    space: Literal["qrandint"] = "qrandint"
    lower: int
    upper: int
    q: PositiveInt = 1

    @model_validator(mode="after")
    def _holds_a_multiple(self) -> QRandInt:
        if -(-self.lower // self.q) > self.upper // self.q:
            raise PydanticCustomError("range", "there is no multiple of q from lower to upper")
        return self


class LogRandInt(_Range):
    """A whole number from ``lower`` to ``upper`` - 1 whose logarithm is about uniform."""

    space: Literal["lograndint"] = "lograndint"
    lower: PositiveInt
    upper: PositiveInt
    base: PositiveFloat = 10.0


class Int(_Range):
    """A whole number from ``lower`` to ``upper``, the latter included."""

    space: Literal["int"] = "int"
    lower: int
    upper: int


class RandN(Frozen):
    """A normally distributed number."""

    space: Literal["randn"] = "randn"
    mean: float = 0.0
    sd: PositiveFloat = 1.0


SPACES: Final = (Grid, Choice, Uniform, QUniform, LogUniform, QLogUniform, RandInt, QRandInt, LogRandInt, Int, RandN)
Space: TypeAlias = Annotated[
    Grid | Choice | Uniform | QUniform | LogUniform | QLogUniform | RandInt | QRandInt | LogRandInt | Int | RandN,
    Field(discriminator="space"),
]


class Executor(Frozen):
    """``num_samples``: how often every space that is no grid is drawn, 10 times unless said; with each point of the grid.

    ``type`` is taken for the sake of Ludwig's configs: trials run in this process.
    """

    type: Literal["local", "ray"] = "local"
    num_samples: PositiveInt | None = None


class SearchAlgorithm(Frozen):
    """Grids and random draws; ``random_state`` seeds the draws, else the config's ``random_seed`` does."""

    type: Literal["variant_generator", "random", "grid"] = "variant_generator"
    random_state: NonNegativeInt | None = None


class Hyperopt(Frozen):
    """What a sweep varies, and the metric that ranks its trials: ``metric`` of ``output_feature`` on ``split``.

    ``goal`` follows from the metric unless given; ``split`` is validation, or with folds the fold that is held out.
    """

    parameters: dict[str, Space] = Field(default_factory=dict)
    goal: Literal["minimize", "maximize"] | None = None
    metric: str | None = None
    output_feature: str | None = None
    split: Split | None = None
    search_alg: SearchAlgorithm = SearchAlgorithm()
    executor: Executor = Executor()
