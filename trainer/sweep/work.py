"""The work of a sweep: rows prepared once, and trained on together where trials may, one by one where not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from cachestore.errors import CachestoreError, ConfigError, DamageError, StoreError, UsageError
from cachestore.store import Store
from trainer import loop
from trainer.assemble import State, build_model, default_device, start_at_means
from trainer.batches import Batches, CachedBatches, digest
from trainer.events import Clock
from trainer.fitting import build_optimizer, fit_settings
from trainer.live.tune import with_batch_size
from trainer.loop import EpochDone, FitResult
from trainer.metrics import COMBINED
from trainer.model import Model
from trainer.prepare import prepare
from trainer.schema import Config
from trainer.strategies import trained_of
from trainer.strategies.single import Single
from trainer.sweep import groups
from trainer.sweep.layers import Unstackable
from trainer.sweep.plan import Plan, Trial
from trainer.sweep.record import Result, finished, write_result
from trainer.sweep.together import Member, fit_together, obstacle


@dataclass(frozen=True)
class _Rows:
    """What trials are trained on: the splits that have rows, what features learnt of them, and the digest that names them.

    ``sizes``: of batches, found by trying, by the settings they are for.
    """

    states: Mapping[str, State]
    batches: Mapping[str, Batches]
    digest: str
    sizes: dict[tuple[int | str, ...], int | Literal["auto"]] = field(default_factory=dict)

    @property
    def train(self) -> Batches:
        return self.batches["train"]

    @property
    def validation(self) -> Batches | None:
        return self.batches.get("validation")

    @property
    def device(self) -> torch.device:
        return self.train.device


class Work:
    """The trials of a sweep, one group of equal rows after the other."""

    def __init__(self, plan: Plan, place: Path, store: Store, clock: Clock, together: bool) -> None:
        self.plan, self.place, self.store, self.clock, self.together = plan, place, store, clock, together
        self.results: dict[int, Result] = {}
        self.reused = 0
        self._strategy = Single()  # whatever the config's: trials are many, and each is small

    def run(self, trials: Sequence[Trial], sources: Mapping[str, Any]) -> None:
        """Prepare the rows once and train all ``trials`` on them; what cannot be prepared fails, and the sweep goes on."""
        try:
            prepared = prepare(trials[0].config, sources, self.store, self.clock)
        except (StoreError, DamageError):
            raise
        except CachestoreError as error:
            for trial in trials:
                self._end(trial, self._failed(trial, error, ""), [])
            return
        self.clock.begin("epochs")
        device = default_device()
        batches = {name: rows_of.to(device) for name, rows_of in prepared.batches.items() if rows_of.rows}
        by = self.plan.objective
        if by.split not in batches:
            raise ConfigError(
                f"hyperopt.split: there are no {by.split} rows to rank trials by. Give them by --{by.split} or preprocessing.split"
            )
        rows = _Rows(prepared.states, batches, digest(batches))
        left: list[Trial] = []
        for trial in trials:
            earlier = finished(self.place, trial, rows.digest)
            if earlier is not None and by.metric in earlier.metrics.get(by.split, {}).get(by.field, {}):
                self.results[trial.number] = earlier
                self.reused += 1
            else:
                left.append(trial)
        for alike in groups.by_shape(left):
            self._train(alike, rows)

    def _train(self, trials: Sequence[Trial], rows: _Rows) -> None:
        """Trials that may differ only in what a stack lets each have of its own."""
        if not self.together or len(trials) < 2:
            self._alone(trials, rows)
            return
        first = self._member(trials[0], rows)
        if first is None:
            self._train(trials[1:], rows)
            return
        why = obstacle(first, rows.device)
        if not all(isinstance(rows_of, CachedBatches) for rows_of in rows.batches.values()):
            why = "an encoder runs in the loop" if trials[0].config.live else "memory_limit"
        if why is not None:
            self.clock.say(f"{len(trials)} trials train one by one: {why}.")
            self._alone(trials, rows)
            return
        size = sum(parameter.numel() for parameter in first.model.parameters())
        for stack in groups.by_order(trials, size):
            found = [(trial, self._member(trial, rows)) for trial in stack]
            ready = {trial.number: (trial, member) for trial, member in found if member is not None}
            members = [member for _, member in ready.values()]
            left = [trial for trial, _ in ready.values()]
            try:
                if len(left) > 1:
                    self._stack(left, members, rows)
                    continue
            except Unstackable as reason:
                self.clock.say(f"{len(left)} trials train one by one: {reason}.")
            self._alone(left, rows)

    def _member(self, trial: Trial, rows: _Rows) -> Member | None:
        """A trial ready to train, as ``train`` would make it; None when its settings cannot be, which ends it."""
        config, by = trial.config, self.plan.objective
        try:
            with loop.seeded(config.random_seed):
                model = build_model(config, rows.states).to(rows.device)
            if by.field != COMBINED:
                model.decoder(by.field).also_measure(by.metric)
            start_at_means(model, rows.train)
            if config.trained:
                config = self._with_batch_size(config, model, rows)
            settings = fit_settings(config, model, rows.train, self._strategy)
            return Member(model, build_optimizer(config, trained_of(model), settings), settings)
        except (ConfigError, UsageError) as error:
            self._end(trial, self._failed(trial, error, rows.digest), [])
            return None

    def _with_batch_size(self, config: Config, model: Model, rows: _Rows) -> Config:
        """Where it is auto, that of the first such trial of these rows: trials are to be compared, and to try sizes takes long."""
        trainer = config.trainer
        if trainer.batch_size != "auto":
            return config
        alike = (trainer.effective_batch_size, trainer.gradient_accumulation_steps, trainer.max_batch_size)
        if alike not in rows.sizes:
            found = with_batch_size(config, model, rows.train, self._strategy, self.clock.say)
            rows.sizes[alike] = found.trainer.batch_size
        return config.model_copy(update={"trainer": trainer.model_copy(update={"batch_size": rows.sizes[alike]})})

    def _alone(self, trials: Sequence[Trial], rows: _Rows) -> None:
        for trial in trials:
            member = self._member(trial, rows)
            if member is None:
                continue
            lines: list[dict[str, Any]] = []

            def on_epoch(epoch: EpochDone, to: list[dict[str, Any]] = lines) -> None:
                to += _lines(epoch)
                self._tell(epoch)

            try:
                done = loop.fit(
                    member.model,
                    rows.train,
                    rows.validation,
                    optimizer=member.optimizer,
                    settings=member.settings,
                    on_epoch=on_epoch,
                    strategy=self._strategy,
                )
            except (StoreError, DamageError):
                raise
            except CachestoreError as error:
                self._end(trial, self._failed(trial, error, rows.digest), lines)
                continue
            self._end(trial, self._done(trial, member, done, rows, 1), lines)

    def _stack(self, trials: Sequence[Trial], members: Sequence[Member], rows: _Rows) -> None:
        told = 0
        lines: list[list[dict[str, Any]]] = [[] for _ in trials]

        def on_epoch(at: int, epoch: EpochDone) -> None:
            nonlocal told
            lines[at] += _lines(epoch)
            if epoch.epoch > told:  # of those still running, the first
                told = epoch.epoch
                self._tell(epoch)

        def on_end(at: int, done: FitResult | CachestoreError) -> None:
            trial = trials[at]
            if isinstance(done, CachestoreError):
                self._end(trial, self._failed(trial, done, rows.digest), lines[at])
            else:
                self._end(trial, self._done(trial, members[at], done, rows, len(trials)), lines[at])

        fit_together(
            members,
            rows.train,
            rows.validation,
            on_start=lambda: self.clock.say(f"{len(trials)} trials train together: {_numbers(trials)}."),
            on_epoch=on_epoch,
            on_end=on_end,
        )

    def _tell(self, epoch: EpochDone) -> None:
        if self.clock.listener is not None:
            self.clock.listener(epoch)

    def _done(self, trial: Trial, member: Member, done: FitResult, rows: _Rows, together: int) -> Result:
        settings = member.settings
        metrics = dict(done.metrics)
        if (test := rows.batches.get("test")) is not None:
            metrics["test"] = loop.evaluate(member.model, test, settings.eval_batch_size, settings.mixed_precision)
        return Result(
            number=trial.number,
            candidate=trial.candidate,
            values=trial.values,
            seed=trial.seed,
            fold=trial.fold,
            metrics=metrics,
            field=settings.validation_field,
            metric=settings.validation_metric,
            epochs=done.epochs,
            best_epoch=done.best_epoch,
            learning_rate=settings.learning_rate,
            batch_size=settings.batch_size,
            together=together,
            seconds=done.seconds / together,
            data=rows.digest,
        )

    def _failed(self, trial: Trial, error: CachestoreError, data: str) -> Result:
        self.clock.say(f"Trial {trial.number:03} failed: {error}")
        return Result(trial.number, trial.candidate, trial.values, trial.seed, trial.fold, error=str(error), data=data)

    def _end(self, trial: Trial, result: Result, lines: list[dict[str, Any]]) -> None:
        if "test" in result.metrics:
            lines.append({"epoch": result.best_epoch, "split": "test", "metrics": result.metrics["test"]})
        self.results[trial.number] = result
        write_result(self.place, result, lines)


def _lines(epoch: EpochDone) -> list[dict[str, Any]]:
    return [
        {"epoch": epoch.epoch, "split": name, "learning_rate": epoch.learning_rate, "metrics": metrics}
        for name, metrics in epoch.metrics.items()
    ]


def _numbers(trials: Sequence[Trial]) -> str:
    numbers = [f"{trial.number:03}" for trial in trials]
    return ", ".join(numbers) if len(numbers) <= 8 else f"{', '.join(numbers[:4])}, … {numbers[-1]}"
