"""The trainer section: how the loop runs, its optimizer and schedule, with Ludwig's names, meanings and defaults."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from pydantic.functional_validators import AfterValidator
from pydantic_core import PydanticCustomError

from trainer.frozen import Frozen
from trainer.metrics import ALIASES
from trainer.schema.names import Share
from trainer.schema.optimizers import LBFGS, SGD, Adam, AdamW, Optimizer

__all__ = ["LBFGS", "SGD", "Adam", "AdamW", "GradientClipping", "Optimizer", "Scheduler", "TrainerConfig"]

_UNITS: Final = {"": 1, "B": 1, **{f"{unit}B": 1000 ** (at + 1) for at, unit in enumerate("KMGT")}}
_BINARY: Final = {f"{unit}iB": 1024 ** (at + 1) for at, unit in enumerate("KMGT")}


def in_bytes(size: int | str) -> int:
    """A size as users write it, "4GB" or "512 MiB" or a number of bytes, in bytes. Raises ValueError when it is none."""
    if isinstance(size, int):
        return size
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", size)
    units = {name.upper(): factor for name, factor in (*_UNITS.items(), *_BINARY.items())}
    if found is None or found[2].upper() not in units:
        raise ValueError(f"must be a number of bytes or a size such as 4GB or 512MiB, not {size!r}")
    return int(float(found[1]) * units[found[2].upper()])


def _sized(size: int | str) -> int | str:
    if in_bytes(size) <= 0:
        raise ValueError(f"must be greater than 0, not {size!r}")
    return size


Size: TypeAlias = Annotated[int | str, AfterValidator(_sized)]


def _compiled(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{value!r} is no regular expression: {error}") from None
    return value


Regex: TypeAlias = Annotated[str, Field(min_length=1), AfterValidator(_compiled)]


class Scheduler(Frozen):
    """A linear warm-up, then ``decay``, and a reduction where a metric stands still.

    The longest of ``warmup_fraction`` of all steps, ``warmup_steps`` and ``warmup_evaluations`` (epochs) counts.
    """

    decay: Literal["linear", "cosine", "one_cycle", "exponential", "inverse_sqrt", "polynomial"] | None = None
    warmup_fraction: Share = 0.0
    warmup_steps: NonNegativeInt = 0
    warmup_evaluations: NonNegativeFloat = 0
    decay_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.96
    decay_steps: PositiveInt = 10_000
    staircase: bool = False
    power: PositiveFloat = 1.0
    eta_min: NonNegativeFloat = 0.0
    reduce_on_plateau: NonNegativeInt = 0
    reduce_on_plateau_patience: NonNegativeInt = 10
    reduce_on_plateau_rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    reduce_eval_metric: str = "loss"
    reduce_eval_split: Literal["training", "validation"] = "training"

    @property
    def plateau_metric(self) -> str | None:
        """The metric that is to go on, None where the rate is never reduced."""
        return ALIASES.get(self.reduce_eval_metric, self.reduce_eval_metric) if self.reduce_on_plateau else None


class GradientClipping(Frozen):
    """Limits of gradients before a step: the norm of all together, the norm of each parameter's, each value.

    None unless asked, where Ludwig has 0.5: heads on stored vectors are shallow, and large first steps teach them most.
    """

    clipglobalnorm: PositiveFloat | None = None
    clipnorm: PositiveFloat | None = None
    clipvalue: PositiveFloat | None = None


def _rate(data: dict[str, Any]) -> float:
    return 1.0 if isinstance(data.get("optimizer"), LBFGS) else 0.001


class TrainerConfig(Frozen):
    """How the loop runs; ``early_stop`` counts epochs without a better validation metric, -1 is never.

    ``train_steps`` takes the place of ``epochs``. ``effective_batch_size`` = ``batch_size`` ×
    ``gradient_accumulation_steps``: a step takes the gradients of so many rows, of all workers together, so many at once. Other
    defaults for lbfgs: a learning rate of 1. With ``memory_limit``, more vectors than a quarter of it stay in the store and
    are read in blocks.

    Of encoders that run in the loop: ``encoder_learning_rate`` (that of the rest unless given, or by what is trained of them where
    that is auto), ``bucket_by_length`` (batches of texts of about one length), ``enable_gradient_checkpointing`` (activations of a
    block are computed again instead of kept), ``layers_to_freeze_regex`` (parameters whose name it is found in are not trained).
    ``learning_rate_scaling`` by the number of workers is constant where Ludwig's is linear: ``batch_size`` does not grow with them.
    """

    optimizer: Optimizer = Adam()
    epochs: PositiveInt = 100
    train_steps: PositiveInt | None = None
    batch_size: PositiveInt | Literal["auto"] = "auto"
    max_batch_size: PositiveInt = 2**40
    effective_batch_size: PositiveInt | Literal["auto"] = "auto"
    gradient_accumulation_steps: PositiveInt | Literal["auto"] = "auto"
    eval_batch_size: PositiveInt | None = None
    learning_rate: PositiveFloat | Literal["auto", "range_test"] = Field(default_factory=_rate)
    encoder_learning_rate: PositiveFloat | None = None
    learning_rate_scaling: Literal["constant", "linear", "sqrt"] = "constant"
    learning_rate_scheduler: Scheduler = Scheduler()
    gradient_clipping: GradientClipping = GradientClipping()
    regularization_type: Literal["l1", "l2", "l1_l2"] | None = "l2"
    regularization_lambda: NonNegativeFloat = 0.0
    early_stop: PositiveInt | Literal[-1] = 5
    use_mixed_precision: bool = False
    evaluate_training_set: bool = False
    bucket_by_length: bool = True
    enable_gradient_checkpointing: bool = False
    layers_to_freeze_regex: Regex | None = None
    validation_field: str | None = None
    validation_metric: str | None = None
    memory_limit: Size | None = None

    def memory_bytes(self) -> int | None:
        """``memory_limit`` in bytes."""
        return None if self.memory_limit is None else in_bytes(self.memory_limit)

    @model_validator(mode="after")
    def _sizes_multiply(self) -> TrainerConfig:
        whole, size, times = self.effective_batch_size, self.batch_size, self.gradient_accumulation_steps
        if whole == "auto":
            return self
        if size != "auto" and times != "auto" and size * times != whole:
            why = f"batch_size × gradient_accumulation_steps is {size * times}, not effective_batch_size, {whole}; set two of the three"
        elif size != "auto" and whole % size:
            why = f"effective_batch_size: {whole} is no multiple of batch_size, {size}"
        elif times != "auto" and whole % times:
            why = f"effective_batch_size: {whole} is no multiple of gradient_accumulation_steps, {times}"
        else:
            return self
        raise PydanticCustomError("batch_sizes", why)

    @model_validator(mode="after")
    def _lbfgs_has_the_true_gradient(self) -> TrainerConfig:
        if not isinstance(self.optimizer, LBFGS):
            return self
        if self.gradient_clipping != GradientClipping():
            why = "gradient_clipping bends the gradients that lbfgs learns the curvature from; leave it out"
        elif self.use_mixed_precision:
            why = "use_mixed_precision is too coarse for the line search of lbfgs; leave it out"
        elif self.learning_rate == "range_test":
            why = "learning_rate: range_test has no meaning for lbfgs, which searches each step's length; leave it out"
        elif self.effective_batch_size != "auto" or self.gradient_accumulation_steps != "auto":
            why = "effective_batch_size and gradient_accumulation_steps have no meaning for lbfgs: every step sees all rows"
        else:
            return self
        raise PydanticCustomError("lbfgs", why)
