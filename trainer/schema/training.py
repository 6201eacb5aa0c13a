"""The trainer section: how the loop runs, its optimizer and schedule, with Ludwig's names, meanings and defaults."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from trainer.frozen import Frozen
from trainer.schema.names import Share

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
