"""A sweep: from a config with a hyperopt section, or grids, to a leaderboard and the run of its winner."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cachestore import outside, yaml_source
from cachestore.errors import CachestoreError, ConfigError, DamageError, StoreError, UsageError
from cachestore.store import Store
from trainer import checkpoint, loop
from trainer.assemble import build_model, default_device, start_at_means
from trainer.batches import Batches, CachedBatches, digest
from trainer.events import Clock, Listener
from trainer.fitting import build_optimizer, fit_settings
from trainer.loop import EpochDone, FitResult
from trainer.prepare import Prepared, prepare
from trainer.run import train, with_models_placed
from trainer.runs import Run, StoreLike, opened
from trainer.sweep import groups
from trainer.sweep import leaderboard as ranking
from trainer.sweep.layers import Unstackable
from trainer.sweep.leaderboard import Leaderboard
from trainer.sweep.plan import Plan, Trial, make_plan
from trainer.sweep.record import Result, finished, open_directory, write_result
from trainer.sweep.together import Member, fit_together, obstacle


@dataclass(frozen=True)
class Sweep:
    """A finished sweep. ``reused``: how many trials an earlier, interrupted one had done. ``winner``: the run of the best."""

    path: Path
    leaderboard: Leaderboard
    results: tuple[Result, ...]
    winner: Run
    reused: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        found = {
            "sweep": str(self.path),
            "trials": len(self.results),
            "failed": sum(result.error is not None for result in self.results),
            "reused": self.reused,
            "seconds": self.seconds,
            "winner": self.winner.to_json(),
            **self.leaderboard.to_json(),
        }
        return checkpoint.plain(found)  # type: ignore[no-any-return]


def sweep(
    config: Path | str | Mapping[str, Any],
    data: Any,
    store: StoreLike = None,
    *,
    validation: Any = None,
    test: Any = None,
    overrides: Sequence[str] = (),
    grids: Sequence[str] = (),
    folds: int | None = None,
    seeds: int = 1,
    output: str | Path | None = None,
    together: bool = True,
    progress: Listener | None = None,
) -> Sweep:
    """Train every trial, rank them, and train the winner as a run; the directory is ``output`` or a free one in ``runs``.

    ``config`` has a hyperopt section, or ``grids`` (``path=v1,v2``) say what varies. ``folds`` and ``seeds`` repeat each
    candidate. A sweep that was interrupted goes on where it was: finished trials are not trained again. Trials of equal
    shapes train in one pass unless ``together`` is False. A trial that fails is told of and the others go on; the error of
    the first is raised when all fail.
    """
    began = time.perf_counter()
    sources = {"train": data, "validation": validation, "test": test}
    given = {name: source for name, source in sources.items() if source is not None}
    plan = make_plan(config, overrides=overrides, grids=grids, folds=folds, seeds=seeds, files=len(given) > 1)
    plan = replace(
        plan,
        trials=tuple(replace(trial, config=with_models_placed(trial.config)) for trial in plan.trials),
        finals=tuple(with_models_placed(final) for final in plan.finals),
    )
    stem = data.name.split(".")[0] if isinstance(data, Path) else "sweep"
    with opened(store) as there:
        place = open_directory(None if output is None else Path(output), stem, plan)
        work = _Work(plan, place, there, Clock(progress), together)
        for trials in groups.by_data(plan.trials):
            work.run(trials, given)
        results = tuple(work.results[trial.number] for trial in plan.trials)
        board = ranking.rank(results, plan.settings, plan.split)
        _write_board(place, board, results)
        if board.best is None:
            raise ConfigError(f"Every trial failed, the first with: {results[0].error}")
        winner = _winner(work, plan.finals[board.best.candidate], given, progress)
    return Sweep(place, board, results, winner, work.reused, time.perf_counter() - began)


class _Work:
    """The trials of a sweep, one group of equal rows after the other."""

    def __init__(self, plan: Plan, place: Path, store: Store, clock: Clock, together: bool) -> None:
        self.plan, self.place, self.store, self.clock, self.together = plan, place, store, clock, together
        self.results: dict[int, Result] = {}
        self.reused = 0
        self._checked = False

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
        data = digest(batches)
        left: list[Trial] = []
        for trial in trials:
            earlier = finished(self.place, trial, data)
            if earlier is None:
                left.append(trial)
            else:
                self.results[trial.number] = earlier
                self.reused += 1
        for alike in groups.by_shape(left):
            self._train(alike, prepared, batches, data, device)

    def _train(
        self,
        trials: Sequence[Trial],
        prepared: Prepared,
        batches: Mapping[str, Batches],
        data: str,
        device: torch.device,
    ) -> None:
        """Trials that may differ only in what a stack lets each have of its own."""
        first = self._member(trials[0], prepared, batches, data, device)
        if first is None:
            self._alone(trials[1:], prepared, batches, data, device)
            return
        why = obstacle(first, device) if len(trials) > 1 else "there is one"
        if not all(isinstance(rows_of, CachedBatches) for rows_of in batches.values()):
            why = "memory_limit"
        if not self.together or why is not None:
            if self.together and len(trials) > 1:
                self.clock.say(f"{len(trials)} trials train one by one: {why}.")
            self._alone(trials, prepared, batches, data, device)
            return
        size = sum(parameter.numel() for parameter in first.model.parameters())
        for stack in groups.by_order(trials, size):
            members = {trial.number: self._member(trial, prepared, batches, data, device) for trial in stack}
            ready = [(trial, member) for trial in stack if (member := members[trial.number]) is not None]
            why = next((reason for _, member in ready if (reason := obstacle(member, device)) is not None), None)
            if len(ready) < 2 or why is not None:
                self._alone([trial for trial, _ in ready], prepared, batches, data, device)
                continue
            try:
                self._stack([trial for trial, _ in ready], [member for _, member in ready], batches, data)
            except Unstackable as reason:
                self.clock.say(f"{len(ready)} trials train one by one: {reason}.")
                self._alone([trial for trial, _ in ready], prepared, batches, data, device)

    def _member(
        self, trial: Trial, prepared: Prepared, batches: Mapping[str, Batches], data: str, device: torch.device
    ) -> Member | None:
        """A trial ready to train, as ``train`` would make it; None when its settings cannot be, which ends it."""
        config = trial.config
        try:
            with loop.seeded(config.random_seed):
                model = build_model(config, prepared.states).to(device)
            start_at_means(model, batches["train"])
            settings = fit_settings(config, model, batches["train"])
            member = Member(model, build_optimizer(config, model), settings)
        except (ConfigError, UsageError) as error:
            self._end(trial, self._failed(trial, error, data), [])
            return None
        if not self._checked:
            names = (*model.decoder(settings.validation_field).metric_names,)
            ranking.check(self.plan.settings, settings.validation_field, names, self.plan.split, batches)
            self._checked = True
        return member

    def _alone(
        self,
        trials: Sequence[Trial],
        prepared: Prepared,
        batches: Mapping[str, Batches],
        data: str,
        device: torch.device,
    ) -> None:
        for trial in trials:
            member = self._member(trial, prepared, batches, data, device)
            if member is None:
                continue
            lines: list[dict[str, Any]] = []
            try:
                done = loop.fit(
                    member.model,
                    batches["train"],
                    batches.get("validation"),
                    optimizer=member.optimizer,
                    settings=member.settings,
                    on_epoch=lambda epoch, to=lines: to.extend(_lines(epoch)),  # type: ignore[misc]
                )
            except (StoreError, DamageError):
                raise
            except CachestoreError as error:
                self._end(trial, self._failed(trial, error, data), lines)
                continue
            self._end(trial, self._done(trial, member, done, batches, data, 1), lines)

    def _stack(
        self, trials: Sequence[Trial], members: Sequence[Member], batches: Mapping[str, Batches], data: str
    ) -> None:
        lines: list[list[dict[str, Any]]] = [[] for _ in trials]

        def on_epoch(at: int, epoch: EpochDone) -> None:
            lines[at] += _lines(epoch)
            if at == 0 and self.clock.listener is not None:
                self.clock.listener(epoch)

        def on_end(at: int, done: FitResult | CachestoreError) -> None:
            if isinstance(done, CachestoreError):
                self._end(trials[at], self._failed(trials[at], done, data), lines[at])
            else:
                self._end(trials[at], self._done(trials[at], members[at], done, batches, data, len(trials)), lines[at])

        fit_together(
            members,
            batches["train"],
            batches.get("validation"),
            on_start=lambda: self.clock.say(f"{len(trials)} trials train together: {_numbers(trials)}."),
            on_epoch=on_epoch,
            on_end=on_end,
        )

    def _done(
        self,
        trial: Trial,
        member: Member,
        done: FitResult,
        batches: Mapping[str, Batches],
        data: str,
        together: int,
    ) -> Result:
        settings = member.settings
        metrics = dict(done.metrics)
        if "test" in batches:
            metrics["test"] = loop.evaluate(
                member.model, batches["test"], settings.eval_batch_size, settings.mixed_precision
            )
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
            data=data,
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


def _write_board(place: Path, board: Leaderboard, results: Sequence[Result]) -> None:
    outside.write(
        place / "leaderboard.json", (json.dumps(board.to_json(), indent=1, ensure_ascii=False) + "\n").encode()
    )
    outside.write(place / "leaderboard.csv", board.to_csv().encode())
    outside.write(place / "leaderboard.svg", ranking.plot(board, results).encode())


def _winner(work: _Work, config: Any, sources: Mapping[str, Any], progress: Listener | None) -> Run:
    """The best candidate as a run; one of an earlier sweep that stands as it would be made is kept."""
    folder = work.place / "winner"
    if work.reused == len(work.plan.trials) and checkpoint.is_run(folder):
        text = yaml_source.dump(config.resolved())
        with_config = folder / checkpoint.CONFIG
        if (folder / checkpoint.SUMMARY).exists() and with_config.read_text(encoding="utf-8") == text:
            return Run.load(folder)
    return train(
        config,
        sources["train"],
        work.store,
        validation=sources.get("validation"),
        test=sources.get("test"),
        output=folder,
        progress=progress,
    )
