"""What a run tells while it works: small events, passed to the ``progress`` function of its caller."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from cachestore.built import Progress
from trainer.loop import EpochDone, StepDone

PhaseName: TypeAlias = Literal["read", "build", "gather", "epochs", "evaluate", "write"]


@dataclass(frozen=True)
class PhaseBegun:
    """A phase begins, which ends the one before it."""

    phase: PhaseName


@dataclass(frozen=True)
class Building:
    """How far the build of the text columns of ``data`` is."""

    data: str
    progress: Progress


@dataclass(frozen=True)
class RunBegun:
    """The run that is to be at ``path`` has begun in ``folder``: from now on it can be gone on with."""

    path: Path
    folder: Path


@dataclass(frozen=True)
class Notice:
    """Something the user should know that is no error."""

    text: str


Event: TypeAlias = PhaseBegun | Building | RunBegun | StepDone | EpochDone | Notice
Listener: TypeAlias = Callable[[Event], None]


@dataclass
class Clock:
    """Tells the listener of phases and adds up their seconds."""

    listener: Listener | None
    seconds: dict[str, float] = field(default_factory=dict)
    phase: PhaseName | None = None
    began: float = 0.0

    def begin(self, phase: PhaseName) -> None:
        self.end()
        self.phase, self.began = phase, time.perf_counter()
        if self.listener is not None:
            self.listener(PhaseBegun(phase))

    def end(self) -> dict[str, float]:
        if self.phase is not None:
            self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + time.perf_counter() - self.began
            self.phase = None
        return self.seconds

    def say(self, text: str) -> None:
        if self.listener is not None:
            self.listener(Notice(text))

    def building(self, label: str) -> Callable[[Progress], None] | None:
        if (listener := self.listener) is None:
            return None

        def tell(progress: Progress) -> None:
            listener(Building(label, progress))

        return tell


__all__ = [
    "Building",
    "Clock",
    "EpochDone",
    "Event",
    "Listener",
    "Notice",
    "PhaseBegun",
    "PhaseName",
    "RunBegun",
    "StepDone",
]
