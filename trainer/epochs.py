"""A fit under way: one epoch after the other, and all that the next one depends on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice

import torch
from torch import Tensor

from cachestore.errors import DataError, UsageError
from trainer.batches import Batches, bounds
from trainer.full_batch import FullBatch
from trainer.live.steps import LiveSteps, StepDone, diverged, out_of_memory
from trainer.metrics import COMBINED, better, once
from trainer.model import Model
from trainer.moving import Moving
from trainer.optim import Clipping, Gradients, Lbfgs, Optimizer, Penalty, Plateau, Schedule
from trainer.precision import Scaler, autocast, half
from trainer.resume import ResumeState
from trainer.strategies import Strategy, trained_of
from trainer.strategies.ranks import ALONE
from trainer.tally import Metrics, Tally


@dataclass(frozen=True)
class FitSettings:
    """How ``fit`` trains; every value is resolved.

    ``steps`` ends training within an epoch; without it there are ``epochs``. One step of the optimizer takes the
    gradients of ``accumulation`` batches. ``encoder_rates``: by input whose encoder is trained, the learning rate of it.
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
    encoder_rates: Mapping[str, float] = field(default_factory=dict)

    @property
    def encoder_factors(self) -> dict[str, float]:
        """By input whose encoder learns at another rate than the rest, that rate as a multiple of ``learning_rate``."""
        base = self.learning_rate
        return {name: rate / base for name, rate in self.encoder_rates.items() if rate != base}


@dataclass
class _Counters:
    """What a fit has done so far, without its tensors."""

    epoch: int = 0
    batch: int = 0  # batches of the epoch that is under way
    best_epoch: int = 0
    best_value: float = math.nan
    best_metrics: Mapping[str, Metrics] = field(default_factory=dict)
    slowed: float = 1.0  # by plateaus
    slowings: int = 0
    plateau_epoch: int = 0
    plateau_value: float = math.nan


class Fit:
    """A fit under way: what it has done and what the next epoch depends on.

    Where encoders run in the loop, ``on_step`` is told of every step, and ``pause`` is called after it with a function that
    gives the state to go on from within the epoch.
    """

    def __init__(
        self,
        model: Model,
        train: Batches,
        optimizer: Optimizer | Lbfgs,
        settings: FitSettings,
        strategy: Strategy | None = None,
        on_step: Callable[[StepDone], None] | None = None,
        pause: Callable[[Callable[[], ResumeState]], None] | None = None,
    ) -> None:
        self._model, self._train, self._optimizer, self._settings = model, train, optimizer, settings
        lengths = [stop - start for start, stop in bounds(train.rows, settings.batch_size)]
        every = settings.accumulation
        groups = [lengths[first : first + every] for first in range(0, len(lengths), every)]
        # of one step's loss, what each of its batches counts
        self._shares = [length / sum(group) for group in groups for length in group] if every > 1 else []
        self.per_epoch = 1 if isinstance(optimizer, Lbfgs) else len(groups)
        self.steps = settings.epochs * self.per_epoch if settings.steps is None else settings.steps
        self.epochs = -(-self.steps // self.per_epoch)
        self.rate = settings.schedule.over(self.steps, self.per_epoch, settings.learning_rate)
        self._ranks = ALONE if strategy is None else strategy.ranks
        trained = trained_of(model) if strategy is None else strategy.trained(model)
        self._moving = Moving(model, trained, self._ranks)
        live = strategy if model.live else None
        self._live = None if live is None else LiveSteps(model, live, self.steps, settings.encoder_factors, on_step)
        self._pause = pause
        self.gradients = Gradients(
            optimizer.parameters,
            settings.penalty,
            settings.clipping,
            sharded=self._moving.sharded,
            total=self._ranks.sum if self._ranks.world > 1 else None,
            measured=live is not None,
        )
        scaled = settings.mixed_precision and half(train.device) == torch.float16
        self._scaler = Scaler(train.device, agreed=self._ranks.sum) if scaled else None
        self._order = torch.Generator().manual_seed(settings.seed)
        self._seen: Mapping[str, Tensor] = {}  # the tally of an epoch that was stopped within
        self.best: dict[str, Tensor] = {}
        self.done = _Counters()

    def over(self) -> bool:
        """Whether there is no epoch left to do."""
        waited = self.done.epoch - self.done.best_epoch if self.best else 0
        settled = isinstance(self._optimizer, Lbfgs) and self._optimizer.converged
        return self.done.epoch >= self.epochs or 0 <= self._settings.early_stop <= waited > 0 or settled

    def train_epoch(self) -> tuple[Tally | None, float, int]:
        """The losses of the epoch, None where each step sees all rows; the rate of its last step; how many steps were made."""
        if isinstance(self._optimizer, Lbfgs):
            rate = self.done.slowed * self.rate(self.done.epoch - 1)
            objective = FullBatch(self._model, self._train, self._settings.batch_size, self._settings.penalty)
            self._optimizer.step(rate, objective)
            if not objective.finite:
                raise diverged(self.done.epoch, objective.passes, rate, self._settings.encoder_factors)
            return None, rate, objective.passes
        first = (self.done.epoch - 1) * self.per_epoch
        steps = min(self.per_epoch, self.steps - first)
        made = steps - self.done.batch // self._settings.accumulation
        try:
            return *self._pass(self._optimizer, first, steps), made
        except RuntimeError as error:
            if self._live is not None and out_of_memory(error):
                raise self._live.too_large(self.done.epoch, mixed_precision=self._settings.mixed_precision) from error
            raise

    def _pass(self, optimizer: Optimizer, first: int, steps: int) -> tuple[Tally, float]:
        model, settings, every, device = self._model, self._settings, self._settings.accumulation, self._train.device
        live, done = self._live, self.done.batch
        tally = Tally(model)
        tally.load_state_dict(self._seen)
        rates = [self.done.slowed * self.rate(first + place // every) for place in range(done)]  # by batch
        before = self._order.get_state()
        model.train()
        batches = self._train.shuffled(settings.batch_size, self._order)
        for batch in islice(batches, done, steps * every if steps < self.per_epoch else None):
            place = len(rates)
            step = first + place // every
            rates.append(self.done.slowed * self.rate(step))
            last = every == 1 or len(rates) % every == 0 or len(rates) == len(self._shares)
            if live is not None:
                live.begin(batch, last)
            with autocast(device, settings.mixed_precision):
                output = model(batch)
            loss = output.loss if every == 1 else output.loss * self._shares[place]
            if live is not None:
                share = 1.0 if every == 1 else self._shares[place]
                loss = live.checked(loss, share, self.done.epoch, step - first, rates[-1])
            (loss if self._scaler is None else self._scaler.scaled(loss)).backward()
            if last:
                if live is not None:
                    live.settle()
                if self._scaler is None or self._scaler.unscale(optimizer.parameters):
                    norm = self.gradients.settle()
                    if live is None:
                        optimizer.step(rates[-1])
                    else:
                        live.step(optimizer, norm, self.done.epoch, step, step - first, rates[-1])
                else:
                    for parameter in optimizer.parameters:
                        parameter.grad = None
            if tally.add(output, batch):
                self._check(tally, rates)
            if last and self._pause is not None and live is not None:
                self.done.batch = len(rates)
                self._pause(lambda: self._state_within(before, tally))
        self._check(tally, rates)
        self.done.batch, self._seen = 0, {}
        return tally, rates[-1]

    def _check(self, tally: Tally, rates: Sequence[float]) -> None:
        step = tally.first_bad_step()
        if step is not None:
            raise diverged(self.done.epoch, step + 1, rates[step], self._settings.encoder_factors)

    def judge(self, metrics: Mapping[str, Metrics]) -> None:
        """Keep the weights if they are the best so far, and slow down where the metrics stand still."""
        if "validation" in metrics:
            # rank 0's: the last bits of a GPU's sums differ from one to another, and all must go on alike
            value = self._ranks.first(_value(metrics["validation"], self._settings))
            if better(self._settings.validation_metric, value, self.done.best_value if self.best else None):
                for name, tensor in self._moving.tensors().items():
                    # in place of the best before, so that there are never three copies
                    self.best[name] = self.best[name].copy_(tensor) if name in self.best else tensor.clone()
                self.done.best_epoch, self.done.best_value, self.done.best_metrics = self.done.epoch, value, metrics
        else:
            self.done.best_epoch, self.done.best_metrics = self.done.epoch, metrics
        if (plateau := self._settings.plateau) is not None:
            found = metrics[plateau.split]
            whole = found.get(COMBINED) or next(iter(found.values()))
            value = (whole if plateau.metric == "loss" else found[self._settings.validation_field])[plateau.metric]
            value = self._ranks.first(value)
            if better(plateau.metric, value, self.done.plateau_value if self.done.plateau_epoch else None):
                self.done.plateau_epoch, self.done.plateau_value = self.done.epoch, value
            elif self.done.epoch - self.done.plateau_epoch > plateau.patience and self.done.slowings < plateau.times:
                self.done.slowed, self.done.slowings = self.done.slowed * plateau.factor, self.done.slowings + 1
                self.done.plateau_epoch = self.done.epoch

    def keep_best(self) -> None:
        """Give the model the weights of the best epoch, where one was chosen."""
        if self.best:
            self._moving.load(self.best)

    def state(self) -> ResumeState:
        """All that the next epoch depends on; tensors are shared, not copied."""
        return self._state(self._order.get_state(), asdict(self.done), {})

    def _state_within(self, order: Tensor, tally: Tally) -> ResumeState:
        """All that the rest of this epoch depends on, which began with ``order``."""
        return self._state(order, {**asdict(self.done), "epoch": self.done.epoch - 1}, tally.state_dict())

    def _state(self, order: Tensor, counters: dict[str, object], seen: Mapping[str, Tensor]) -> ResumeState:
        groups: dict[str, Mapping[str, Tensor]] = {
            "scaler": {} if self._scaler is None else self._scaler.state_dict(),
            "generator": {"order": order, "cpu": torch.get_rng_state()},
            "tally": seen,
            "adapters": {} if self._live is None else self._live.adapter_state(),
        }
        if torch.cuda.is_available():
            groups["generator"] = {**groups["generator"], "cuda": torch.cuda.get_rng_state()}
        rows: dict[str, Mapping[str, Tensor]] = {}
        groups["model"], rows["model"] = self._moving.split(self._moving.tensors())
        groups["best"], rows["best"] = self._moving.split(self.best)
        state = self._moving.split_state(self._optimizer.state_dict(), self._optimizer.parameters)
        groups["optimizer"], rows["optimizer"] = state
        return ResumeState(counters, groups, rows if self._moving.sharded else {})

    def load(self, state: ResumeState) -> None:
        """Stand where the fit stood that gave ``state``. Raises UsageError where that had a GPU and this has none, or the reverse."""
        had, has = "cuda" in state.tensors["generator"], torch.cuda.is_available()
        if had != has:
            where, here = ("a GPU", "there is none") if had else ("the CPU", "here is a GPU")
            raise UsageError(f"The run was trained on {where}, and {here}. Go on where it was trained, or train again.")
        self.done = _Counters(**state.counters)
        groups = {
            group: (state.tensors.get(group, {}), state.rows.get(group, {})) for group in ("model", "best", "optimizer")
        }
        self._moving.load(self._moving.joined(*groups["model"]))
        now = self._moving.tensors()  # which need not all be on one device
        self.best = {
            name: tensor.to(now[name].device, copy=True)
            for name, tensor in self._moving.joined(*groups["best"]).items()
        }
        parameters = self._optimizer.parameters
        self._optimizer.load_state_dict(self._moving.joined_state(*groups["optimizer"], parameters))
        if self._scaler is not None:
            self._scaler.load_state_dict(dict(state.tensors["scaler"]))
        if self._live is not None:
            self._live.load_adapter_state(state.tensors.get("adapters", {}))
        self._seen = {name: tensor.to(self._train.device) for name, tensor in state.tensors.get("tally", {}).items()}
        self._order.set_state(state.tensors["generator"]["order"])
        torch.set_rng_state(state.tensors["generator"]["cpu"])
        if has:
            torch.cuda.set_rng_state(state.tensors["generator"]["cuda"])


def require_defined(model: Model, validation: Batches, field: str, metric: str) -> None:
    """Raises DataError when a metric is undefined on the validation rows whatever is predicted of them."""
    if metric == "loss":
        return
    decoder, targets = model.decoder(field).eval(), validation.targets[field]
    with torch.no_grad():
        row = decoder(torch.zeros(1, decoder.input_dim, device=targets.device))
        scores = row.expand(len(targets), *row.shape[1:])
        value = decoder.measure(
            decoder.observe(scores, targets, [metric]), [metric], once(len(targets), targets.device)
        )
    if bool(value[metric].isnan()):
        raise _undefined(field, metric)


def _value(metrics: Metrics, settings: FitSettings) -> float:
    value = metrics[settings.validation_field][settings.validation_metric]
    if math.isnan(value):
        raise _undefined(settings.validation_field, settings.validation_metric)
    return value


def _undefined(field: str, metric: str) -> DataError:
    return DataError(
        f"{metric} of {field!r} is undefined on the validation rows: their targets are all the same. Set another "
        "trainer.validation_metric, such as loss, or split differently."
    )
