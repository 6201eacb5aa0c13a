"""Losses and metrics of a pass over the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from trainer.batches import Batch
from trainer.metrics import COMBINED
from trainer.model import Model, Output

Metrics: TypeAlias = dict[str, dict[str, float]]  # output feature → metric → value

_PENDING_SCORES = 1 << 22  # scores kept before they are reduced to what the metrics need: 16 MiB


class Tally:
    """Losses and predictions of a pass over the data, kept on the device and read once at its end.

    Scores wait unreduced, which costs a step nothing, until there are many of them.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._pending: list[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]] = []
        self._pending_scores = 0
        self._observed: dict[str, list[dict[str, Tensor]]] = {name: [] for name in model.outputs}
        self._losses: dict[str, list[Tensor]] = {name: [] for name in model.outputs}
        self._weights: dict[str, list[Tensor | int]] = {name: [] for name in model.outputs}
        self._totals: list[Tensor] = []

    def add(self, output: Output, batch: Batch) -> bool:
        """Take one batch; returns whether the scores that waited were reduced now, a good moment to look at losses."""
        assert output.loss is not None  # a batch without targets is a bug of the caller
        self._totals.append(output.loss.detach())
        for name, loss in output.losses.items():
            self._losses[name].append(loss.detach())
        scores = {name: tensor.detach() for name, tensor in output.scores.items()}
        self._pending.append((scores, batch.targets))
        self._pending_scores += sum(tensor.numel() for tensor in scores.values())
        if self._pending_scores < _PENDING_SCORES:
            return False
        self._reduce()
        return True

    def first_bad_step(self) -> int | None:
        """The first step, from 0, whose loss is NaN or infinite."""
        bad = (~torch.isfinite(torch.stack(self._totals))).nonzero()
        return int(bad[0].item()) if len(bad) else None

    def metrics(self) -> Metrics:
        """Of every output feature: its loss over all rows, however they were batched, and its decoder's metrics."""
        self._reduce()
        found: Metrics = {}
        for name, parts in self._observed.items():
            observed = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
            found[name] = {"loss": self._loss(name), **self._model.decoder(name).metrics(observed)}
        if len(found) > 1:
            losses = (found[name]["loss"] * weight for name, weight in self._model.weights.items())
            found[COMBINED] = {"loss": sum(losses, 0.0)}
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """All that was added, by the position of its output feature."""
        self._reduce()
        state = {"totals": torch.stack(self._totals)} if self._totals else {}
        for place, (name, parts) in enumerate(self._observed.items()):
            if parts:
                state[f"{place}.losses"] = torch.stack(self._losses[name])
                state[f"{place}.weights"] = _stacked(self._weights[name])
                state.update({f"{place}.observed.{key}": torch.cat([part[key] for part in parts]) for key in parts[0]})
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where the tally that gave ``state`` stood."""
        self._totals = list(state["totals"].unbind()) if state else []
        for place, name in enumerate(self._observed):
            own = {
                key.removeprefix(f"{place}."): tensor for key, tensor in state.items() if key.startswith(f"{place}.")
            }
            self._losses[name] = list(own.pop("losses").unbind()) if own else []
            self._weights[name] = list(own.pop("weights").unbind()) if own else []
            observed = {key.removeprefix("observed."): tensor for key, tensor in own.items()}
            self._observed[name] = [observed] if observed else []

    def _loss(self, name: str) -> float:
        losses = torch.stack(self._losses[name]).double().cpu()
        return self._model.decoder(name).joined_loss(losses, _stacked(self._weights[name]).cpu())

    def _reduce(self) -> None:
        if self._pending:
            for name, observed in self._observed.items():
                decoder = self._model.decoder(name)
                self._weights[name] += [decoder.loss_weight(targets[name]) for _, targets in self._pending]
                scores = torch.cat([scores[name] for scores, _ in self._pending])
                targets = torch.cat([targets[name] for _, targets in self._pending])
                observed.append(decoder.observe(scores, targets))
            self._pending.clear()
            self._pending_scores = 0


def _stacked(weights: Sequence[Tensor | int]) -> Tensor:
    """(weights,) float64, on the device of those that have one: a tally that goes on has tensors where others have numbers."""
    device = next((each.device for each in weights if isinstance(each, Tensor)), None)
    return torch.stack([torch.as_tensor(each, dtype=torch.float64, device=device) for each in weights])
