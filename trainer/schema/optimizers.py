"""The optimizers of the trainer section, with Ludwig's names and torch's meanings and defaults."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
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


class Adadelta(Frozen):
    """Zeiler 2012."""

    type: Literal["adadelta"] = "adadelta"
    rho: Share = 0.9
    eps: NonNegativeFloat = 1e-6
    weight_decay: NonNegativeFloat = 0.0


class Adagrad(Frozen):
    """Duchi, Hazan and Singer 2011."""

    type: Literal["adagrad"] = "adagrad"
    initial_accumulator_value: NonNegativeFloat = 0.0
    lr_decay: NonNegativeFloat = 0.0
    eps: NonNegativeFloat = 1e-10
    weight_decay: NonNegativeFloat = 0.0


class Adamax(Frozen):
    """Adam by the largest gradient (Kingma and Ba 2015, section 7)."""

    type: Literal["adamax"] = "adamax"
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: NonNegativeFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0


class NAdam(Frozen):
    """Adam with Nesterov's momentum (Dozat 2016)."""

    type: Literal["nadam"] = "nadam"
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: NonNegativeFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    momentum_decay: NonNegativeFloat = 4e-3


class RAdam(Frozen):
    """Adam whose rate is rectified while its moments are young (Liu et al. 2020)."""

    type: Literal["radam"] = "radam"
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: NonNegativeFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0


class RMSprop(Frozen):
    """Hinton's lecture 6e; ``centered`` as Graves 2013."""

    type: Literal["rmsprop"] = "rmsprop"
    alpha: Share = 0.99
    momentum: NonNegativeFloat = 0.0
    centered: bool = False
    eps: NonNegativeFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0


class Adafactor(Frozen):
    """Shazeer and Stern 2018, as torch has it: second moments by row and column, weight decay beside the gradient."""

    type: Literal["adafactor"] = "adafactor"
    beta2_decay: Annotated[float, Field(le=0.0)] = -0.8
    eps: tuple[NonNegativeFloat | None, NonNegativeFloat] = (None, 1e-3)
    d: Annotated[float, Field(ge=1.0)] = 1.0
    weight_decay: NonNegativeFloat = 0.0


class Muon(Frozen):
    """Orthogonalised momentum for weight matrices (Jordan et al. 2024); biases and norms go by AdamW at the same rate."""

    type: Literal["muon"] = "muon"
    momentum: Beta = 0.95
    nesterov: bool = True
    ns_steps: Annotated[int, Field(ge=1, lt=100)] = 5
    adjust_lr_fn: Literal["original", "match_rms_adamw"] = "original"
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: NonNegativeFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0


class LBFGS(Frozen):
    """Liu and Nocedal 1989, on all training rows at once: an epoch is up to ``max_iter`` iterations.

    ``max_eval``: passes over the rows in an epoch, by default 1.25 × ``max_iter``. Unlike torch and Ludwig, steps are
    searched for by the strong Wolfe conditions unless ``line_search_fn`` is null.
    """

    type: Literal["lbfgs"] = "lbfgs"
    max_iter: PositiveInt = 20
    max_eval: PositiveInt | None = None
    tolerance_grad: NonNegativeFloat = 1e-7
    tolerance_change: NonNegativeFloat = 1e-9
    history_size: PositiveInt = 100
    line_search_fn: Literal["strong_wolfe"] | None = "strong_wolfe"


StepOptimizer: TypeAlias = (
    Adam | AdamW | SGD | Adadelta | Adafactor | Adagrad | Adamax | Muon | NAdam | RAdam | RMSprop  # a gradient a step
)
Optimizer: TypeAlias = Annotated[StepOptimizer | LBFGS, Field(discriminator="type")]
