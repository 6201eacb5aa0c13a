"""The progress bar of a build or a training run, on a terminal."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cli.visible import visible

if TYPE_CHECKING:
    from cachestore.built import Progress as BuildProgress


class Bar:
    """One line per thing under way, on stderr; a context manager, and these lines are gone when it ends."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),  # a file's name may have brackets
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def build(self, label: str, state: BuildProgress) -> None:
        """Rows done of a build, rows per second, and what was found in the store."""
        rate = state.rows / max(state.seconds, 1e-9)
        note = f"{rate:,.0f} rows/s  {state.hits:,} found"
        if state.waiting:
            note = f"vectors that another process encodes: waiting for {state.waiting:,}"
        self._show(f"build {label}", state.rows, state.total, note)

    def epoch(self, epoch: int, epochs: int, note: str, line: str) -> None:
        """Epochs done; ``line``, how this one went, stays on the terminal."""
        self.line(line)
        self._show("epochs", epoch, epochs, note)

    def step(self, step: int, steps: int, note: str) -> None:
        """Steps done of a training whose encoders run in the loop."""
        self._show("steps", step, steps, note)

    def line(self, line: str) -> None:
        """What stays on the terminal."""
        self._progress.console.print(visible(line), markup=False, highlight=False, soft_wrap=True)

    def bytes(self, task: str, done: int, total: int) -> None:
        """Bytes done of a task, in MB."""
        self._show(task, done >> 20, total >> 20, "MiB")

    def _show(self, task: str, completed: int, total: int | None, note: str) -> None:
        if task not in self._tasks:
            self._tasks[task] = self._progress.add_task(visible(task), total=total, note="")
        self._progress.update(self._tasks[task], completed=completed, total=total, note=note)
