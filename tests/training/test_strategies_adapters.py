"""Every adapter, and encoders of images, under each strategy that takes them: losses and gradients are those of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training import groups, live
from tests.training.test_live_images import columns, encoder, image_input
from trainer.schema.adapters import unsupported
from trainer.strategies.processes import Processes

pytestmark = pytest.mark.long

ADAPTERS: dict[str, dict[str, Any]] = {
    "dora": {"type": "lora", "use_dora": True, "dropout": 0.0},
    "pissa": {"type": "lora", "init_lora_weights": "pissa", "r": 4, "dropout": 0.0},
    "adalora": {"type": "adalora", "dropout": 0.0},
    "ia3": {"type": "ia3"},
    "vera": {"type": "vera", "r": 8},
    "adaption_prompt": {"type": "adaption_prompt"},
    "loha": {"type": "loha"},
    "lokr": {"type": "lokr"},
    "oft": {"type": "oft", "oft_block_size": 4},
    "prompt_tuning": {"type": "prompt_tuning"},
}
STRATEGIES = ("ddp", "fsdp")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def same(pair: Processes, job: Any, strategy: str, size: int = groups.BATCH) -> None:
    expected = groups.alone(job, 3, size=size)
    found = pair.run(groups.curve, strategy, job, 3, 1, size)
    for (loss, norm), (also, norm_also) in zip(found, expected, strict=True):
        assert loss == pytest.approx(also, abs=1e-4)
        assert norm == pytest.approx(norm_also, rel=1e-3)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_is_trained_by_two_processes_as_by_one(
    pair: Processes, tmp_path: Path, models: Path, adapter: str, strategy: str
) -> None:
    settings = ADAPTERS[adapter]
    if unsupported("llama", settings["type"], strategy, False, "text") is not None:
        pytest.skip("a config that asks for this is refused")
    feature = live.text_input(live.saved(models, "llama"), adapter=settings)
    same(pair, groups.job(live.config(feature), live.columns(live.texts(30)), tmp_path), strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("vit", {"trainable": True}),
        ("vit", {"adapter": {"type": "lora", "dropout": 0.0}}),
        ("clip", {"trainable": True, "reduce_output": "mean"}),
        ("shufflenet_v2_x0_5", {"trainable": True}),
        ("shufflenet_v2_x0_5", {"adapter": {"type": "lora", "dropout": 0.0}}),
    ],
    ids=str,
)
def test_an_encoder_of_images_is_trained_by_two_processes_as_by_one(
    pair: Processes, tmp_path: Path, models: Path, kind: str, settings: dict[str, Any], strategy: str
) -> None:
    feature = image_input(encoder(models, kind, **settings))
    same(pair, groups.job(live.config(feature), columns(8), tmp_path), strategy, 4)
