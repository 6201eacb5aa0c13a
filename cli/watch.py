"""Shows what a run tells while it works: remarks for everybody, bars on a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from cachestore.built import Progress
from cli.output import Output, count, say_if_waiting
from trainer.events import Building, EpochDone, Event, Listener, Notice, PhaseBegun


@contextlib.contextmanager
def watching(out: Output) -> Iterator[Listener]:
    """A function to pass as ``progress`` to train, predict and evaluate."""
    builds: dict[str, Progress] = {}
    waited: set[str] = set()
    with out.bar() as bar:

        def show(event: Event) -> None:
            match event:
                case Notice(text=text):
                    out.say(text)
                case Building(data=data, progress=progress):
                    if data not in builds:
                        out.say(f"{data}: looking its cells up; what the store lacks is encoded")
                    builds[data] = progress
                    say_if_waiting(out, waited, data, progress)
                    if bar:
                        bar.build(data, progress)
                case PhaseBegun(phase="gather"):
                    for data, progress in builds.items():
                        out.say(
                            f"{data}: {count(progress.encoded, 'vector')} encoded, {count(progress.hits, 'cell')} found in the store"
                        )
                case EpochDone():
                    if bar:
                        bar.epoch(event.epoch, event.epochs, f"{event.steps_per_second:,.0f} steps/s")

        yield show
