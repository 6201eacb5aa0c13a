"""What training that was stopped goes on from: what it was started with, and the state of the loop.

started.json        the files of the data, and the store; written before the first epoch
resume.safetensors  the state, its counters in the header; replaced while training runs, written whole or not at all
resume/             where processes have rows of the state, a file of each; those that resume.safetensors names belong to it

All are removed when the run is finished.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cachestore import outside
from cachestore.errors import DamageError, UsageError
from trainer import checkpoint
from trainer.moving import Rows
from trainer.strategies.ranks import ALONE, Ranks

# A state is four times the weights, and its fsync some milliseconds: seldom enough to cost nothing, often enough to lose little.
SAVE_SECONDS: Final = 10.0
_LONG: Final = (
    2.0  # saves of more than 1/2 s are as much rarer: one of a second every 20, a twentieth of the time at most
)


@dataclass(frozen=True)
class ResumeState:
    """``counters`` are plain enough for JSON; ``tensors`` by group and name, shared with the loop that gave them.

    ``rows``: as ``tensors``, where each process has some rows of a tensor: its own in the state of a loop, all in one that is read.
    """

    counters: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Tensor]]
    rows: Mapping[str, Mapping[str, Rows]] = field(default_factory=dict)


@dataclass(frozen=True)
class Started:
    """``sources``: by split, the absolute path of its data, None where it was in memory. ``store``: where it is.

    ``encoders``: by input whose encoder runs in the loop, the fingerprint of that encoder before training.
    """

    sources: Mapping[str, str | None]
    store: str
    encoders: Mapping[str, str] = field(default_factory=dict)


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
    """Saves the state of a loop in ``folder``; every one of ``ranks`` has one. ``identity`` tells the data apart.

    ``then`` is called after a save.
    """

    def __init__(
        self, folder: Path, identity: Callable[[], str], ranks: Ranks = ALONE, then: Callable[[], None] | None = None
    ) -> None:
        self._folder, self._identity, self._ranks, self._then = folder, identity, ranks, then
        self._data: str | None = None
        self._last = time.monotonic()
        self._took = 0.0

    def due(self) -> bool:
        """Whether the last save is SAVE_SECONDS past, or longer where one takes long."""
        return time.monotonic() - self._last >= SAVE_SECONDS * max(1.0, _LONG * self._took)

    def __call__(self, state: ResumeState) -> None:
        """Save on all ranks or on none. Raises UsageError when that fails; the state saved before is as it was."""
        began = time.monotonic()
        own = None
        if state.rows:
            counters, ranks = state.counters, self._ranks
            name = f"{counters['epoch']}-{counters['batch']}-{ranks.rank}-of-{ranks.world}.safetensors"
            own = self._folder / checkpoint.STATES / name
            self._together(lambda: self._write_rows(own, state))
        self._together(lambda: self._write(state) if self._ranks.rank == 0 else None, own)
        if self._ranks.rank == 0:
            _clear(self._folder, _names(state, self._ranks))
        if self._then is not None:
            self._then()
        self._last = time.monotonic()
        self._took = self._last - began

    def _together(self, write: Callable[[], None], own: Path | None = None) -> None:
        """Write, then wait for the other ranks. Raises UsageError when this or another one failed."""
        failure = None
        try:
            write()
        except UsageError as error:
            failure = error
        failed = failure is not None
        if self._ranks.world > 1:
            failed = self._ranks.most(int(failed)) > 0
        if failed:
            reason = (
                f" ({_reason(failure)})"
                if failure is not None
                else ", because another process could not write its part"
            )
            raise UsageError(
                f"The state of the run cannot be saved in {self._folder}{reason}. Make room; then go on with it from the state "
                "that was saved before: cachestore train --resume RUN"
            ) from failure

    def _write_rows(self, path: Path, state: ResumeState) -> None:
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise outside.unwritable(path.parent, error) from error
        outside.write(path, save(_flat(state.rows)))

    def _write(self, state: ResumeState) -> None:
        if self._data is None:
            self._data = self._identity()
        told = {"counters": json.dumps(state.counters), "data": self._data}
        try:
            for name, key in _APPENDED.items():
                path = self._folder / name
                if path.exists():
                    outside.sync(path)
                    told[key] = str(path.stat().st_size)
            if state.rows:
                told["rows"] = json.dumps(_names(state, self._ranks))
                outside.sync(self._folder / checkpoint.STATES)
        except OSError as error:
            raise outside.unwritable(self._folder, error) from error
        outside.write(self._folder / checkpoint.STATE, save(_flat(state.tensors), told))


def read_state(folder: Path, identity: Callable[[], str], ranks: Ranks = ALONE) -> ResumeState | None:
    """The last state saved of the run in ``folder``, None where there is none; the metrics of later epochs are removed.

    All of ``ranks`` call it. Raises UsageError when the data is not what the run was trained on, or not all have the state, and
    DamageError when it cannot be read.
    """
    path = folder / checkpoint.STATE
    there = path.exists()
    if ranks.most(int(there)) > -ranks.most(-int(there)):
        raise UsageError(f"Some of the processes find the state {path}, others do not. Put the run where all reach it.")
    if not there:
        if ranks.rank == 0:
            _truncate(folder, {})
        return None
    tensors: dict[str, dict[str, Tensor]] = {}
    rows: dict[str, dict[str, Rows]] = {}
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata()
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                group, _, rest = name.partition("/")
                tensors.setdefault(group, {})[rest] = file.get_tensor(name)
        counters = json.loads(told["counters"])
        sizes = {name: int(told.get(key, 0)) for name, key in _APPENDED.items()}
        files: list[Any] = [
            safe_open(folder / checkpoint.STATES / name, "pt") for name in json.loads(told.get("rows", "[]"))
        ]
        for name in files[0].keys() if files else ():
            group, _, rest = name.partition("/")
            rows.setdefault(group, {})[rest] = _Pieces([file.get_slice(name) for file in files])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamageError(f"The state {path} cannot be read ({error}). Train again.") from error
    if told.get("data") != identity():
        raise UsageError(
            f"The data is not what the run at {folder} was trained on before: its rows changed since. Train again."
        )
    if ranks.rank == 0:
        _truncate(folder, sizes)
    return ResumeState(counters, tensors, rows)


def finished(folder: Path) -> None:
    """Remove what only a run that is not finished needs."""
    for name in (checkpoint.STATE, checkpoint.STARTED):
        (folder / name).unlink(missing_ok=True)
    for name in (checkpoint.STATES, checkpoint.RAY):
        shutil.rmtree(folder / name, ignore_errors=True)


class _Pieces:
    """The rows of a tensor, in several files one after another."""

    def __init__(self, slices: Sequence[Any]) -> None:
        self._slices = slices
        self._lengths = [each.get_shape()[0] for each in slices]

    def __len__(self) -> int:
        return sum(self._lengths)

    def __getitem__(self, rows: slice, /) -> Tensor:
        parts, first = [], 0
        for each, length in zip(self._slices, self._lengths, strict=True):
            start, stop = max(rows.start - first, 0), min(rows.stop - first, length)
            if start < stop:
                parts.append(each[start:stop])
            first += length
        return torch.cat(parts) if parts else self._slices[0][0:0]


_APPENDED: Final = {checkpoint.METRICS: "metrics_bytes", checkpoint.STEPS: "steps_bytes"}


def _flat(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    return {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group, named in groups.items()
        for name, tensor in named.items()
    }


def _names(state: ResumeState, ranks: Ranks) -> list[str]:
    """The files that the ranks write their rows to."""
    if not state.rows:
        return []
    moment = f"{state.counters['epoch']}-{state.counters['batch']}"
    return [f"{moment}-{rank}-of-{ranks.world}.safetensors" for rank in range(ranks.world)]


def _clear(folder: Path, kept: Sequence[str]) -> None:
    """Remove the rows of states that were replaced, and what a failed save left."""
    if (folder / checkpoint.STATES).exists():
        for path in (folder / checkpoint.STATES).iterdir():
            if path.name not in kept:
                path.unlink(missing_ok=True)


def _reason(failure: UsageError) -> str:
    cause = failure.__cause__
    return (cause.strerror or str(cause)) if isinstance(cause, OSError) else str(failure)


def _truncate(folder: Path, sizes: Mapping[str, int]) -> None:
    for name in _APPENDED:
        path = folder / name
        try:
            if path.exists():
                os.truncate(path, sizes.get(name, 0))
        except OSError as error:
            raise outside.unwritable(path, error) from error
