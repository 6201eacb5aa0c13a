"""L-BFGS (Liu and Nocedal 1989), for losses that are the same at the same weights: all rows at once, no dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim.lbfgs import _strong_wolfe

_LEAST_CURVATURE: Final = 1e-10


class Lbfgs:
    """Minimises an objective by the curvature that its last ``history_size`` gradients show.

    The steps are those of ``torch.optim.LBFGS``, whose construction would import torch._dynamo. ``line_search``: by the
    strong Wolfe conditions, from the learning rate on; otherwise every step has the length of the learning rate.
    ``converged`` once the gradient or the progress fell below its tolerance.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search: bool = True,
    ) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.converged = False
        self._max_iter, self._max_eval = max_iter, max_iter * 5 // 4 if max_eval is None else max_eval
        self._tolerance_grad, self._tolerance_change = tolerance_grad, tolerance_change
        self._history_size, self._line_search = history_size, line_search
        self._gradient_changes: list[Tensor] = []
        self._weight_changes: list[Tensor] = []
        self._curvatures: list[Tensor] = []  # 1 / (gradient change · weight change)
        self._scale: Tensor | None = None  # of the first guess of the inverse Hessian
        self._direction: Tensor | None = None
        self._gradient: Tensor | None = None
        self._length = 0.0

    @torch.no_grad()
    def step(self, learning_rate: float, objective: Callable[[], float]) -> None:
        """Up to ``max_iter`` iterations. ``objective`` returns the loss at the weights as they are and sets their gradients."""
        loss = objective()
        gradient = self._flat_gradient()
        evaluations = 1
        if gradient.abs().max() <= self._tolerance_grad:
            self.converged = True
            return
        for iteration in range(1, self._max_iter + 1):
            first = self._gradient is None
            direction = self._next_direction(gradient)
            self._direction, self._gradient = direction, gradient.clone()
            before = loss
            length: Any = learning_rate * (min(1.0, float(1.0 / gradient.abs().sum())) if first else 1.0)
            self._length = float(length)
            slope = gradient.dot(direction)
            if slope > -self._tolerance_change:
                self.converged = True
                return
            if self._line_search:
                loss, gradient, length, searched = _strong_wolfe(  # type: ignore[no-untyped-call]
                    self._along(objective),
                    [parameter.clone() for parameter in self.parameters],
                    length,
                    direction,
                    loss,
                    gradient,
                    slope,
                    max_ls=self._max_eval - evaluations,
                )
                evaluations += searched
                self._length = float(length)
                self._move(length, direction)
            else:
                self._move(length, direction)
                if iteration == self._max_iter:
                    return
                loss, gradient, evaluations = objective(), self._flat_gradient(), evaluations + 1
            self.converged = bool(
                gradient.abs().max() <= self._tolerance_grad
                or direction.mul(length).abs().max() <= self._tolerance_change
                or abs(loss - before) < self._tolerance_change
            )
            if self.converged or evaluations >= self._max_eval:
                return

    def state_dict(self) -> dict[str, Tensor]:
        """What the next step depends on; tensors are shared, not copied."""
        history = {
            "gradient_change": self._gradient_changes,
            "weight_change": self._weight_changes,
            "curvature": self._curvatures,
        }
        state = {f"{name}.{i}": tensor for name, tensors in history.items() for i, tensor in enumerate(tensors)}
        state["length"] = torch.tensor(self._length, dtype=torch.float64)
        state["converged"] = torch.tensor(self.converged)
        single = {"scale": self._scale, "direction": self._direction, "gradient": self._gradient}
        return {**state, **{name: tensor for name, tensor in single.items() if tensor is not None}}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where the optimizer that gave ``state`` stood."""

        def placed(name: str) -> Tensor:
            return state[name].to(self.parameters[0].device, copy=True)

        def listed(name: str) -> list[Tensor]:
            count = sum(key.startswith(f"{name}.") for key in state)
            return [placed(f"{name}.{i}") for i in range(count)]

        def one(name: str) -> Tensor | None:
            return placed(name) if name in state else None

        self._gradient_changes, self._weight_changes = listed("gradient_change"), listed("weight_change")
        self._curvatures = listed("curvature")
        self._scale, self._direction, self._gradient = one("scale"), one("direction"), one("gradient")
        self._length, self.converged = float(state["length"]), bool(state["converged"])

    def _next_direction(self, gradient: Tensor) -> Tensor:
        if self._gradient is None or self._direction is None:
            return gradient.neg()
        gradient_change = gradient.sub(self._gradient)
        weight_change = self._direction.mul(self._length)
        curvature = gradient_change.dot(weight_change)
        if curvature > _LEAST_CURVATURE:
            if len(self._curvatures) == self._history_size:
                for history in (self._gradient_changes, self._weight_changes, self._curvatures):
                    history.pop(0)
            self._gradient_changes.append(gradient_change)
            self._weight_changes.append(weight_change)
            self._curvatures.append(1.0 / curvature)
            self._scale = curvature / gradient_change.dot(gradient_change)
        return self._times_inverse_hessian(gradient.neg())

    def _times_inverse_hessian(self, vector: Tensor) -> Tensor:
        """By the two loops of Nocedal 1980."""
        history: Sequence[tuple[Tensor, Tensor, Tensor]] = list(
            zip(self._gradient_changes, self._weight_changes, self._curvatures, strict=True)
        )
        shares: list[Tensor] = []
        for gradient_change, weight_change, curvature in reversed(history):
            shares.append(weight_change.dot(vector) * curvature)
            vector.add_(gradient_change, alpha=-shares[-1])  # type: ignore[arg-type]
        if self._scale is not None:
            vector = torch.mul(vector, self._scale)
        for (gradient_change, weight_change, curvature), share in zip(history, reversed(shares), strict=True):
            vector.add_(weight_change, alpha=share - gradient_change.dot(vector) * curvature)  # type: ignore[arg-type]
        return vector

    def _along(self, objective: Callable[[], float]) -> Callable[[list[Tensor], Any, Tensor], tuple[float, Tensor]]:
        def at(start: list[Tensor], length: Any, direction: Tensor) -> tuple[float, Tensor]:
            self._move(length, direction)
            found = objective(), self._flat_gradient()
            for parameter, value in zip(self.parameters, start, strict=True):
                parameter.copy_(value)
            return found

        return at

    def _move(self, length: Any, direction: Tensor) -> None:
        parts = torch.split(direction, [parameter.numel() for parameter in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.add_(part.view_as(parameter), alpha=length)

    def _flat_gradient(self) -> Tensor:
        return torch.cat(
            [
                torch.zeros_like(parameter).view(-1) if parameter.grad is None else parameter.grad.reshape(-1)
                for parameter in self.parameters
            ]
        )
