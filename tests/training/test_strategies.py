"""One process, data parallel and fully sharded training are one: the same losses and gradients from the same config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.training import groups, live
from tests.training.test_live_images import columns, encoder, image_input
from trainer import train
from trainer.events import Notice
from trainer.fitting import fit_settings
from trainer.strategies import launch
from trainer.strategies.ddp import Means
from trainer.strategies.processes import Processes
from trainer.strategies.ranks import ALONE, Ranks
from trainer.strategies.single import Single
from trainer.work import Job


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


LORA = {"type": "lora", "dropout": 0.0}
CELLS = {
    "bert, two batches a step": ("bert", {"trainable": True}, 2),
    "bert with lora": ("bert", {"adapter": LORA}, 1),
    "llama with lora, two batches a step": ("llama", {"adapter": LORA}, 2),
}


@pytest.mark.parametrize("cell", CELLS)
def test_losses_and_gradient_norms_are_those_of_one_process(
    pair: Processes, tmp_path: Path, models: Path, cell: str
) -> None:
    kind, settings, every = CELLS[cell]
    feature = live.text_input(live.saved(models, kind), **settings)
    job = groups.job(live.config(feature), live.columns(live.texts(49)), tmp_path)
    expected = groups.alone(job, every=every)
    for strategy in ("ddp", "fsdp"):
        found = pair.run(groups.curve, strategy, job, 8, every)
        for (loss, norm), (also, norm_also) in zip(found, expected, strict=True):
            assert loss == pytest.approx(also, abs=1e-4), strategy
            assert norm == pytest.approx(norm_also, rel=1e-3), strategy


def test_fsdp_shards_what_rank_0_alone_has_loaded(pair: Processes, tmp_path: Path, models: Path) -> None:
    feature = live.text_input(live.saved(models, "gptj"), trainable=True)
    job = groups.job(live.config(feature), live.columns(live.texts(49)), tmp_path)
    kept, state = pair.run(groups.footprint, job)
    model = groups.model_of(job, groups.strategy_of("single", ALONE))
    whole = model.state_dict()
    assert kept <= 0.6 * sum(tensor.nbytes for tensor in model.parameters())
    assert list(state) == list(whole)
    for name, tensor in whole.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)


def test_a_batch_without_a_cell_and_one_of_a_single_row_are_steps_too(
    pair: Processes, tmp_path: Path, models: Path
) -> None:
    feature = live.text_input(live.saved(models, "bert"), trainable=True)
    rows = live.texts(40)
    for row in rows[5:]:
        row["text"] = None
    job = groups.job(live.config(feature), live.columns(rows), tmp_path)
    expected = groups.alone(job, size=2)
    for strategy in ("ddp", "fsdp"):
        assert pair.run(groups.curve, strategy, job, 8, 1, 2) == [
            pytest.approx(step, abs=1e-4, rel=1e-3) for step in expected
        ]


def automatic(ranks: Ranks, _: Callable[[Any], None] | None, job: Job) -> float:
    """The learning rate that auto is."""
    strategy = Single() if ranks.world == 1 else launch.strategy_of(job.config, ranks)
    model = groups.model_of(job, strategy)
    strategy.wrap(model)
    return fit_settings(job.config, model, job.batches["train"], strategy).learning_rate


@pytest.mark.parametrize("kind", ["layers after pooling", "batch norm"])
def test_fsdp_in_mixed_precision_finds_its_learning_rate(
    pair: Processes, tmp_path: Path, models: Path, kind: str
) -> None:
    if kind == "batch norm":
        feature = image_input(encoder(models, "shufflenet_v2_x0_5", trainable=True))
    else:
        feature = live.text_input(live.with_layers_after_pooling(live.saved(tmp_path)), trainable=True)
    trainer = {"learning_rate": "auto", "use_mixed_precision": True, "strategy": "fsdp", "num_workers": 2}
    job = groups.job(live.config(feature, trainer=trainer), columns(12), tmp_path)
    assert pair.run(automatic, job) == pytest.approx(automatic(ALONE, None, job), rel=0.05)


def averaged(ranks: Ranks, _: Callable[[Any], None]) -> list[list[list[float] | None]]:
    """On each rank the gradients of three weights, of which rank 0 makes that of the first, rank 1 that of the second."""
    weights = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    means = Means(weights, ranks.world)
    (weights[ranks.rank] * (ranks.rank + 1)).sum().backward()  # type: ignore[no-untyped-call]
    means.settle()
    found: list[Any] = [None] * ranks.world
    dist.all_gather_object(found, [None if each.grad is None else each.grad.tolist() for each in weights])
    return found


def test_a_gradient_that_one_process_alone_made_is_averaged_with_nothing(pair: Processes) -> None:
    assert pair.run(averaged) == [[[0.5, 0.5], [1.0, 1.0], None]] * 2


@pytest.mark.parametrize("backend", [{"trainer": {"strategy": "fsdp", "num_workers": 2}}, {"type": "ray"}], ids=str)
def test_frozen_encoders_train_in_one_process_whatever_the_strategy(tmp_path: Path, backend: dict[str, Any]) -> None:
    notices: list[str] = []
    config = {
        "input_features": [{"name": "wait", "type": "number"}],
        "output_features": [{"name": "topic", "type": "category"}],
        "trainer": {"epochs": 1},
        "backend": backend,
    }
    train(
        config,
        live.columns(live.texts(40)),
        tmp_path / "store",
        output=tmp_path / "run",
        progress=lambda event: notices.append(event.text) if isinstance(event, Notice) else None,
    )
    what = "backend: ray" if "type" in backend else "strategy: fsdp"
    assert f"{what} does nothing: no encoder runs in the loop. One process trains." in notices
