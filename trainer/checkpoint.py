"""The files of a run: written whole or not at all, read without pickle.

run.json            marks the directory as a run, with the number of its format and the run's id; written first
config.yaml         the config with every default written out
evaluation.json     the final evaluation of the validation and test splits: intervals, confusion, tables of classes
steps.jsonl         where encoders run in the loop, one object per optimizer step; appended while training runs
metrics.jsonl       one object per epoch and split, and one for the test split; appended while training runs
model.safetensors   the weights, but for those of encoders that run in the loop
adapters, encoders  those of encoders that were trained, see trainer/artefacts.py
model.json          what gives them meaning: the config again, vocabularies, normalisation, encoder specs, manifests
summary.json        what the run did; written last, so a run that has it is complete

and what ``report`` makes of them: predictions.safetensors and report.json, report.html, plots/ and tensorboard/
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from cachestore import outside, yaml_source
from cachestore.encoders import exported
from cachestore.errors import DamageError, UsageError

FORMAT: Final = 1

MARK: Final = "run.json"
CONFIG: Final = "config.yaml"
METRICS: Final = "metrics.jsonl"
STEPS: Final = "steps.jsonl"
EVALUATION: Final = "evaluation.json"
WEIGHTS: Final = "model.safetensors"
MODEL: Final = "model.json"
SUMMARY: Final = exported.SUMMARY
STARTED: Final = "started.json"  # these three are trainer/resume.py's
STATE: Final = "resume.safetensors"
STATES: Final = "resume"
RAY: Final = "ray"  # what Ray keeps of it, of a run of its workers
_OF_REPORTS: Final = ("predictions.safetensors", "report.json", "report.html", "plots", "tensorboard")
FILES: Final = (
    *(MARK, CONFIG, STEPS, METRICS, EVALUATION, WEIGHTS, MODEL, SUMMARY, STARTED, STATE, STATES),
    *("adapters", "encoders", RAY),
    *_OF_REPORTS,
)
_KIND: Final = "cachestore run"  # others call a file run.json too


def read_config(run: Path) -> dict[str, Any]:
    """The resolved config. Raises UsageError when the run was stopped before it was written."""
    data = _read(run / CONFIG)
    if data is None:
        raise UsageError(f"The run at {run} was stopped before it trained. Train again.")
    found = yaml_source.parse(data.decode(), str(run / CONFIG))
    if not isinstance(found, dict):
        raise DamageError(f"{run / CONFIG} is damaged (it holds no mapping). Train again.")
    return found


def is_run(path: Path) -> bool:
    """Whether a directory is a run, finished or not."""
    return _read_mark(path) is not None


def run_id(path: Path) -> str | None:
    """The id of the run in a directory; None when it has none."""
    mark = _read_mark(path)
    return None if mark is None else _id(mark)


def write_mark(run: Path, identity: str) -> None:
    """Mark a directory as a run with this id."""
    outside.write(run / MARK, _json({"kind": _KIND, "format": FORMAT, "id": identity}))


def write_config(run: Path, config: Mapping[str, Any]) -> None:
    """Write the resolved config."""
    outside.write(run / CONFIG, yaml_source.dump(dict(config)).encode())


def append_metrics(run: Path, line: Mapping[str, Any]) -> None:
    """Add one line to the metrics, which outlives this process from then on; a metric that is NaN is null there."""
    _append(run / METRICS, line)


def append_step(run: Path, line: Mapping[str, Any]) -> None:
    """Add one line to the steps, as ``append_metrics`` does."""
    _append(run / STEPS, line)


def write_evaluation(run: Path, evaluation: Mapping[str, Any]) -> None:
    """Write the final evaluations, by split."""
    outside.write(run / EVALUATION, _json(evaluation))


def write_model(run: Path, weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write the weights, then what gives them meaning."""
    # in name order: equal weights give equal bytes
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(weights.items())}
    outside.write(run / WEIGHTS, save(state))
    outside.write(run / MODEL, _json(description))


def write_summary(run: Path, summary: Mapping[str, Any]) -> None:
    """Write the summary, which makes the run complete: all of it is on disk before the summary is, and that when this returns."""
    try:
        outside.sync(run / METRICS)
        outside.sync(run)
        outside.write(run / SUMMARY, _json(summary))
        outside.sync(run)
        outside.sync(run.parent)
    except OSError as error:
        raise outside.unwritable(run / SUMMARY, error) from error


def read_model(run: Path) -> dict[str, Any]:
    """The description of a run's model. Raises UsageError when ``run`` holds none, or one of a newer format."""
    return _read_of_run(run, MODEL)


def read_summary(run: Path) -> dict[str, Any]:
    """The summary of a finished run. Raises UsageError when ``run`` is not one, or of a newer format."""
    return _read_of_run(run, SUMMARY)


def read_weights(run: Path, model: nn.Module, elsewhere: Callable[[str], object | None] = lambda name: None) -> None:
    """Load the weights of ``run`` into ``model``, but for those that lie ``elsewhere``: where it does not give None for their name.

    Raises DamageError when they are not whole or not of this model.
    """
    path = run / WEIGHTS
    try:
        state: dict[str, Tensor] = load(path.read_bytes())
        there = {name: tensor for name, tensor in model.state_dict().items() if elsewhere(name) is not None}
        model.load_state_dict({**there, **state})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DamageError(f"The weights {path} cannot be read ({error}). Restore the file, or train again.") from error


def plain(value: Any) -> Any:
    """``value`` as strict JSON has it: NaN and infinities, which it lacks, become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _append(path: Path, line: Mapping[str, Any]) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain(line), allow_nan=False) + "\n")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror or error}). Make room; then go on from the state that was saved before: "
            "cachestore train --resume RUN"
        ) from error


def _read_of_run(run: Path, name: str) -> dict[str, Any]:
    """A JSON file of a run. Raises UsageError when ``run`` is none, is of a newer format, or has no such file yet."""
    mark = _read_mark(run)
    if mark is None:
        missing = f"{run} is not a run" if run.exists() else f"There is no run at {run}"
        raise UsageError(f"{missing}. Name the directory that train wrote.")
    if mark.get("format") != FORMAT:
        raise UsageError(
            f"{run} has run format {mark.get('format')}, and this version reads {FORMAT}. "
            "Upgrade cachestore, or train again with this version."
        )
    path = run / name
    data = _read(path)
    if data is None:
        raise UsageError(
            f"The run at {run} did not finish and has no model. Go on with it (train --resume), or train again."
        )
    try:
        found = json.loads(data)
    except ValueError as error:
        raise DamageError(f"{path} is damaged ({error}). Restore the file, or train again.") from error
    if not isinstance(found, dict):
        raise DamageError(f"{path} is damaged (it holds no object). Restore the file, or train again.")
    return found


def _read_mark(path: Path) -> dict[str, Any] | None:
    """What marks a directory as a run, None where nothing does."""
    try:
        found = json.loads(_read(path / MARK) or b"null")
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.get("kind") == _KIND else None


def _id(mark: Mapping[str, Any]) -> str | None:
    """The id of a run that a mark tells, None where it tells none that could be one."""
    found = mark.get("id")
    return found if isinstance(found, str) and re.fullmatch("[0-9a-f]{32}", found) else None


def _read(path: Path) -> bytes | None:
    """The bytes of a file, None when there is no such file."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).") from error


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
