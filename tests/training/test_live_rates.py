"""Learning rates and sizes of batches where encoders are trained."""

from __future__ import annotations

import dataclasses
import mmap
from typing import Any

import pytest
import torch
from torch import Tensor

from cachestore.errors import ConfigError, OutOfMemory
from tests.training import words
from trainer.batches import Batch
from trainer.config import load_config
from trainer.fitting import build_optimizer, fit_settings
from trainer.live import tune
from trainer.live.memory import Peak, available
from trainer.loop import fit
from trainer.model import Model, Output
from trainer.schema import Config
from trainer.strategies import trained_of
from trainer.strategies.ranks import Ranks
from trainer.strategies.single import Single


def config(trainer: dict[str, Any], **encoder: Any) -> Config:
    settings = {"type": "auto_transformer", "pretrained_model_name_or_path": "somewhere", **encoder}
    return load_config(
        {
            "input_features": [{"name": "text", "type": "text", "encoder": settings}],
            "output_features": [{"name": "kind", "type": "category"}],
            "trainer": trainer,
        }
    )


class Workers(Single):  # type: ignore[misc]  # one process that says it is one of four
    ranks = Ranks(0, 4)


class _First(Ranks):
    def first(self, value: Any) -> Any:
        return value

    def most(self, number: int) -> int:
        return number

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor


Workers.ranks = _First(0, 4)


def rates(trainer: dict[str, Any], strategy: Single | None = None, **encoder: Any) -> tuple[float, float]:
    """Of the head and of the encoder."""
    chosen = config(trainer, **encoder)
    found = fit_settings(chosen, words.model(), words.texts(40), strategy or Single())
    return found.learning_rate, found.encoder_rates["text"]


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        ({"trainable": True}, 2e-5),
        ({"adapter": "lora"}, 2e-4),
        ({"adapter": "ia3"}, 5e-3),
        ({"adapter": "prompt_tuning"}, 1e-2),
    ],
)
def test_an_encoder_has_by_default_the_rate_of_what_is_trained_of_it(encoder: dict[str, Any], expected: float) -> None:
    head, of_encoder = rates({}, **encoder)
    assert of_encoder == expected
    assert 1e-4 <= head <= 3e-2


def test_a_rate_that_is_written_is_that_of_all_unless_the_encoder_has_one() -> None:
    assert rates({"learning_rate": 1e-3}, trainable=True) == (1e-3, 1e-3)
    assert rates({"learning_rate": 1e-3, "encoder_learning_rate": 1e-5}, trainable=True) == (1e-3, 1e-5)
    assert rates({"learning_rate": "auto", "encoder_learning_rate": 1e-5}, adapter="lora")[1] == 1e-5


@pytest.mark.parametrize(("scaling", "factor"), [("constant", 1.0), ("sqrt", 2.0), ("linear", 4.0)])
def test_rates_grow_with_the_workers_where_that_is_asked(scaling: str, factor: float) -> None:
    written = {"learning_rate": 1e-3, "encoder_learning_rate": 1e-5, "learning_rate_scaling": scaling}
    assert rates(written, Workers(), trainable=True) == pytest.approx((1e-3 * factor, 1e-5 * factor))
    assert rates(written, trainable=True) == (1e-3, 1e-5)


def test_encoders_learn_at_their_own_rate() -> None:
    chosen = config({"optimizer": {"type": "sgd"}, "learning_rate": 0.5}, trainable=True)
    model = words.model()
    settings = dataclasses.replace(words.SETTINGS, learning_rate=0.5, encoder_rates={"text": 0.25})
    made: Any = build_optimizer(chosen, trained_of(model), settings)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in made.parameters:
        parameter.grad = torch.ones_like(parameter)
    made.step(0.1)
    for name, parameter in model.named_parameters():
        rate = 0.0 if "frozen" in name else 0.05 if "table" in name else 0.1
        torch.testing.assert_close(before[name] - parameter.detach(), torch.full_like(parameter, rate))


def test_a_range_test_leaves_the_model_as_it_was_and_trains_encoders_at_the_rate_it_found() -> None:
    model, before = words.model(), words.model().state_dict()
    chosen = config({"learning_rate": "range_test", "batch_size": 8}, trainable=True)
    found = fit_settings(chosen, model, words.texts(100), Single())
    assert found.learning_rate == found.encoder_rates["text"] > 1e-5
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Timed(Model):
    """A model whose steps take as long as a table says, and that fits as many rows as ``most``."""

    seen: list[int]
    most = 10_000

    def forward(self, batch: Batch) -> Output:
        self.seen.append(batch.rows)
        if batch.rows > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(batch)


def timed(most: int = 10_000) -> Timed:
    model = words.model(dropout=0.2)
    model.__class__ = Timed
    found: Any = model
    found.seen, found.most = [], most
    return found  # type: ignore[no-any-return]


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Rows a second by size, in place of those measured."""
    given: dict[int, float] = {}
    measured = tune._seconds

    def seconds(steps: Any, batch: Batch, ranks: Ranks) -> float | None:
        return None if measured(steps, batch, ranks) is None else batch.rows / given[batch.rows]

    monkeypatch.setattr(tune, "_seconds", seconds)
    return given


def settled(model: Model, rows: int = 1000, strategy: Single | None = None, **trainer: Any) -> tuple[int | str, str]:
    said: list[str] = []
    chosen = config({"learning_rate": 0.01, **trainer}, trainable=True)
    found = tune.with_batch_size(chosen, model, words.texts(rows), strategy or Single(), said.append)
    return found.trainer.batch_size, " ".join(said)


@pytest.mark.parametrize(
    ("measured", "expected", "tried"),
    [
        ((100, 200, 300, 400, 500), 128, 128),
        ((67, 79, 77, 88, 98), 128, 128),  # as a noisy machine measures it: one size that is slower ends nothing
        ((100, 101, 102, 500, 600), 8, 32),  # two that are no faster do
        ((100, 150, 120, 140, 160), 16, 64),
    ],
)
def test_the_size_is_the_last_that_was_clearly_faster(
    speeds: dict[int, float], measured: tuple[int, ...], expected: int, tried: int
) -> None:
    speeds.update(zip((8, 16, 32, 64, 128), measured, strict=True))
    model = timed()
    found, said = settled(model)
    assert (found, max(model.seen)) == (expected, tried)
    assert f"batch_size: auto is {expected} here" in said


def test_a_size_that_memory_does_not_suffice_for_ends_the_search(speeds: dict[int, float]) -> None:
    speeds.update({8: 100, 16: 200, 32: 300})
    assert settled(timed(most=20))[0] == 16
    with pytest.raises(ConfigError, match=r"trainer.batch_size: auto found no room for a step of 8 rows"):
        settled(timed(most=4))


def test_a_size_that_would_fill_the_memory_is_not_tried(
    speeds: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds.update({8: 100, 16: 200, 32: 300, 64: 400, 128: 500})
    monkeypatch.setattr(tune, "available", lambda _: 1000)
    monkeypatch.setattr(Peak, "grown", lambda _: 450)  # twice that is more than four fifths
    assert settled(timed())[0] == 8
    monkeypatch.setattr(Peak, "grown", lambda _: None)  # where the system does not tell
    assert settled(timed())[0] == 128


def test_a_size_that_is_too_much_for_one_of_several_processes_is_named(speeds: dict[int, float]) -> None:
    speeds.update({8: 100, 16: 200, 32: 300})
    with pytest.raises(
        OutOfMemory, match=r"auto tried 32 rows at once, and one of the 4 processes has not enough memory"
    ):
        settled(timed(most=20), strategy=Workers())


def test_processes_share_the_memory_of_a_computer_and_not_that_of_their_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert tune._sharing(torch.device("cpu"), Ranks(0, 4)) == 4
    assert [tune._sharing(torch.device("cuda"), Ranks(0, world)) for world in (1, 4, 8)] == [1, 1, 2]


def test_it_keeps_within_the_data_and_what_is_written(speeds: dict[int, float]) -> None:
    speeds.update({5: 100, 8: 100, 16: 200, 32: 300, 64: 400, 128: 500})
    assert settled(timed(), rows=100)[0] == 16
    assert settled(timed(), rows=5)[0] == 5
    assert settled(timed(), max_batch_size=40)[0] == 32
    assert settled(timed(), effective_batch_size=48)[0] == 24  # two of them are one step
    assert settled(timed(), effective_batch_size=60)[0] == 30
    untouched = timed()
    assert settled(untouched, batch_size=24)[0] == 24
    assert settled(untouched, effective_batch_size=64, gradient_accumulation_steps=2)[0] == "auto"
    assert not untouched.seen


def test_trying_sizes_leaves_model_and_generators_as_they_were(speeds: dict[int, float]) -> None:
    speeds.update({8: 100, 16: 200, 32: 300, 64: 400, 128: 500})
    plain, tried = words.model(dropout=0.2), timed()
    state = torch.get_rng_state()
    settled(tried)
    assert torch.equal(torch.get_rng_state(), state)
    for model in (plain, tried):
        optimizer: Any = build_optimizer(config({"learning_rate": 0.01}, trainable=True), trained_of(model))
        fit(
            model,
            words.texts(40),
            None,
            optimizer=optimizer,
            settings=words.SETTINGS,
            on_epoch=lambda _: None,
            strategy=Single(),
        )
    assert all(torch.equal(one, plain.state_dict()[name]) for name, one in tried.state_dict().items())


def test_the_longest_rows_are_tried() -> None:
    rows = words.texts(50)
    lengths = rows.cells["text"].lengths()
    batch = rows.longest(20)
    cells: Any = batch.inputs["text"]
    assert batch.rows == len(cells) == 20
    assert set(cells.lengths()) <= set(sorted(lengths)[-8:])
    assert lengths.max() in cells.lengths()


def test_memory_is_measured_where_the_system_tells() -> None:
    device = torch.device("cpu")
    peak = Peak(device)
    with mmap.mmap(-1, 64 << 20) as block:  # an allocator could give memory that the process had before
        for at in range(0, len(block), mmap.PAGESIZE):
            block[at] = 1
    grown = peak.grown()
    if grown is not None:
        assert grown >= 60 << 20
    found = available(device)
    assert found is None or found > 0
