"""Shows what a run tells while it works: remarks for everybody, bars on a terminal."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence

from cachestore.built import Progress
from cli.output import Output, begun, count, duration, say_if_waiting
from trainer.events import Building, EpochDone, Event, Listener, Notice, PhaseBegun, RunBegun, StepDone
from trainer.metrics import COMBINED

_RECENT = 20  # steps whose mean is shown


@contextlib.contextmanager
def watching(out: Output) -> Iterator[Listener]:
    """A function to pass as ``progress`` to train, predict and evaluate."""
    builds: dict[str, Progress] = {}
    waited: set[str] = set()
    steps: deque[StepDone] = deque(maxlen=_RECENT)
    with out.bar() as bar:

        def show(event: Event) -> None:
            match event:
                case Notice(text=text):
                    out.say(text)
                case RunBegun():
                    begun(event.path, event.folder)
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
                case StepDone():
                    steps.append(event)
                    if bar:
                        bar.step(event.step, event.steps, step_note(steps))
                case EpochDone() if steps:  # the bar counts steps; without one, hours may pass
                    if bar:
                        bar.line(epoch_line(event))
                    else:
                        out.say(epoch_line(event))
                case EpochDone():
                    if bar:
                        bar.epoch(
                            event.epoch, event.epochs, f"{event.steps_per_second:,.0f} steps/s", epoch_line(event)
                        )

        yield show


def step_note(steps: Sequence[StepDone]) -> str:
    """How fast the last steps were, and the mean of their losses."""
    seconds = max(sum(step.seconds for step in steps), 1e-9)
    parts = [f"epoch {steps[-1].epoch}", f"{len(steps) / seconds:,.1f} steps/s"]
    if tokens := sum(step.tokens for step in steps):
        parts.append(f"{tokens / seconds:,.0f} tokens/s")
    return "  ".join([*parts, f"loss {sum(step.loss for step in steps) / len(steps):.4f}"])


def epoch_line(event: EpochDone) -> str:
    """How an epoch went, by the loss of each split and the metric that the weights are chosen by; * is the best so far."""
    output, metric = event.chosen_by
    parts = [f"epoch {event.epoch:>{len(str(event.epochs))}}/{event.epochs}"]
    for split, outputs in event.metrics.items():
        whole = outputs.get(COMBINED) or next(iter(outputs.values()))
        parts.append(f"{split} loss {whole['loss']:.4f}")
        if metric in outputs.get(output, {}) and metric != "loss":
            name = metric if len(outputs) == 1 else f"{output} {metric}"
            parts[-1] += f" {name} {outputs[output][metric]:.4f}"
    mark = " *" if event.best and "validation" in event.metrics else "  "
    return "  ".join(parts) + f"{mark}  {duration(event.seconds)}"
