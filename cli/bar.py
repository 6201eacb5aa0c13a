"""The progress bar of a build, on a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from cachestore.build import Progress as BuildProgress


@contextlib.contextmanager
def bar() -> Iterator[Callable[[BuildProgress], None]]:
    """Draws rows done, rows per second, hits and the time left; gone when the build is."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.0f} rows/s  {task.fields[hits]:,} reused"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("building", total=None, rate=0.0, hits=0)

        def show(state: BuildProgress) -> None:
            progress.update(
                task,
                completed=state.rows,
                total=state.total,
                rate=state.rows / max(state.seconds, 1e-9),
                hits=state.hits,
            )

        yield show
