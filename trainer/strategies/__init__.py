"""Where training runs, and how the model is wrapped for it: in one process, or in several that share the rows of each batch.

Only encoders that run in the loop are shared out: every rank encodes its rows of a batch and gets the vectors of all of it, and
runs the rest of the model on all of them. So a loss need not be a mean, metrics are not reduced, and ``batch_size`` is that of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from trainer.model import Model
from trainer.strategies.ranks import Ranks

__all__ = ["Strategy", "Trained", "trained_of", "whole_of"]


@dataclass(frozen=True)
class Trained:
    """A parameter that is trained. ``name`` as in ``Model.named_parameters`` before it is wrapped.

    ``encoder``: the input whose encoder it belongs to, None for the rest of the model. ``sharded``: ``parameter`` is this
    rank's part of it.
    """

    name: str
    parameter: nn.Parameter
    encoder: str | None = None
    sharded: bool = False


class Strategy(Protocol):
    """Wraps a model, and makes the gradients of all ranks one."""

    @property
    def ranks(self) -> Ranks:
        """This process among the others."""

    @property
    def device(self) -> torch.device:
        """Where this process trains."""

    @property
    def loads(self) -> bool:
        """Whether this process reads the weights of encoders; else it comes to ``wrap`` with such on the meta device."""

    def wrap(self, model: Model) -> None:
        """Bring the model to the device and wrap its live encoders, in place."""

    def trained(self, model: Model) -> list[Trained]:
        """What the optimizer updates, after ``wrap``."""

    def sync(self, on: bool) -> None:
        """Whether the backward passes that follow share gradients among ranks: the last of those that are added up does."""

    def settle(self) -> None:
        """After the last backward of a step: the gradients of ``trained`` are those of all ranks."""

    def whole(self, model: Model) -> dict[str, Tensor]:
        """The state of the model as before it was wrapped, on the CPU; empty on all ranks but 0. All ranks call it."""


def trained_of(model: Model) -> list[Trained]:
    """Every parameter of a model that is not wrapped and that takes a gradient, in its order."""
    found = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.append(Trained(name, parameter, model.input_of(name)))
    return found


def whole_of(model: Model) -> dict[str, Tensor]:
    """The state of a model that has it whole, on the CPU."""
    return {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
