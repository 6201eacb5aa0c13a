"""What a config is made of: one frozen class per section, with Ludwig's names, meanings and defaults.

Features stand in ``trainer.feature_schema``, combiners with their modules. ``trainer.config`` reads YAML into these.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from pydantic_core import PydanticCustomError

from trainer.combiners import Combiner, ConcatCombiner
from trainer.feature_schema import InputFeature, Name, OutputFeature, Share
from trainer.frozen import Frozen

Beta: TypeAlias = Annotated[float, Field(ge=0.0, lt=1.0)]


class Adam(Frozen):
    """Kingma and Ba 2015; weight decay enters the gradient."""

    type: Literal["adam"] = "adam"
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: NonNegativeFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    amsgrad: bool = False


class AdamW(Frozen):
    """Loshchilov and Hutter 2019; weight decay beside the gradient. No decay unless asked, as in Ludwig."""

    type: Literal["adamw"] = "adamw"
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: NonNegativeFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    amsgrad: bool = False


class SGD(Frozen):
    """Stochastic gradient descent."""

    type: Literal["sgd"] = "sgd"
    momentum: NonNegativeFloat = 0.0
    dampening: NonNegativeFloat = 0.0
    weight_decay: NonNegativeFloat = 0.0
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> SGD:
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise PydanticCustomError("nesterov", "nesterov: true needs a momentum greater than 0 and no dampening")
        return self


Optimizer: TypeAlias = Annotated[Adam | AdamW | SGD, Field(discriminator="type")]


class Scheduler(Frozen):
    """Linear warm-up over a share of all steps, then no decay, a linear one or a cosine to 0."""

    decay: Literal["linear", "cosine"] | None = None
    warmup_fraction: Share = 0.0


class TrainerConfig(Frozen):
    """How the loop runs; ``early_stop`` counts epochs without a better validation metric, -1 is never."""

    epochs: PositiveInt = 100
    batch_size: PositiveInt | Literal["auto"] = "auto"
    eval_batch_size: PositiveInt | None = None
    learning_rate: PositiveFloat | Literal["auto"] = 0.001
    learning_rate_scheduler: Scheduler = Scheduler()
    optimizer: Optimizer = Adam()
    early_stop: PositiveInt | Literal[-1] = 5
    use_mixed_precision: bool = False
    evaluate_training_set: bool = False
    validation_field: str | None = None
    validation_metric: str | None = None


def _check_probabilities(value: tuple[float, ...]) -> tuple[float, ...]:
    if abs(sum(value) - 1) > 1e-6 or value[0] == 0:
        raise PydanticCustomError(
            "probabilities", "the shares of train, validation and test must sum to 1, train above 0"
        )
    return value


Probabilities: TypeAlias = Annotated[tuple[Share, Share, Share], AfterValidator(_check_probabilities)]


class RandomSplit(Frozen):
    """Rows at random; ``seed`` is the config's ``random_seed`` unless given."""

    type: Literal["random"] = "random"
    probabilities: Probabilities = (0.7, 0.1, 0.2)
    seed: NonNegativeInt | None = None


class FixedSplit(Frozen):
    """As a column says: 0, 1, 2 or train, validation, test."""

    type: Literal["fixed"] = "fixed"
    column: Name = "split"


class StratifySplit(Frozen):
    """At random within each value of a column."""

    type: Literal["stratify"] = "stratify"
    column: Name
    probabilities: Probabilities = (0.7, 0.1, 0.2)


class HashSplit(Frozen):
    """By the hash of a column's value: equal values together, stable when rows are added or reordered."""

    type: Literal["hash"] = "hash"
    column: Name
    probabilities: Probabilities = (0.7, 0.1, 0.2)


SplitConfig: TypeAlias = Annotated[RandomSplit | FixedSplit | StratifySplit | HashSplit, Field(discriminator="type")]


class Preprocessing(Frozen):
    """``split`` is None when the user wrote none."""

    split: SplitConfig | None = None


class Backend(Frozen):
    """Where training runs."""

    type: Literal["local"] = "local"


class Config(Frozen):
    """A whole experiment. Made by ``trainer.config.load_config``, which also checks what no single section can know."""

    input_features: tuple[InputFeature, ...] = Field(min_length=1)
    output_features: tuple[OutputFeature, ...] = Field(min_length=1)
    combiner: Combiner = ConcatCombiner()
    trainer: TrainerConfig = TrainerConfig()
    preprocessing: Preprocessing = Preprocessing()
    backend: Backend = Backend()
    random_seed: NonNegativeInt = 42

    def resolved(self) -> dict[str, Any]:
        """Plain mappings and lists, every default written out; ``load_config`` reads them back to an equal config."""
        return self.model_dump(mode="json")

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema of a resolved config, for editors."""
        return cls.model_json_schema()
