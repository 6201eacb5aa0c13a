"""What ranks do in tests: train a small model step by step and say what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from cachestore.store import open_store
from trainer import loop
from trainer.assemble import build_model
from trainer.config import load_config
from trainer.events import Clock
from trainer.model import Model
from trainer.optim import Adam
from trainer.prepare import prepare
from trainer.run import with_models_placed
from trainer.strategies import Strategy
from trainer.strategies.ranks import ALONE, Ranks
from trainer.strategies.single import Single
from trainer.work import Job

BATCH = 10  # of which two ranks have five rows each, and the last of 33 rows are odd


def job(settings: dict[str, Any], data: Any, tmp_path: Path) -> Job:
    """What a run on ``data`` is given."""
    config = with_models_placed(load_config(settings))
    with open_store(tmp_path / "store") as store:
        prepared = prepare(config, {"train": data}, store, Clock(None))
    batches = {name: rows for name, rows in prepared.batches.items() if rows.rows}
    return Job(
        config=config,
        states=prepared.states,
        batches=batches,
        held_out=prepared.held_out,
        folder=tmp_path / "run",
        description={},
    )


def strategy_of(name: str, ranks: Ranks) -> Strategy:
    if name == "single":
        return Single()
    if name == "ddp":
        from trainer.strategies.ddp import Ddp

        return Ddp(ranks)
    from trainer.strategies.fsdp import Fsdp

    return Fsdp(ranks)


def model_of(job: Job, strategy: Strategy) -> Model:
    """The model with its first weights, not wrapped yet."""
    with loop.seeded(1):
        return build_model(job.config, job.states, weights=strategy.loads)


def footprint(ranks: Ranks, _: Callable[[Any], None], job: Job) -> tuple[int, dict[str, torch.Tensor]]:
    """The bytes of parameters that a rank keeps, at most; and the whole state of the model after an evaluation."""
    strategy = strategy_of("fsdp", ranks)
    model = model_of(job, strategy)
    assert all(each.is_meta == (ranks.rank > 0) for each in model.encoder("text").parameters())
    strategy.wrap(model)
    kept = sum(
        each.to_local().nbytes if isinstance(each, DTensor) else each.nbytes  # type: ignore[attr-defined]
        for each in model.parameters()
    )
    loop.evaluate(model, job.batches["train"])
    return ranks.most(kept), strategy.whole(model)


def curve(
    ranks: Ranks,
    _: Callable[[Any], None] | None,
    name: str,
    job: Job,
    steps: int = 8,
    every: int = 1,
    size: int = BATCH,
) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step of AdamW, whose gradients are those of ``every`` batches."""
    strategy = strategy_of(name, ranks)
    model = model_of(job, strategy)
    strategy.wrap(model)
    trained = strategy.trained(model)
    optimizer = Adam([each.parameter for each in trained], decoupled=True)
    generator = torch.Generator().manual_seed(1)
    found = []
    loss = 0.0
    model.train()
    step = 0
    while len(found) < steps:
        for batch in job.batches["train"].shuffled(size, generator):
            step += 1
            last = step % every == 0
            strategy.sync(last)
            output = model(batch).loss / every
            output.backward()
            loss += float(output.detach())
            if not last:
                continue
            strategy.settle()
            sharded = sum((_square(each) for each in trained if each.sharded), torch.zeros(()))
            rest = sum((_square(each) for each in trained if not each.sharded), torch.zeros(()))
            found.append((loss, float((strategy.ranks.sum(sharded) + rest).sqrt())))
            optimizer.step(1e-2)
            loss = 0.0
    return found[:steps]


def _square(trained: Any) -> torch.Tensor:
    gradient = trained.parameter.grad
    return torch.zeros(()) if gradient is None else gradient.square().sum()


def alone(*arguments: Any, **options: Any) -> list[tuple[float, float]]:
    """``curve`` in this process."""
    return curve(ALONE, None, "single", *arguments, **options)


def assert_alike(
    cell: str, strategy: str, found: Sequence[tuple[float, float]], expected: Sequence[tuple[float, float]]
) -> str:
    """Losses and gradient norms by step are those expected; returns a line of the table that says how near."""
    loss = max(abs(one[0] - other[0]) for one, other in zip(found, expected, strict=True))
    norm = max(abs(one[1] / other[1] - 1) for one, other in zip(found, expected, strict=True))
    assert loss < 1e-4
    assert norm < 1e-3
    return f"| {cell} | {strategy} | {len(found)} | {loss:.1e} | {norm:.1e} |"
