"""Parameters in groups that learn at different rates."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from trainer.optim.protocol import Optimizer


class Groups:
    """Optimizers of some of ``parameters`` each, as one of all: each steps at its factor times the rate."""

    def __init__(self, parameters: Sequence[nn.Parameter], parts: Sequence[tuple[Optimizer, float]]) -> None:
        self._parts = tuple(parts)
        self.parameters = list(parameters)
        place = {id(parameter): place for place, parameter in enumerate(parameters)}
        self._places = [[place[id(parameter)] for parameter in optimizer.parameters] for optimizer, _ in parts]

    def step(self, learning_rate: float) -> None:
        """Update every parameter that has a gradient, then drop the gradients."""
        for optimizer, factor in self._parts:
            optimizer.step(learning_rate * factor)

    def state_dict(self) -> dict[str, Tensor]:
        """The states of all, by the position of their parameter among those of all: however they are grouped."""
        state: dict[str, Tensor] = {}
        for (optimizer, _), places in zip(self._parts, self._places, strict=True):
            for name, tensor in optimizer.state_dict().items():
                kind, _, own = name.rpartition(".")
                state[f"{kind}.{places[int(own)]}"] = tensor
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where the optimizer that gave ``state`` stood."""
        for (optimizer, _), places in zip(self._parts, self._places, strict=True):
            own: dict[str, Tensor] = {}
            for name, tensor in state.items():
                kind, _, place = name.rpartition(".")
                if int(place) in places:
                    own[f"{kind}.{places.index(int(place))}"] = tensor
            optimizer.load_state_dict(own)
