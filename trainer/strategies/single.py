"""Training in this process alone."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from trainer.assemble import default_device
from trainer.model import Model
from trainer.strategies import Trained, trained_of, whole_of
from trainer.strategies.ranks import ALONE, Ranks


@final
class Single:
    """One process, on the first GPU or else the CPU."""

    ranks: Ranks = ALONE
    loads = True

    def __init__(self) -> None:
        self.device: torch.device = default_device()

    def wrap(self, model: Model) -> None:
        """Bring the model to the device."""
        model.to(self.device)

    def trained(self, model: Model) -> list[Trained]:
        """Every parameter that is trained."""
        return trained_of(model)

    def sync(self, on: bool) -> None:
        """Gradients are this process's own."""

    def settle(self) -> None:
        """Gradients are whole as they are."""

    def whole(self, model: Model) -> dict[str, Tensor]:
        """The state of the model."""
        return whole_of(model)
