"""Parameters in groups that learn at different rates."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from trainer.optim.protocol import Optimizer


class Groups:
    """Optimizers of some parameters each, as one of all: each steps at its factor times the rate."""

    def __init__(self, parts: Sequence[tuple[Optimizer, float]]) -> None:
        self._parts = tuple(parts)
        self.parameters = [parameter for optimizer, _ in parts for parameter in optimizer.parameters]

    def step(self, learning_rate: float) -> None:
        """Update every parameter that has a gradient, then drop the gradients."""
        for optimizer, factor in self._parts:
            optimizer.step(learning_rate * factor)

    def state_dict(self) -> dict[str, Tensor]:
        """The states of all, by the position of their parameter among those of all: however they are grouped."""
        state: dict[str, Tensor] = {}
        first = 0
        for optimizer, _ in self._parts:
            for name, tensor in optimizer.state_dict().items():
                kind, _, place = name.rpartition(".")
                state[f"{kind}.{first + int(place)}"] = tensor
            first += len(optimizer.parameters)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where the optimizer that gave ``state`` stood."""
        first = 0
        for optimizer, _ in self._parts:
            own: dict[str, Tensor] = {}
            for name, tensor in state.items():
                kind, _, place = name.rpartition(".")
                if 0 <= int(place) - first < len(optimizer.parameters):
                    own[f"{kind}.{int(place) - first}"] = tensor
            optimizer.load_state_dict(own)
            first += len(optimizer.parameters)
