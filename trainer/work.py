"""What every process of a run does once the data is prepared: build the model, train it, measure it. Rank 0 writes the run's files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer import artefacts, checkpoint, loop, report, resume
from trainer.assemble import State, build_model, start_at_means
from trainer.batches import Batches, digest
from trainer.calibration import calibrate
from trainer.epochs import FitSettings, require_defined
from trainer.evaluation import final
from trainer.events import Clock, EpochDone, StepDone
from trainer.fitting import build_optimizer, chosen_by, fit_settings
from trainer.live.tune import with_batch_size
from trainer.loop import FitResult, Metrics
from trainer.report.kept import Kept
from trainer.schema import Config
from trainer.strategies import Strategy


@dataclass(frozen=True)
class Job:
    """Everything that the processes of a run are given. ``folder`` is the run's; batches of splits without rows are left out.

    ``description``: what gives the weights their meaning. ``held_out``: as of ``Prepared``.
    """

    config: Config
    states: Mapping[str, State]
    batches: Mapping[str, Batches]
    held_out: Mapping[str, tuple[str, NDArray[np.int64]]]
    folder: Path
    description: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What came of it. ``metrics``: of the best epoch, by split. ``held``: predictions for the report."""

    fitted: FitResult
    metrics: Mapping[str, Metrics]
    settings: FitSettings
    held: Kept | None
    parameters: int
    device: str


def work(job: Job, strategy: Strategy, clock: Clock, saved: Callable[[], None] | None = None) -> Outcome:
    """Train, from the state that the run's folder has; ``saved`` is called when it was saved anew.

    All ranks return the same but for their devices.
    """
    config = job.config
    batches = {name: rows_of.to(strategy.device) for name, rows_of in job.batches.items()}
    first = strategy.ranks.rank == 0
    with loop.seeded(config.random_seed):
        model = build_model(config, job.states, weights=strategy.loads)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    strategy.wrap(model)
    start_at_means(model, batches["train"])
    if model.live and "validation" in batches:  # where an epoch takes long, before the first one
        require_defined(model, batches["validation"], *chosen_by(config, model))
    config = with_batch_size(config, model, batches["train"], strategy, clock.say)
    description = job.description
    if config is not job.config:  # written down: a run that goes on does not try again
        description = {**description, "config": config.resolved()}
        if first:
            checkpoint.write_config(job.folder, config.resolved())
    settings = fit_settings(config, model, batches["train"], strategy)

    def on_epoch(epoch: EpochDone) -> None:
        if first:
            for name, metrics in epoch.metrics.items():
                line = {"epoch": epoch.epoch, "split": name, "learning_rate": epoch.learning_rate, "metrics": metrics}
                checkpoint.append_metrics(job.folder, line)
        if clock.listener is not None:
            clock.listener(epoch)

    def on_step(step: StepDone) -> None:
        if first:
            checkpoint.append_step(job.folder, vars(step))
        if clock.listener is not None:
            clock.listener(step)

    saver = resume.Saver(job.folder, partial(digest, batches), strategy.ranks, saved)
    done = loop.fit(
        model,
        batches["train"],
        batches.get("validation"),
        optimizer=build_optimizer(config, strategy.trained(model), settings),
        settings=settings,
        on_epoch=on_epoch,
        strategy=strategy,
        on_step=on_step,
        resume=resume.read_state(job.folder, partial(digest, batches), strategy.ranks),
        save=saver,
        due=saver.due,
    )
    best = dict(done.metrics)
    clock.begin("evaluate")
    eval_size, mixed = settings.eval_batch_size, settings.mixed_precision
    held_out: dict[str, Batches] = {
        name: loop.encoded(model, batches[name], eval_size, mixed) for name in ("validation", "test") if name in batches
    }
    if "validation" in held_out:
        calibrate(model, held_out["validation"], eval_size, mixed)
    finals = {
        name: final(model, rows_of, eval_size, mixed, seed=config.random_seed) for name, rows_of in held_out.items()
    }
    best.update({name: evaluation.values() for name, evaluation in finals.items()})
    if first and "test" in held_out:
        checkpoint.append_metrics(job.folder, {"epoch": done.best_epoch, "split": "test", "metrics": best["test"]})
    if first and finals:
        checkpoint.write_evaluation(job.folder, {name: evaluation.to_json() for name, evaluation in finals.items()})
    clock.begin("write")
    weights = strategy.whole(model)
    if first:
        artefacts.write(job.folder, config, model, job.states, weights, description)
    held = report.predicted(config, model, job.states, job.held_out, held_out)
    return Outcome(done, best, settings, held, parameters, str(strategy.device))
