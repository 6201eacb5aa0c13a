"""What the loop asks of an optimizer."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class Optimizer(Protocol):
    """Updates its parameters from their gradients."""

    parameters: list[nn.Parameter]

    def step(self, learning_rate: float) -> None:
        """Update every parameter that has a gradient, then drop the gradients."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything but the parameters that the next step depends on; tensors are shared, not copied.

        A name ends in the position of the parameter it belongs to: ``"first.3"``.
        """

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where the optimizer that gave ``state`` stood."""
