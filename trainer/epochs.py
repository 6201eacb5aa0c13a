"""A fit under way: one epoch after the other, and all that the next one depends on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice

import torch
from torch import Tensor

from cachestore.errors import DataError, TrainingDiverged, UsageError
from trainer.batches import Batches, bounds
from trainer.full_batch import FullBatch
from trainer.metrics import COMBINED, better
from trainer.model import Model
from trainer.optim import Clipping, Gradients, Lbfgs, Optimizer, Penalty, Plateau, Schedule
from trainer.precision import Scaler, autocast, half
from trainer.resume import ResumeState
from trainer.strategies import Strategy
from trainer.tally import Metrics, Tally


@dataclass(frozen=True)
class FitSettings:
    """How ``fit`` trains; every value is resolved.

    ``steps`` ends training within an epoch; without it there are ``epochs``. One step of the optimizer takes the
    gradients of ``accumulation`` batches.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    validation_field: str
    validation_metric: str
    eval_batch_size: int | None = None
    schedule: Schedule = field(default_factory=Schedule)
    plateau: Plateau | None = None
    clipping: Clipping = field(default_factory=Clipping)
    penalty: Penalty = field(default_factory=Penalty)
    accumulation: int = 1
    steps: int | None = None
    early_stop: int = 5
    mixed_precision: bool = False
    evaluate_training_set: bool = False
    seed: int = 42


@dataclass
class _Counters:
    """What a fit has done so far, without its tensors."""

    epoch: int = 0
    best_epoch: int = 0
    best_value: float = math.nan
    best_metrics: Mapping[str, Metrics] = field(default_factory=dict)
    slowed: float = 1.0  # by plateaus
    slowings: int = 0
    plateau_epoch: int = 0
    plateau_value: float = math.nan


class Fit:
    """A fit under way: what it has done and what the next epoch depends on."""

    def __init__(
        self,
        model: Model,
        train: Batches,
        optimizer: Optimizer | Lbfgs,
        settings: FitSettings,
        strategy: Strategy | None = None,
    ) -> None:
        self._model, self._train, self._optimizer, self._settings = model, train, optimizer, settings
        self._strategy = strategy
        lengths = [stop - start for start, stop in bounds(train.rows, settings.batch_size)]
        every = settings.accumulation
        groups = [lengths[first : first + every] for first in range(0, len(lengths), every)]
        # of one step's loss, what each of its batches counts
        self._shares = [length / sum(group) for group in groups for length in group] if every > 1 else []
        self.per_epoch = 1 if isinstance(optimizer, Lbfgs) else len(groups)
        self.steps = settings.epochs * self.per_epoch if settings.steps is None else settings.steps
        self.epochs = -(-self.steps // self.per_epoch)
        self.rate = settings.schedule.over(self.steps, self.per_epoch, settings.learning_rate)
        self.gradients = Gradients(optimizer.parameters, settings.penalty, settings.clipping)
        scaled = settings.mixed_precision and half(train.device) == torch.float16
        self._scaler = Scaler(train.device) if scaled else None
        self._order = torch.Generator().manual_seed(settings.seed)
        self.best: dict[str, Tensor] = {}
        self.done = _Counters()

    def over(self) -> bool:
        """Whether there is no epoch left to do."""
        waited = self.done.epoch - self.done.best_epoch if self.best else 0
        settled = isinstance(self._optimizer, Lbfgs) and self._optimizer.converged
        return self.done.epoch >= self.epochs or 0 <= self._settings.early_stop <= waited > 0 or settled

    def train_epoch(self) -> tuple[Tally | None, float, int]:
        """The losses of the epoch, None where each step sees all rows; the rate of its last step; how many steps it had."""
        if isinstance(self._optimizer, Lbfgs):
            rate = self.done.slowed * self.rate(self.done.epoch - 1)
            objective = FullBatch(self._model, self._train, self._settings.batch_size, self._settings.penalty)
            self._optimizer.step(rate, objective)
            if not objective.finite:
                raise diverged(self.done.epoch, objective.passes, rate)
            return None, rate, objective.passes
        first = (self.done.epoch - 1) * self.per_epoch
        steps = min(self.per_epoch, self.steps - first)
        return *self._pass(self._optimizer, first, steps), steps

    def _pass(self, optimizer: Optimizer, first: int, steps: int) -> tuple[Tally, float]:
        model, settings, every, device = self._model, self._settings, self._settings.accumulation, self._train.device
        tally = Tally(model)
        rates: list[float] = []  # by batch
        model.train()
        batches = self._train.shuffled(settings.batch_size, self._order)
        for batch in islice(batches, steps * every) if steps < self.per_epoch else batches:
            place = len(rates)
            rates.append(self.done.slowed * self.rate(first + place // every))
            with autocast(device, settings.mixed_precision):
                output = model(batch)
            loss = output.loss if every == 1 else output.loss * self._shares[place]
            (loss if self._scaler is None else self._scaler.scaled(loss)).backward()
            if every == 1 or len(rates) % every == 0 or len(rates) == len(self._shares):
                if self._scaler is None or self._scaler.unscale(optimizer.parameters):
                    self.gradients.settle()
                    optimizer.step(rates[-1])
                else:
                    model.zero_grad()
            if tally.add(output, batch):
                _check(tally, self.done.epoch, rates)
        _check(tally, self.done.epoch, rates)
        return tally, rates[-1]

    def judge(self, metrics: Mapping[str, Metrics]) -> None:
        """Keep the weights if they are the best so far, and slow down where the metrics stand still."""
        if "validation" in metrics:
            value = _value(metrics["validation"], self._settings)
            if better(self._settings.validation_metric, value, self.done.best_value if self.best else None):
                self.best = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
                self.done.best_epoch, self.done.best_value, self.done.best_metrics = self.done.epoch, value, metrics
        else:
            self.done.best_epoch, self.done.best_metrics = self.done.epoch, metrics
        if (plateau := self._settings.plateau) is not None:
            found = metrics[plateau.split]
            whole = found.get(COMBINED) or next(iter(found.values()))
            value = (whole if plateau.metric == "loss" else found[self._settings.validation_field])[plateau.metric]
            if better(plateau.metric, value, self.done.plateau_value if self.done.plateau_epoch else None):
                self.done.plateau_epoch, self.done.plateau_value = self.done.epoch, value
            elif self.done.epoch - self.done.plateau_epoch > plateau.patience and self.done.slowings < plateau.times:
                self.done.slowed, self.done.slowings = self.done.slowed * plateau.factor, self.done.slowings + 1
                self.done.plateau_epoch = self.done.epoch

    def state(self) -> ResumeState:
        """All that the next epoch depends on; tensors are shared, not copied."""
        groups: dict[str, Mapping[str, Tensor]] = {
            "model": self._model.state_dict(),
            "best": self.best,
            "optimizer": self._optimizer.state_dict(),
            "scaler": {} if self._scaler is None else self._scaler.state_dict(),
            "generator": {"order": self._order.get_state(), "cpu": torch.get_rng_state()},
        }
        if torch.cuda.is_available():
            groups["generator"] = {**groups["generator"], "cuda": torch.cuda.get_rng_state()}
        return ResumeState(asdict(self.done), groups)

    def load(self, state: ResumeState) -> None:
        """Stand where the fit stood that gave ``state``. Raises UsageError where that had a GPU and this has none, or the reverse."""
        had, has = "cuda" in state.tensors["generator"], torch.cuda.is_available()
        if had != has:
            where, here = ("a GPU", "there is none") if had else ("the CPU", "here is a GPU")
            raise UsageError(f"The run was trained on {where}, and {here}. Go on where it was trained, or train again.")
        self.done = _Counters(**state.counters)
        groups = state.tensors
        self._model.load_state_dict(dict(groups["model"]))
        self.best = dict(groups["best"])
        self._optimizer.load_state_dict(dict(groups["optimizer"]))
        if self._scaler is not None:
            self._scaler.load_state_dict(dict(groups["scaler"]))
        self._order.set_state(groups["generator"]["order"])
        torch.set_rng_state(groups["generator"]["cpu"])
        if has:
            torch.cuda.set_rng_state(groups["generator"]["cuda"])


def _value(metrics: Metrics, settings: FitSettings) -> float:
    value = metrics[settings.validation_field][settings.validation_metric]
    if math.isnan(value):
        raise DataError(
            f"{settings.validation_metric} of {settings.validation_field!r} is undefined on the validation rows: their "
            "targets are all the same. Set another trainer.validation_metric, such as loss, or split differently."
        )
    return value


def _check(tally: Tally, epoch: int, rates: list[float]) -> None:
    step = tally.first_bad_step()
    if step is not None:
        raise diverged(epoch, step + 1, rates[step])


def diverged(epoch: int, step: int, rate: float) -> TrainingDiverged:
    return TrainingDiverged(
        f"The loss is not finite at epoch {epoch}, step {step} of it, at learning rate {rate:g}. "
        "Set a lower trainer.learning_rate, or a normalization for number features with very large values."
    )
