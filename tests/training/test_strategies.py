"""One process, data parallel and fully sharded training are one: the same losses and gradients from the same config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training import groups, live
from trainer.strategies.processes import Processes


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


CELLS = {
    "bert": {"trainable": True},
    "llama": {"adapter": {"type": "lora", "dropout": 0.0}},
}


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize(("kind", "settings"), CELLS.items(), ids=CELLS)
def test_losses_and_gradient_norms_are_those_of_one_process(
    pair: Processes, tmp_path: Path, models: Path, kind: str, settings: dict[str, Any], strategy: str, every: int
) -> None:
    feature = live.text_input(live.saved(models, kind), **settings)
    job = groups.job(live.config(feature), live.columns(live.texts(49)), tmp_path)
    expected = groups.alone(job, every=every)
    found = pair.run(groups.curve, strategy, job, 8, every)
    for (loss, norm), (also, norm_also) in zip(found, expected, strict=True):
        assert loss == pytest.approx(also, abs=1e-4)
        assert norm == pytest.approx(norm_also, rel=1e-3)
