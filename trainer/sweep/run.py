"""A sweep: from a config with a hyperopt section, or grids, to a leaderboard and the run of its winner."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cachestore import outside, yaml_source
from cachestore.dataset import open_dataset
from cachestore.errors import ConfigError
from trainer import checkpoint
from trainer.events import Clock, Listener
from trainer.run import stem, train, with_models_placed
from trainer.runs import Run, StoreLike, opened
from trainer.schema import Config
from trainer.sweep import groups
from trainer.sweep import leaderboard as ranking
from trainer.sweep.leaderboard import Leaderboard
from trainer.sweep.plan import make_plan
from trainer.sweep.record import Result, open_directory
from trainer.sweep.work import Work


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
    given = {name: open_dataset(source) for name, source in sources.items() if source is not None}
    plan = make_plan(
        config,
        overrides=overrides,
        grids=grids,
        folds=folds,
        seeds=seeds,
        files=len(given) > 1,
        data=given["train"],
    )
    plan = replace(
        plan,
        trials=tuple(replace(trial, config=with_models_placed(trial.config)) for trial in plan.trials),
        finals=tuple(with_models_placed(final) for final in plan.finals),
    )
    with opened(store) as there:
        place = open_directory(None if output is None else Path(output), stem(given["train"]), plan)
        work = Work(plan, place, there, Clock(progress), together)
        for trials in groups.by_data(plan.trials):
            work.run(trials, given)
        results = tuple(work.results[trial.number] for trial in plan.trials)
        board = ranking.rank(results, plan.objective)
        _write_board(place, board, results)
        if board.best is None:
            raise ConfigError(f"Every trial failed, the first with: {board.standings[0].errors[0]}")
        winner = _winner(work, plan.finals[board.best.candidate], given, progress)
    return Sweep(place, board, results, winner, work.reused, time.perf_counter() - began)


def _write_board(place: Path, board: Leaderboard, results: Sequence[Result]) -> None:
    outside.write(
        place / "leaderboard.json", (json.dumps(board.to_json(), indent=1, ensure_ascii=False) + "\n").encode()
    )
    outside.write(place / "leaderboard.csv", board.to_csv().encode())
    outside.write(place / "leaderboard.svg", ranking.plot(board, results).encode())


def _winner(work: Work, config: Config, sources: Mapping[str, Any], progress: Listener | None) -> Run:
    """The best candidate as a run; one of an earlier sweep that stands as it would be made is kept."""
    folder = work.place / "winner"
    if work.reused == len(work.plan.trials) and checkpoint.is_run(folder):
        text = yaml_source.dump(config.resolved())
        written = folder / checkpoint.CONFIG
        if (folder / checkpoint.SUMMARY).exists() and written.read_text(encoding="utf-8") == text:
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
