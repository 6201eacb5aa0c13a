"""The files of a sweep.

sweep.json               marks the directory; written first
trials/000/config.yaml   what `cachestore train -c` takes to train that trial alone
trials/000/metrics.jsonl its metrics, epoch by epoch, as those of a run
trials/000/trial.json    what it did; written last, so a trial that has it is finished
leaderboard.csv, .json, .svg
winner/                  a run of the best candidate
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from cachestore import outside, yaml_source
from cachestore.errors import UsageError
from cachestore.keys import Json
from trainer import checkpoint
from trainer.sweep.plan import Plan, Trial
from trainer.tally import Metrics

MARK: Final = "sweep.json"
TRIAL: Final = "trial.json"
FORMAT: Final = 1
_KIND: Final = "cachestore sweep"


@dataclass(frozen=True)
class Result:
    """What a trial did. ``error`` is None unless it failed, and then the rest is empty.

    ``metrics``: split → output feature → metric, of the best epoch. ``together``: how many trials trained in the same pass;
    ``seconds``: this trial's share of their time. ``data``: the digest of the rows it was trained on.
    """

    number: int
    candidate: int
    values: Mapping[str, Any]
    seed: int
    fold: int | None
    error: str | None = None
    metrics: Mapping[str, Metrics] = field(default_factory=dict)
    field: str = ""
    metric: str = ""
    epochs: int = 0
    best_epoch: int = 0
    learning_rate: float = 0.0
    batch_size: int = 0
    together: int = 0
    seconds: float = 0.0
    data: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return checkpoint.plain(asdict(self))  # type: ignore[no-any-return]


def open_directory(output: Path | None, stem: str, plan: Plan) -> Path:
    """The directory of the sweep: ``output``, or the first free one of ``runs/<stem>_sweep``, ``runs/<stem>_sweep_1``, …

    One that holds the same sweep, finished or not, is taken up again. Raises UsageError for one that holds anything else.
    """
    mark: dict[str, Json] = {"kind": _KIND, "format": FORMAT, "trials": len(plan.trials)}
    other = "Name a new directory with --output."
    place = output or Path("runs")
    try:
        place = _free(stem) if output is None else output
        if place.exists() and any(place.iterdir()):
            if _read(place / MARK) is None:
                raise UsageError(f"{place} is not empty and holds no sweep. {other}")
            if _read(place / MARK) != mark or any(
                _config(place, trial) not in (None, _text(trial)) for trial in plan.trials
            ):
                raise UsageError(f"{place} holds another sweep, of other trials. {other}")
        place.mkdir(parents=True, exist_ok=True)
        if _read(place / MARK) is None:
            outside.write(place / MARK, _json(mark))
        for trial in plan.trials:
            folder = trial_folder(place, trial.number)
            folder.mkdir(parents=True, exist_ok=True)
            if _config(place, trial) is None:
                outside.write(folder / checkpoint.CONFIG, _text(trial).encode())
    except OSError as error:
        raise UsageError(f"The directory {place} cannot be used ({error.strerror}). {other}") from error
    return place


def trial_folder(place: Path, number: int) -> Path:
    """Where a trial's files are."""
    return place / "trials" / f"{number:03}"


def finished(place: Path, trial: Trial, data: str) -> Result | None:
    """What a trial did in an earlier run of this sweep on the same data; None when it did not finish, or failed."""
    found = _read(trial_folder(place, trial.number) / TRIAL)
    if found is None or found.get("data") != data or found.get("error") is not None:
        return None
    try:
        return Result(**found)
    except TypeError:
        return None  # of an older version: trained again


def write_result(place: Path, result: Result, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write the metrics, then what makes the trial finished."""
    folder = trial_folder(place, result.number)
    text = "".join(json.dumps(checkpoint.plain(line), allow_nan=False) + "\n" for line in lines)
    outside.write(folder / checkpoint.METRICS, text.encode())
    outside.write(folder / TRIAL, _json(result.to_json()))


def _free(stem: str) -> Path:
    """A directory made now, so that no other sweep takes it."""
    number = 0
    while True:
        place = Path("runs") / (f"{stem}_sweep_{number}" if number else f"{stem}_sweep")
        with contextlib.suppress(FileExistsError):
            place.mkdir(parents=True)
            return place
        number += 1


def _text(trial: Trial) -> str:
    return yaml_source.dump(trial.config.resolved())


def _config(place: Path, trial: Trial) -> str | None:
    try:
        return (trial_folder(place, trial.number) / checkpoint.CONFIG).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
