"""The loss over all training rows and its gradient, as L-BFGS minimises it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainer.batches import Batches
from trainer.model import Model
from trainer.optim import Gradients, Penalty


class FullBatch:
    """The objective of ``model`` on ``train``: each output's loss over all rows, weighted and summed, and ``penalty``.

    Calling it gives its value and sets the gradients; rows pass ``rows_at_once``, which changes losses that are means over
    rows by rounding only.
    ``passes`` counts calls; ``finite`` until one gave a loss that is not.
    """

    def __init__(self, model: Model, train: Batches, rows_at_once: int, penalty: Penalty) -> None:
        self.passes, self.finite = 0, True
        self._model, self._train, self._rows, self._penalty = model, train, rows_at_once, penalty
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._gradients = Gradients(self._parameters, penalty)
        self._totals: dict[str, Tensor] = {
            name: torch.as_tensor(model.decoder(name).loss_weight(train.targets[name])).double()
            for name in model.outputs
        }

    @torch.enable_grad()
    def __call__(self) -> float:
        self.passes += 1
        model = self._model
        model.zero_grad()
        model.train()
        value = self._penalty.value(self._parameters)
        for batch in self._train.in_order(self._rows):
            losses = model(batch).losses
            parts = []
            for name in model.outputs:
                share = torch.as_tensor(model.decoder(name).loss_weight(batch.targets[name])) / self._totals[name]
                parts.append(losses[name].double() * (share * model.weights[name]))
            loss = torch.stack(parts).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            value = value + loss.detach().cpu()
        self._gradients.settle()
        found = float(value)
        self.finite = self.finite and math.isfinite(found)
        return found
