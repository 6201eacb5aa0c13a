"""The loop where encoders run in it: what a step tells, what stops it, and from where it goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from cachestore.errors import OutOfMemory, TrainingDiverged
from tests.training import words
from trainer.epochs import Fit
from trainer.evaluation import final
from trainer.live.steps import StepDone
from trainer.loop import EpochDone, FitResult, evaluate, fit
from trainer.model import Model
from trainer.optim import Adam, Clipping, Groups, Optimizer
from trainer.resume import ResumeState
from trainer.strategies import trained_of
from trainer.strategies.single import Single
from trainer.tally import Tally

ROWS = 42  # of which the last batch of 8 has 2


def optimizer(model: Model) -> Optimizer:
    """AdamW whose encoder learns at half the rate."""
    trained = trained_of(model)
    parts = [[each.parameter for each in trained if (each.encoder is None) is head] for head in (False, True)]
    optimizers = [(Adam(parts[0], decoupled=True), 0.5), (Adam(parts[1], decoupled=True), 1.0)]
    return Groups([each.parameter for each in trained], optimizers)


def run(
    model: Model,
    *,
    on_step: Callable[[StepDone], None] | None = None,
    resume: ResumeState | None = None,
    save: Callable[[ResumeState], None] | None = None,
    **changes: Any,
) -> tuple[FitResult, list[EpochDone]]:
    epochs: list[EpochDone] = []
    result = fit(
        model,
        words.texts(ROWS),
        words.texts(20, seed=1),
        optimizer=optimizer(model),
        settings=dataclasses.replace(words.SETTINGS, **changes),
        on_epoch=epochs.append,
        strategy=Single(),
        on_step=on_step,
        resume=resume,
        save=save,
    )
    return result, epochs


def weights(model: Model) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in model.state_dict().values()])


def copied(state: ResumeState) -> ResumeState:
    """As it comes back from a file."""
    tensors = {group: {name: each.clone() for name, each in named.items()} for group, named in state.tensors.items()}
    return ResumeState(json.loads(json.dumps(state.counters)), tensors)


def told(epochs: list[EpochDone]) -> list[tuple[int, Mapping[str, Any], float]]:
    return [(each.epoch, each.metrics, each.learning_rate) for each in epochs]


def test_every_step_tells_its_loss_its_gradient_norm_and_its_size() -> None:
    steps: list[StepDone] = []
    model = words.model()
    _, epochs = run(model, on_step=steps.append, clipping=Clipping(global_norm=1e-6), epochs=2)
    assert [(step.step, step.steps, step.epoch) for step in steps] == [(i + 1, 12, 1 + i // 6) for i in range(12)]
    assert sum(step.rows for step in steps[:6]) == ROWS
    cells = words.texts(ROWS).cells["text"]
    assert sum(step.tokens for step in steps[:6]) == cells.lengths().sum()
    mean = sum(step.loss * step.rows for step in steps[:6]) / ROWS
    assert mean == pytest.approx(epochs[0].metrics["train"]["kind"]["loss"], rel=1e-5)
    assert min(step.gradient_norm for step in steps) > 1e-3  # before it is clipped


def test_accumulated_batches_are_one_step_with_the_loss_and_norm_of_their_rows_together() -> None:
    def first(**changes: Any) -> StepDone:
        steps: list[StepDone] = []
        run(words.model(), on_step=steps.append, epochs=1, **changes)
        return steps[0]

    whole, parts = first(batch_size=ROWS), first(batch_size=11, accumulation=4)
    assert (parts.rows, parts.tokens) == (whole.rows, whole.tokens)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert parts.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-4)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_every_step_is_a_place_to_go_on_from(accumulation: int) -> None:
    settings = {"accumulation": accumulation, "batch_size": 8 // accumulation, "early_stop": -1}
    states: list[ResumeState] = []
    model = words.model(dropout=0.3)
    expected = run(model, save=lambda state: states.append(copied(state)), **settings)
    assert len(states) == 3 * 6 + 3
    for state in states:
        again = words.model(dropout=0.3, seed=7)
        again.encoder("text").module.frozen.load_state_dict(model.encoder("text").module.frozen.state_dict())  # type: ignore[union-attr, operator]
        result, epochs = run(again, resume=state, **settings)
        assert torch.equal(weights(again), weights(model))
        assert told(epochs) == told(expected[1])[state.counters["epoch"] :]
        assert (result.best_epoch, result.metrics) == (expected[0].best_epoch, expected[0].metrics)


def test_the_best_weights_of_a_state_are_where_those_of_the_model_are() -> None:
    states: list[ResumeState] = []
    run(words.model(), save=states.append, epochs=1)
    model, elsewhere = words.model(), dataclasses.replace(words.texts(ROWS), device=torch.device("meta"))
    again = Fit(model, elsewhere, optimizer(model), words.SETTINGS, Single())
    again.load(states[-1])
    assert again.best
    assert all(tensor.device.type == "cpu" for tensor in again.best.values())


def test_the_rate_of_steps_counts_those_that_were_made() -> None:
    states: list[ResumeState] = []
    run(words.model(), save=lambda state: states.append(copied(state)), epochs=1)
    model = words.model()
    again = Fit(model, words.texts(ROWS), optimizer(model), words.SETTINGS, Single())
    again.load(states[3])
    again.done.epoch += 1
    assert again.train_epoch()[2] == 2


def test_a_split_is_encoded_once_however_often_it_is_evaluated() -> None:
    model, rows = words.model(), words.texts(ROWS)
    expected = evaluate(model, rows)
    encoded: list[int] = []
    own: Any = model.encoder("text").module
    own.register_forward_hook(lambda module, inputs, output: encoded.append(len(output)))
    found = final(model, rows)
    assert sum(encoded) == ROWS
    for metric, value in expected["kind"].items():
        assert found.values()["kind"][metric] == pytest.approx(value, rel=1e-5)


def test_a_tally_goes_on_on_the_device_where_it_was() -> None:
    model = words.model()
    (batch,) = words.texts(ROWS).in_order(ROWS)
    output = model(batch)
    tally = Tally(model)
    tally.add(output, batch)
    state = tally.state_dict()
    again = Tally(model)
    again.load_state_dict({**state, "0.weights": state["0.weights"].to("meta")})
    again.add(output, batch)
    weights = again.state_dict()["0.weights"]
    assert (weights.device.type, len(weights)) == ("meta", 2)


def test_what_is_frozen_is_neither_saved_nor_kept_twice() -> None:
    states: list[ResumeState] = []
    run(words.model(), save=states.append, epochs=1)
    for group in ("model", "best"):
        names = states[-1].tensors[group].keys()
        assert any("table" in name for name in names)
        assert not any("frozen" in name for name in names)


def test_a_loss_that_is_not_finite_names_step_rows_and_rate_and_changes_no_weight() -> None:
    model = words.model()
    head = model.decoder("kind").scores.weight  # type: ignore[union-attr]
    batches = words.texts(ROWS)
    poisoned = batches.cells["text"].texts()[20][0, 0]  # a word of one text

    def spoil(step: StepDone) -> None:
        if step.step == 2:
            with torch.no_grad():
                model.encoder("text").module.table.weight[int(poisoned)] = torch.nan  # type: ignore[union-attr, operator, index]

    with pytest.raises(TrainingDiverged, match=r"not finite at epoch 1, step [3-6] of it \(data rows ") as error:
        run(model, on_step=spoil)
    found = re.search(r"data rows ([\d, ]+), counted from 0\), at learning rate 0\.02,", str(error.value))
    assert found is not None
    rows = [int(row) - 100 for row in found[1].split(",")]
    texts = [batches.cells["text"].texts()[row] for row in rows]
    assert any(poisoned in text for text in texts)
    assert torch.isfinite(head).all()  # type: ignore[arg-type]


def test_gradients_that_are_not_finite_stop_it_before_the_step() -> None:
    model = words.model()
    table = model.encoder("text").module.table.weight  # type: ignore[union-attr]
    table.register_hook(lambda gradient: gradient * torch.inf)  # type: ignore[operator, union-attr]
    before = weights(model)
    with pytest.raises(TrainingDiverged, match="The gradients are not finite at epoch 1, step 1"):
        run(model)
    assert torch.equal(weights(model), before)


def test_rows_that_do_not_fit_into_memory_at_once_say_which_setting_takes_fewer() -> None:
    model = words.model()

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    own: Any = model.encoder("text").module
    own.register_forward_hook(full)
    with pytest.raises(OutOfMemory, match="Set a smaller batch_tokens, or for pictures batch_size"):
        evaluate(model, words.texts(ROWS))


def test_the_best_weights_take_the_place_of_the_best_before() -> None:
    model = words.model()
    fitting = Fit(model, words.texts(ROWS), optimizer(model), words.SETTINGS, Single())
    fitting.done.epoch = 1
    fitting.judge({"validation": {"kind": {"accuracy": 0.5}}})
    places = {name: tensor.data_ptr() for name, tensor in fitting.best.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    fitting.judge({"validation": {"kind": {"accuracy": 0.6}}})
    assert {name: tensor.data_ptr() for name, tensor in fitting.best.items()} == places
    weight: Any = model.decoder("kind").scores.weight  # type: ignore[union-attr]
    assert torch.equal(fitting.best["decoders.feature:kind.scores.weight"], weight)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_a_step_that_does_not_fit_says_what_takes_less(error: RuntimeError) -> None:
    model = words.model()

    def full(*_: object) -> None:
        raise error

    model.combiner.register_forward_hook(full)
    with pytest.raises(
        OutOfMemory, match=r"8 rows at once, the longest of \d+ tokens.*batch_size.*gradient_checkpoint"
    ):
        run(model)


def test_other_errors_of_a_step_stay_what_they_are() -> None:
    model = words.model()

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    model.combiner.register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run(model)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_for_the_step_and_its_state(number: signal.Signals) -> None:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    try:
        states: list[ResumeState] = []
        steps: list[int] = []

        def interrupt(step: StepDone) -> None:
            steps.append(step.step)
            if step.step == 4:
                os.kill(os.getpid(), number)

        model = words.model()
        with pytest.raises(KeyboardInterrupt):
            fit(
                model,
                words.texts(ROWS),
                None,
                optimizer=optimizer(model),
                settings=words.SETTINGS,
                on_epoch=lambda _: None,
                on_step=interrupt,
                strategy=Single(),
                save=states.append,
                due=lambda: False,
            )
        assert steps == [1, 2, 3, 4]
        assert [(state.counters["epoch"], state.counters["batch"]) for state in states] == [(0, 4)]
        assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_second_interrupt_does_not_wait() -> None:
    def interrupt(step: StepDone) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("still here")

    states: list[ResumeState] = []
    with pytest.raises(KeyboardInterrupt):
        run(words.model(), on_step=interrupt, save=states.append)
    assert not states
