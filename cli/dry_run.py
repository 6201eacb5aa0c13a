"""What `cachestore train --dry-run` shows: what a run would take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cli import output

if TYPE_CHECKING:
    from trainer.estimate import EncoderNeeds, Estimate


def text(found: Estimate) -> str:
    """Rows and steps, a line for each encoder, and the memory of a worker under each strategy."""
    return "\n".join([*_work(found), "", *map(_encoder, found.encoders), _rest(found), "", *_memory(found)])


def _work(found: Estimate) -> Iterator[str]:
    how = f"{output.count(found.step_rows, 'row')} a step"
    if found.step_rows != found.at_once:
        how += f", {found.at_once:,} at once"
    yield (
        f"{output.count(found.rows, 'training row')}, {how}: {output.count(found.steps_per_epoch, 'step')} an epoch, "
        f"{found.steps:,} at most"
    )
    if found.measured_batch:
        yield f"batch_size: auto is found by trying when training begins; this is for {found.at_once}"


def _encoder(needs: EncoderNeeds) -> str:
    if needs.mode == "cached":
        return f"{needs.name}: {needs.model}, frozen; its vectors of {needs.dim:,} come from the store"
    share = needs.trained / needs.parameters if needs.parameters else 0.0
    what = {"full": "trained", "adapter": "an adapter on it trained", "frozen": "frozen, in the loop"}[needs.mode]
    line = (
        f"{needs.name}: {needs.model}, {what}; {needs.parameters:,} parameters, {needs.trained:,} of them trained "
        f"({share:.2%})"
    )
    if needs.tokens is not None:
        line += f"; {needs.tokens:,} tokens an epoch, {needs.longest:,} at most in a text"
    return line


def _rest(found: Estimate) -> str:
    return f"the rest of the model: {output.count(found.head_parameters, 'parameter')}"


def _memory(found: Estimate) -> Iterator[str]:
    yield "memory of one worker, beside that of torch itself:"
    parts = ("weights", "gradients", "optimizer", "best", "activations", "gathered")
    rows = []
    for each in found.memory:
        workers = "" if each.workers == 1 else f", {each.workers} workers"
        mark = " *" if each.strategy == found.chosen else ""
        sizes = [output.size(getattr(each, part)) for part in parts]
        rows.append([f"{each.strategy}{workers}{mark}", *sizes, output.size(each.total)])
    head = ("strategy", *parts, "together")
    yield output.table(head, rows, right=head[1:])
    live = [needs for needs in found.encoders if needs.mode != "cached"]
    yield "* as the config has it; best: the weights of the best epoch"
    shown = next(each.workers for each in found.memory if each.strategy == found.chosen)
    if found.workers is None:
        yield f"the Ray cluster says how many workers num_workers: auto has; {shown} are shown"
    elif found.workers != shown:
        yield f"num_workers: auto is {found.workers} here, so {found.chosen} would be one process; {shown} are shown"
    if any(needs.longest is not None for needs in live):
        yield f"activations: those of {output.count(found.at_once, 'row')} of the longest texts"
    if unknown := [needs.name for needs in live if needs.activations is None]:
        yield f"activations of {', '.join(unknown)} cannot be told before training, and are not in the sums"
    yield "nothing was encoded or written"
