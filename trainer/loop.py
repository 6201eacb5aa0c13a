"""The loop: fit, evaluate and predict, as plain functions over batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from cachestore.errors import DataError, TrainingDiverged
from trainer.batches import Batch, CachedBatches, bounds
from trainer.metrics import COMBINED, better
from trainer.model import Model, Output
from trainer.optim import Decay, Optimizer, learning_rate_at

Metrics: TypeAlias = dict[str, dict[str, float]]  # output feature → metric → value

_EVALUATION_ROWS = 1024
_SHARED_FLOP = 100_000_000  # of one step, forward and backward
_PENDING_SCORES = 1 << 22  # scores kept before they are reduced to what the metrics need: 16 MiB


@dataclass(frozen=True)
class FitSettings:
    """How ``fit`` trains; every value is resolved."""

    epochs: int
    batch_size: int
    learning_rate: float
    validation_field: str
    validation_metric: str
    eval_batch_size: int | None = None
    warmup_fraction: float = 0.0
    decay: Decay | None = None
    early_stop: int = 5
    mixed_precision: bool = False
    evaluate_training_set: bool = False
    seed: int = 42


@dataclass(frozen=True)
class EpochDone:
    """One epoch is over: its number from 1, the metrics of each split evaluated, and the step rate over its steps."""

    epoch: int
    epochs: int
    metrics: Mapping[str, Metrics]
    learning_rate: float
    steps_per_second: float
    seconds: float
    best: bool


@dataclass(frozen=True)
class FitResult:
    """What ``fit`` did. The model holds the weights of ``best_epoch``: the last one when there was no validation."""

    epochs: int
    best_epoch: int
    seconds: float


def fit(
    model: Model,
    train: CachedBatches,
    validation: CachedBatches | None,
    *,
    optimizer: Optimizer,
    settings: FitSettings,
    on_epoch: Callable[[EpochDone], None],
) -> FitResult:
    """Train until the epochs are done or ``early_stop`` epochs in a row brought no better validation metric.

    Training metrics are those of the predictions made while the weights moved, unless ``evaluate_training_set``.
    Raises TrainingDiverged naming epoch, step and learning rate; DataError when the validation metric is undefined.
    """
    began = time.perf_counter()
    per_epoch = len(bounds(train.rows, settings.batch_size))
    order = torch.Generator().manual_seed(settings.seed)
    best: _Best | None = None
    epoch = 0
    flop = 6 * settings.batch_size * sum(parameter.numel() for parameter in optimizer.parameters)
    with (
        _threads(flop),
        seeded(settings.seed),
    ):  # dropout draws from the global generator; the caller's is left as it was
        for epoch in range(1, settings.epochs + 1):
            epoch_began = time.perf_counter()
            tally = Tally(model)
            rates: list[float] = []
            model.train()
            for batch in train.shuffled(settings.batch_size, order):
                step = (epoch - 1) * per_epoch + len(rates)
                rate = learning_rate_at(
                    step,
                    settings.epochs * per_epoch,
                    settings.learning_rate,
                    warmup_fraction=settings.warmup_fraction,
                    decay=settings.decay,
                )
                rates.append(rate)
                with autocast(train, settings.mixed_precision):
                    output = model(batch)
                output.loss.backward()
                optimizer.step(rate)
                if tally.add(output, batch):
                    _check(tally, epoch, rates)
            _check(tally, epoch, rates)
            seconds = time.perf_counter() - epoch_began

            metrics = {"train": tally.metrics()}
            if settings.evaluate_training_set:
                metrics["train"] = evaluate(model, train, settings.eval_batch_size, settings.mixed_precision)
            if validation is not None:
                metrics["validation"] = evaluate(model, validation, settings.eval_batch_size, settings.mixed_precision)
                value = _value(metrics["validation"], settings)
                if better(settings.validation_metric, value, best.value if best is not None else None):
                    best = _Best(epoch, value, {name: tensor.clone() for name, tensor in model.state_dict().items()})
            on_epoch(
                EpochDone(
                    epoch,
                    settings.epochs,
                    metrics,
                    learning_rate=rates[-1],
                    steps_per_second=per_epoch / seconds,
                    seconds=time.perf_counter() - epoch_began,
                    best=best is None or best.epoch == epoch,
                )
            )
            if best is not None and 0 <= settings.early_stop <= epoch - best.epoch:
                break
    if best is not None:
        model.load_state_dict(best.state)
    return FitResult(epoch, best.epoch if best is not None else epoch, time.perf_counter() - began)


def evaluate(
    model: Model, batches: CachedBatches, batch_size: int | None = None, mixed_precision: bool = False
) -> Metrics:
    """Loss and metrics of every output feature over all rows."""
    with _threads(2 * (batch_size or _EVALUATION_ROWS) * _size(model)):
        tally = Tally(model)
        for batch, output in _outputs(model, batches, batch_size, mixed_precision):
            tally.add(output, batch)
        return tally.metrics()


def predict(
    model: Model, batches: CachedBatches, batch_size: int | None = None, mixed_precision: bool = False
) -> dict[str, Tensor]:
    """What each decoder predicts of every row, in order: probabilities or values, float32 on the CPU."""
    parts: dict[str, list[Tensor]] = {name: [] for name in model.outputs}
    with _threads(2 * (batch_size or _EVALUATION_ROWS) * _size(model)):
        for _, output in _outputs(model, batches, batch_size, mixed_precision):
            for name, scores in output.scores.items():
                parts[name].append(model.decoder(name).predict(scores).cpu())
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def autocast(batches: CachedBatches, mixed_precision: bool) -> AbstractContextManager[object]:
    """bfloat16 autocast on the device of ``batches``; nothing when it is not asked for."""
    return torch.autocast(batches.device.type, dtype=torch.bfloat16) if mixed_precision else nullcontext()


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

    def _loss(self, name: str) -> float:
        losses = torch.stack(self._losses[name]).double().cpu()
        weights = torch.stack([torch.as_tensor(weight) for weight in self._weights[name]]).double().cpu()
        return float((losses @ weights / weights.sum()).item())

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


@dataclass(frozen=True)
class _Best:
    epoch: int
    value: float
    state: dict[str, Tensor]


def _outputs(
    model: Model, batches: CachedBatches, batch_size: int | None, mixed_precision: bool
) -> Iterator[tuple[Batch, Output]]:
    model.eval()
    with torch.inference_mode():
        for batch in batches.in_order(batch_size or _EVALUATION_ROWS):
            with autocast(batches, mixed_precision):
                output = model(batch)
            yield batch, output


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
        raise TrainingDiverged(
            f"The loss is not finite at epoch {epoch}, step {step + 1} of it, at learning rate {rates[step]:g}. "
            "Set a lower trainer.learning_rate, or a normalization for number features with very large values."
        )


def _size(model: Model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def _threads(flop: int) -> Iterator[None]:
    """One CPU thread for steps too small to share, which lose milliseconds whenever another process holds a core."""
    threads = torch.get_num_threads()
    if flop < _SHARED_FLOP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What the body draws from torch's global generators depends on ``seed`` alone, and their state is put back after it."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
