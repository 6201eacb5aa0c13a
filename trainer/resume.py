"""What training that was stopped goes on from: what it was started with, and the state of the loop after an epoch.

started.json        the files of the data, and the store; written before the first epoch
resume.safetensors  the state, its counters in the header; replaced while training runs, written whole or not at all

Both are removed when the run is finished.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cachestore import outside
from cachestore.errors import DamageError, UsageError
from trainer import checkpoint

# A state is four times the weights, and its fsync some milliseconds: seldom enough to cost nothing, often enough to lose little.
SAVE_SECONDS: Final = 10.0


@dataclass(frozen=True)
class ResumeState:
    """``counters`` are plain enough for JSON; ``tensors`` by group and name, shared with the loop that gave them."""

    counters: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Started:
    """``sources``: by split, the absolute path of its data, None where it was in memory. ``store``: where it is."""

    sources: Mapping[str, str | None]
    store: str


def write_started(folder: Path, started: Started) -> None:
    """Tell what a run is started with."""
    outside.write(folder / checkpoint.STARTED, json.dumps(asdict(started), indent=1).encode())


def read_started(folder: Path) -> Started:
    """What the run in ``folder`` was started with. Raises UsageError when it was stopped before that was written."""
    path = folder / checkpoint.STARTED
    try:
        return Started(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise UsageError(f"The run at {folder} was stopped before it trained. Train again.") from None
    except (OSError, ValueError, TypeError) as error:
        raise DamageError(f"{path} cannot be read ({error}). Train again.") from error


class Saver:
    """Saves the state of a loop in ``folder``, not oftener than every SAVE_SECONDS. ``identity`` tells the data apart."""

    def __init__(self, folder: Path, identity: Callable[[], str]) -> None:
        self._folder, self._identity = folder, identity
        self._data: str | None = None
        self._last = time.monotonic()

    def __call__(self, state: ResumeState) -> None:
        if time.monotonic() - self._last < SAVE_SECONDS:
            return
        if self._data is None:
            self._data = self._identity()
        metrics = self._folder / checkpoint.METRICS
        outside.sync(metrics)
        tensors = {
            f"{group}/{name}": tensor.detach().cpu().contiguous()
            for group, named in state.tensors.items()
            for name, tensor in named.items()
        }
        told = {
            "counters": json.dumps(state.counters),
            "data": self._data,
            "metrics_bytes": str(metrics.stat().st_size),
        }
        outside.write(self._folder / checkpoint.STATE, save(tensors, told))
        self._last = time.monotonic()


def read_state(folder: Path, identity: Callable[[], str]) -> ResumeState | None:
    """The last state saved of the run in ``folder``, None where there is none; the metrics of later epochs are removed.

    Raises UsageError when the data is not what the run was trained on, DamageError when the state cannot be read.
    """
    path = folder / checkpoint.STATE
    if not path.exists():
        _truncate(folder / checkpoint.METRICS, 0)
        return None
    tensors: dict[str, dict[str, Tensor]] = {
        group: {} for group in ("model", "best", "optimizer", "scaler", "generator")
    }
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata()
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                group, _, rest = name.partition("/")
                tensors[group][rest] = file.get_tensor(name)
        counters, size = json.loads(told["counters"]), int(told["metrics_bytes"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamageError(f"The state {path} cannot be read ({error}). Train again.") from error
    if told.get("data") != identity():
        raise UsageError(
            f"The data is not what the run at {folder} was trained on before: its rows changed since. Train again."
        )
    _truncate(folder / checkpoint.METRICS, size)
    return ResumeState(counters, tensors)


def finished(folder: Path) -> None:
    """Remove what only a run that is not finished needs."""
    for name in (checkpoint.STATE, checkpoint.STARTED):
        (folder / name).unlink(missing_ok=True)


def _truncate(path: Path, size: int) -> None:
    try:
        if path.exists():
            os.truncate(path, size)
    except OSError as error:
        raise outside.unwritable(path, error) from error
