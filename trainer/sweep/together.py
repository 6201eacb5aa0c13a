"""The loop of several trials in one pass: as ``trainer.loop.fit`` of each, with their parameters stacked."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch

from cachestore.errors import CachestoreError, DataError, TrainingDiverged
from trainer import epochs, loop
from trainer.batches import Batches
from trainer.epochs import FitSettings
from trainer.layers import Dropout
from trainer.live.steps import diverged
from trainer.loop import EpochDone, FitResult
from trainer.model import Model
from trainer.optim import Lbfgs, Optimizer
from trainer.sweep.layers import Draws, Unstackable
from trainer.sweep.stack import Stack, StackTally, shuffled, spread
from trainer.sweep.steps import Steps
from trainer.tally import Metrics


@dataclass(frozen=True)
class Member:
    """One trial of a stack: its model with fresh weights, and how it is trained."""

    model: Model
    optimizer: Optimizer | Lbfgs
    settings: FitSettings


@dataclass
class _Running:
    """A trial under way."""

    place: int
    member: Member
    optimizer: Optimizer
    fit: epochs.Fit
    rates: list[float] = field(default_factory=list)


def fit_together(
    members: Sequence[Member],
    train: Batches,
    validation: Batches | None,
    *,
    on_epoch: Callable[[int, EpochDone], None],
    on_end: Callable[[int, FitResult | CachestoreError], None],
    on_start: Callable[[], None] = lambda: None,
) -> None:
    """Train all, as ``loop.fit`` trains each: with its own seed, order, dropout, rates, optimizer and early stop.

    ``on_start`` is called once they are stacked. The others are told the place of the trial in ``members``; ``on_end`` when it
    leaves the stack: then its model holds the weights of its best epoch, or it failed as it would alone. Raises Unstackable.
    """
    began = time.perf_counter()
    settings = members[0].settings
    running: list[_Running] = []
    for place, member in enumerate(members):
        if isinstance(member.optimizer, Lbfgs):
            raise Unstackable("lbfgs has no step of its own gradients")
        fit = epochs.Fit(member.model, train, member.optimizer, member.settings)
        running.append(_Running(place, member, member.optimizer, fit))
    # equal seeds draw equal orders, equal seeds and rates equal masks
    orders = {member.settings.seed: torch.Generator().manual_seed(member.settings.seed) for member in members}
    draws = Draws([_seeded(each.member) for each in running], [_drawn_by(each.member) for each in running])
    stack = Stack([member.model for member in members], draws)
    if not stack.alike(train):
        raise Unstackable("stacked, they give other scores than one by one")
    on_start()
    flop = (
        6 * min(settings.batch_size, train.rows) * sum(p.numel() for each in members for p in each.optimizer.parameters)
    )
    with loop.threads_for(flop):
        while running:
            epoch_began = time.perf_counter()
            tally, steps = _pass(running, stack, train, orders)
            seconds = time.perf_counter() - epoch_began
            bad = tally.first_bad_steps()
            measured = evaluate(stack, train, settings) if settings.evaluate_training_set else tally.metrics()
            validated = None if validation is None else evaluate(stack, validation, settings)
            ended: list[_Running] = []
            for at, each in enumerate(running):
                metrics: dict[str, Metrics] = {"train": measured[at]}
                if validated is not None:
                    metrics["validation"] = validated[at]
                try:
                    if (step := bad[at]) is not None:
                        raise diverged(
                            each.fit.done.epoch, step + 1, each.rates[step], each.member.settings.encoder_factors
                        )
                    each.fit.judge(metrics)
                except (TrainingDiverged, DataError) as error:
                    ended.append(each)
                    _leave(each.member.model)
                    on_end(each.place, error)
                    continue
                done = each.fit.done
                on_epoch(
                    each.place,
                    EpochDone(
                        done.epoch,
                        each.fit.epochs,
                        metrics,
                        (each.member.settings.validation_field, each.member.settings.validation_metric),
                        learning_rate=each.rates[-1],
                        steps_per_second=steps / seconds,
                        seconds=time.perf_counter() - epoch_began,
                        best=done.best_epoch == done.epoch,
                    ),
                )
                if each.fit.over():
                    each.fit.keep_best()
                    ended.append(each)
                    _leave(each.member.model)
                    spent = time.perf_counter() - began
                    on_end(each.place, FitResult(done.epoch, done.best_epoch, spent, done.best_metrics))
            if ended:
                places = [at for at, each in enumerate(running) if each not in ended]
                running = [running[at] for at in places]
                if running:
                    draws = draws.of(places)
                    orders = {each.member.settings.seed: orders[each.member.settings.seed] for each in running}
                    stack = Stack([each.member.model for each in running], draws)


def evaluate(stack: Stack, batches: Batches, settings: FitSettings) -> list[Metrics]:
    """Of every trial its loss and metrics over all rows."""
    stack.train(False)
    tally = StackTally(stack)
    with torch.inference_mode():
        for batch in batches.in_order(settings.eval_batch_size or loop.EVALUATION_ROWS):
            own = spread(batch)
            tally.add(stack(own), own)
    return tally.metrics()


def obstacle(member: Member, device: torch.device) -> str | None:
    """Why a trial cannot train together with others, None if it may."""
    settings = member.settings
    if isinstance(member.optimizer, Lbfgs):
        return "lbfgs looks at all rows several times a step"
    if settings.mixed_precision:
        return "use_mixed_precision"
    if settings.accumulation != 1:
        return "gradient_accumulation_steps"
    unknown = set(FitSettings.__dataclass_fields__) - _KNOWN
    if unknown:
        return f"the setting {', '.join(sorted(unknown))}"
    if device.type != "cpu" and _rates(member.model):
        return "dropout on a GPU draws from a generator that trials cannot have each their own of"
    return None


_KNOWN = {
    "encoder_rates",  # of encoders in the loop, and no stack has one
    *("epochs", "batch_size", "learning_rate", "validation_field", "validation_metric", "eval_batch_size", "schedule"),
    *("plateau", "clipping", "penalty", "accumulation", "steps", "early_stop", "mixed_precision"),
    *("evaluate_training_set", "seed"),
}


def _pass(
    running: Sequence[_Running], stack: Stack, train: Batches, orders: Mapping[int, torch.Generator]
) -> tuple[StackTally, int]:
    tally = StackTally(stack)
    for each in running:
        each.fit.done.epoch += 1
        each.rates.clear()
    fit = running[0].fit
    first = (fit.done.epoch - 1) * fit.per_epoch
    steps = min(fit.per_epoch, fit.steps - first)
    seeds = list(orders)
    of = [seeds.index(each.member.settings.seed) for each in running]
    stack.train(True)
    steps_of = Steps(stack.parameters, [each.optimizer for each in running], [each.member.settings for each in running])
    batches = shuffled(train, running[0].member.settings.batch_size, list(orders.values()), of)
    for step, batch in enumerate(islice(batches, steps) if steps < fit.per_epoch else batches):
        output = stack(batch)
        output.loss.sum().backward()  # type: ignore[no-untyped-call]
        rates = [each.fit.done.slowed * each.fit.rate(first + step) for each in running]
        for each, rate in zip(running, rates, strict=True):
            each.rates.append(rate)
        steps_of.step(rates)
        tally.add(output, batch)
    return tally, steps


def _leave(model: Model) -> None:
    """Have a model's parameters in memory of their own: views would keep the whole stack alive."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def _seeded(member: Member) -> torch.Tensor:
    return torch.Generator().manual_seed(member.settings.seed).get_state()


def _drawn_by(member: Member) -> Any:
    return member.settings.seed, _rates(member.model)


def _rates(model: Model) -> tuple[float, ...]:
    return tuple(module.rate for module in model.modules() if isinstance(module, Dropout))
