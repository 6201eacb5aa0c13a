"""The loop: fit, evaluate and predict, as plain functions over batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.batches import Batch, Batches
from trainer.epochs import Fit, FitSettings
from trainer.interrupts import Interrupt, deferred
from trainer.live.batches import LiveBatches
from trainer.live.steps import StepDone, diverged
from trainer.model import Model, Output
from trainer.optim import Lbfgs, Optimizer
from trainer.precision import autocast
from trainer.resume import ResumeState
from trainer.strategies import Strategy
from trainer.strategies.ranks import ALONE
from trainer.tally import Metrics, Tally

__all__ = [
    "EpochDone",
    "FitResult",
    "FitSettings",
    "Metrics",
    "StepDone",
    "Tally",
    "encoded",
    "evaluate",
    "fit",
    "predict",
    "seeded",
]

EVALUATION_ROWS = 1024
_THREAD_FLOP = 50_000_000  # of one step, forward and backward: what is worth a thread


@dataclass(frozen=True)
class EpochDone:
    """One epoch is over: its number from 1, the metrics of each split evaluated, and the step rate over its steps.

    ``best`` by ``chosen_by``, the validation metric and its output, among the epochs so far.
    """

    epoch: int
    epochs: int
    metrics: Mapping[str, Metrics]
    chosen_by: tuple[str, str]
    learning_rate: float
    steps_per_second: float
    seconds: float
    best: bool


@dataclass(frozen=True)
class FitResult:
    """What ``fit`` did. The model holds the weights of ``best_epoch``: the last one when there was no validation.

    ``metrics`` are those of that epoch, by split.
    """

    epochs: int
    best_epoch: int
    seconds: float
    metrics: Mapping[str, Metrics]


def fit(
    model: Model,
    train: Batches,
    validation: Batches | None,
    *,
    optimizer: Optimizer | Lbfgs,
    settings: FitSettings,
    on_epoch: Callable[[EpochDone], None],
    strategy: Strategy | None = None,
    on_step: Callable[[StepDone], None] | None = None,
    resume: ResumeState | None = None,
    save: Callable[[ResumeState], None] | None = None,
    due: Callable[[], bool] = lambda: True,
) -> FitResult:
    """Train until the epochs are done or ``early_stop`` epochs in a row brought no better validation metric.

    Training metrics are those of the predictions made while the weights moved, unless ``evaluate_training_set``.
    ``save`` is given the state of the loop after every epoch at which it is ``due``, whose tensors change with the next step; a
    fit with ``resume`` goes on from there, and ends with the weights of one that was never interrupted.

    Where encoders run in the loop, ``on_step`` is told of every step, the state is saved after steps too, and SIGINT and SIGTERM
    wait for the end of a step and for its state to be saved. All ranks of ``strategy`` do the same; rank 0 says when it is due.
    Raises TrainingDiverged naming epoch, step and learning rate; OutOfMemory; DataError when the validation metric is undefined.
    """
    began = time.perf_counter()
    ranks = ALONE if strategy is None else strategy.ranks
    signals: AbstractContextManager[Interrupt | None] = deferred() if model.live else nullcontext()
    with (
        threads_for(6 * min(settings.batch_size, train.rows) * _size(model, train)),
        seeded(settings.seed),  # dropout draws from the global generator; the caller's is left as it was
        signals as interrupt,
    ):

        def pause(state: Callable[[], ResumeState]) -> None:
            stopped = interrupt is not None and interrupt.signal is not None
            wanted = ranks.most(2 if stopped else int(ranks.rank == 0 and save is not None and due()))
            if wanted and save is not None:
                save(state())
            if wanted == 2 and interrupt is not None:
                interrupt.deliver()

        run = Fit(model, train, optimizer, settings, strategy, on_step, pause)
        if resume is not None:
            run.load(resume)
        while not run.over():
            epoch_began = time.perf_counter()
            run.done.epoch += 1
            tally, rate, steps = run.train_epoch()
            seconds = time.perf_counter() - epoch_began

            metrics: dict[str, Metrics] = {}
            if tally is None or settings.evaluate_training_set:
                metrics["train"] = evaluate(model, train, settings.eval_batch_size, settings.mixed_precision)
            else:
                metrics["train"] = tally.metrics()
            if validation is not None:
                judged = _tally(model, validation, settings.eval_batch_size, settings.mixed_precision)
                metrics["validation"] = judged.metrics()
                if judged.first_bad_step() is not None:
                    # the last step was too large, and no later one of the epoch saw it
                    what = "The loss of the validation rows is"
                    raise diverged(run.done.epoch, steps, rate, settings.encoder_factors, what=what)
            run.judge(metrics)
            on_epoch(
                EpochDone(
                    run.done.epoch,
                    run.epochs,
                    metrics,
                    (settings.validation_field, settings.validation_metric),
                    learning_rate=rate,
                    steps_per_second=steps / seconds,
                    seconds=time.perf_counter() - epoch_began,
                    best=run.done.best_epoch == run.done.epoch,
                )
            )
            pause(run.state)
    run.keep_best()
    return FitResult(run.done.epoch, run.done.best_epoch, time.perf_counter() - began, run.done.best_metrics)


def evaluate(model: Model, batches: Batches, batch_size: int | None = None, mixed_precision: bool = False) -> Metrics:
    """Loss and metrics of every output feature over all rows."""
    return _tally(model, batches, batch_size, mixed_precision).metrics()


def _tally(model: Model, batches: Batches, batch_size: int | None, mixed_precision: bool) -> Tally:
    tally = Tally(model)
    with threads_for(2 * (batch_size or EVALUATION_ROWS) * _size(model, batches)):
        for batch, output in outputs(model, batches, batch_size, mixed_precision):
            tally.add(output, batch)
    return tally


def encoded(model: Model, batches: Batches, batch_size: int | None = None, mixed_precision: bool = False) -> Batches:
    """The same rows with vectors in place of the cells whose encoder runs in the loop: for what goes through them several times.

    All ranks call it, and go through the rows alone from then on.
    """
    if not isinstance(batches, LiveBatches):
        return batches
    parts: dict[str, list[Tensor]] = {name: [] for name in batches.cells}
    model.eval()
    with threads_for(2 * (batch_size or EVALUATION_ROWS) * _size(model, batches)), torch.no_grad():
        for batch in batches.in_order(batch_size or EVALUATION_ROWS):
            with autocast(batches.device, mixed_precision):
                for name, vectors in parts.items():
                    vectors.append(model.encoder(name)(batch.inputs[name]))
    return batches.with_vectors({name: torch.cat(vectors) for name, vectors in parts.items()})


def predict(
    model: Model, batches: Batches, batch_size: int | None = None, mixed_precision: bool = False
) -> dict[str, Tensor]:
    """What each decoder predicts of every row, in order: probabilities or values, float32 on the CPU."""
    parts = list(predictions(model, batches, batch_size, mixed_precision))
    return {name: torch.cat([part[name] for part in parts]) for name in model.outputs}


def predictions(
    model: Model, batches: Batches, batch_size: int | None = None, mixed_precision: bool = False
) -> Iterator[dict[str, Tensor]]:
    """What ``predict`` gives, batch by batch: for what keeps little of it."""
    with threads_for(2 * (batch_size or EVALUATION_ROWS) * _size(model, batches)):
        for _, output in outputs(model, batches, batch_size, mixed_precision):
            yield {name: model.decoder(name).predict(scores).cpu() for name, scores in output.scores.items()}


def outputs(
    model: Model, batches: Batches, batch_size: int | None, mixed_precision: bool
) -> Iterator[tuple[Batch, Output]]:
    model.eval()
    # what shards weights cannot have those of inference mode
    with torch.no_grad() if model.live else torch.inference_mode():
        for batch in batches.in_order(batch_size or EVALUATION_ROWS):
            with autocast(batches.device, mixed_precision):
                output = model(batch)
            yield batch, output


def _size(model: Model, batches: Batches) -> int:
    """How many products a row takes: about one for every weight, and in encoders for every weight and token."""
    count = sum(parameter.numel() for parameter in model.parameters())
    return count * max(1, round(batches.lengths().mean())) if isinstance(batches, LiveBatches) else count


@contextmanager
def threads_for(flop: int) -> Iterator[None]:
    """As many CPU threads as a step is worth: those of a small one wait for each other, and keep the core they wait on.

    A step of 384 → 77 gains a tenth by a second thread, and takes ten times as long where another process wants that core.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, min(threads, flop // _THREAD_FLOP)))
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
