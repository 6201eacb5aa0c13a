from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cachestore.errors import ConfigError
from cachestore.store import open_store
from tests.training.heads import classifier
from tests.training.test_loop import kinds, run
from tests.training.test_run import config, messages, write
from trainer import load_config, train
from trainer.events import EpochDone, Event
from trainer.optim import Plateau, Schedule


def rates(schedule: Schedule, steps: int, learning_rate: float = 1.0, per_epoch: int = 1) -> list[float]:
    rate = schedule.over(steps, per_epoch, learning_rate)
    return [rate(step) for step in range(steps)]


def test_warm_up_is_linear_from_zero_and_counts_steps() -> None:
    found = rates(Schedule(warmup_fraction=0.1), 100)[:12]
    assert found == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0])


def test_of_several_warm_ups_the_longest_counts() -> None:
    assert rates(Schedule(warmup_fraction=0.1, warmup_steps=4), 20)[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert rates(Schedule(warmup_steps=4, warmup_epochs=2), 40, per_epoch=5)[10:12] == pytest.approx([1.0, 1.0])
    assert rates(Schedule(warmup_steps=4, warmup_epochs=2), 40, per_epoch=5)[9] == pytest.approx(0.9)


def test_linear_decay_begins_after_the_warm_up_and_would_end_at_zero() -> None:
    found = rates(Schedule("linear", warmup_fraction=0.2), 10)
    assert found == pytest.approx([0.0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])


def test_cosine_decay_is_half_a_period() -> None:
    found = rates(Schedule("cosine"), 8, 2.0)
    assert found[0] == 2.0
    assert found[4] == pytest.approx(1.0)
    assert all(later < earlier for earlier, later in pairwise(found))
    assert 0 < found[-1] < 0.1


def test_decays_end_at_the_least_rate_if_there_is_one() -> None:
    for schedule in (Schedule("cosine", least=0.5), Schedule("linear", least=0.5), Schedule("polynomial", least=0.5)):
        found = rates(schedule, 1000)
        assert found[0] == 1.0
        assert found[-1] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("power", [1.0, 2.0, 0.5])
def test_polynomial_decay_is_torchs(power: float) -> None:
    assert rates(Schedule("polynomial", power=power), 12) == pytest.approx(
        torchs(lambda optimizer: torch.optim.lr_scheduler.PolynomialLR(optimizer, 12, power), 12)
    )


@pytest.mark.parametrize(("warmup", "share"), [(0.0, 0.3), (0.1, 0.1)])
def test_one_cycle_is_torchs(warmup: float, share: float) -> None:
    expected = torchs(
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 1.0, total_steps=50, pct_start=share, cycle_momentum=False
        ),
        50,
    )
    assert rates(Schedule("one_cycle", warmup_fraction=warmup), 50) == pytest.approx(expected)
    assert max(expected) == pytest.approx(1.0)


def torchs(make: object, steps: int) -> list[float]:
    """The rates of one of torch's schedulers; its optimizers import torch._dynamo, which tests may."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)  # type: ignore[operator]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_exponential_decay_multiplies_by_its_rate_every_so_many_steps() -> None:
    schedule = Schedule("exponential", decay_rate=0.5, decay_steps=4)
    assert rates(schedule, 9)[::4] == pytest.approx([1.0, 0.5, 0.25])
    assert rates(schedule, 9)[2] == pytest.approx(math.sqrt(0.5))
    stairs = Schedule("exponential", decay_rate=0.5, decay_steps=4, staircase=True)
    assert rates(stairs, 9) == pytest.approx([1.0] * 4 + [0.5] * 4 + [0.25])


def test_inverse_square_root_decay_halves_the_rate_after_three_warm_ups_more() -> None:
    found = rates(Schedule("inverse_sqrt", warmup_steps=10), 50)
    assert found[10] == pytest.approx(1.0)
    assert found[40] == pytest.approx(0.5)
    assert rates(Schedule("inverse_sqrt", decay_steps=5), 16)[15] == pytest.approx(0.5)


@pytest.mark.parametrize("decay", ["linear", "cosine", "one_cycle", "exponential", "inverse_sqrt", "polynomial", None])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
def test_every_schedule_survives_a_run_of_few_steps(decay: str | None, steps: int, warmup: float) -> None:
    found = rates(Schedule(decay, warmup_fraction=warmup), steps)  # type: ignore[arg-type]
    assert all(0 <= rate <= 1 for rate in found)


def test_without_warm_up_or_decay_the_rate_is_constant() -> None:
    assert set(rates(Schedule(), 7, 0.3)) == {0.3}


def test_a_run_that_is_all_warm_up_never_decays() -> None:
    assert rates(Schedule("linear", warmup_fraction=1.0), 4)[3] == pytest.approx(0.75)


def test_the_rate_falls_where_a_metric_stands_still_and_only_so_often() -> None:
    plateau = Plateau(times=2, patience=2, factor=0.1, metric="accuracy", split="validation")
    train, validation = kinds(40), kinds(20, seed=1)
    _, epochs = run(classifier(), train, validation, epochs=16, early_stop=-1, plateau=plateau, learning_rate=1e-9)
    # the first epoch is an improvement, three without one slow it down, and so do three more
    found = [epoch.learning_rate / 1e-9 for epoch in epochs]
    assert found == pytest.approx([1.0] * 4 + [0.1] * 3 + [0.01] * 9)


def test_the_rate_stays_while_the_training_loss_falls() -> None:
    plateau = Plateau(times=5, patience=1, factor=0.1, metric="loss", split="train")
    _, epochs = run(classifier(), kinds(60), epochs=6, plateau=plateau)
    assert {epoch.learning_rate for epoch in epochs} == {0.02}


def standing_still(metric: str, split: str = "training", **trainer: Any) -> dict[str, Any]:
    outputs = [{"name": "topic", "type": "category"}, {"name": "cost", "type": "number"}]
    scheduler = {"reduce_on_plateau": 1, "reduce_on_plateau_patience": 0, "reduce_on_plateau_rate": 0.5}
    scheduler |= {"reduce_eval_metric": metric, "reduce_eval_split": split}
    section = {"epochs": 3, "learning_rate": 1e-9, "early_stop": -1, "learning_rate_scheduler": scheduler, **trainer}
    return config(output_features=outputs, trainer=section)


@pytest.mark.parametrize(
    ("metric", "trainer"),
    [
        ("mcc", {}),
        ("accuracy_micro", {}),
        ("loss", {"validation_field": "combined"}),
        ("r2", {"validation_field": "cost"}),
    ],
)
def test_any_metric_of_the_validation_field_may_stand_still(tmp_path: Path, metric: str, trainer: Any) -> None:
    data = write(tmp_path / "messages.csv", messages(60))
    told: list[Event] = []
    with open_store(tmp_path / "store") as store:
        given = standing_still(metric, "validation", **trainer)
        train(given, data, store, output=tmp_path / "run", progress=told.append)
    found = [event.learning_rate for event in told if isinstance(event, EpochDone)]
    assert found[-1] in (1e-9, 0.5e-9)


def test_a_metric_that_the_validation_field_lacks_is_a_fault_of_the_config() -> None:
    place = r"learning_rate_scheduler.reduce_eval_metric: "
    with pytest.raises(ConfigError, match=place + r"the output 'topic' has no 'acuracy'; did you mean 'accuracy'\?"):
        load_config(standing_still("acuracy"))
    with pytest.raises(ConfigError, match=place + "'combined' has no 'accuracy'"):
        load_config(standing_still("accuracy", validation_field="combined"))


def test_a_plateau_of_validation_rows_needs_some(tmp_path: Path) -> None:
    data = write(tmp_path / "messages.csv", messages(60))
    with (
        open_store(tmp_path / "store") as store,
        pytest.raises(ConfigError, match="reduce_eval_split: there are no validation rows"),
    ):
        train(standing_still("loss", "validation"), data, store, test=data, output=tmp_path / "run")
