"""Every benchmark runs, on a very small case, and writes what it promises: the published numbers are not checked here."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
SMALL: dict[str, dict[str, Any]] = {
    "bench_build": {"rows": 20, "stored_rows": 300, "turns": 1},
    "bench_concurrent": {"rows": 300, "processes": 2, "turns": 1},
    "bench_headline": {"rows": 40, "test_rows": 10, "epochs": 1, "slice_rows": 20, "turns": 1},
    "bench_images": {"rows": 8, "turns": 1},
    "bench_known_rows": {"rows": 500, "turns": 1},
    "bench_modes": {
        "rows": 400,
        "validation_rows": 10,
        "test_rows": 10,
        "epochs": {"frozen": 2, "lora": 1, "full": 1},
        "batch_size": 16,
        "precision": "float32",
    },
    "bench_step": {"rows": 256, "epochs": 1, "turns": 1},
    "bench_sweep": {"rows": 256, "epochs": 1, "turns": 1, "trials": 4},
    "bench_trainer": {
        "rows": 24,
        "batch_size": 8,
        "turns": 1,
        "modes": ("lora",),
        "precisions": ("float32",),
        "contestants": ("cachestore", "Trainer"),
    },
    "bench_verify": {"shards": 2, "rows": 200, "turns": 1},
    "bench_warm_train": {"rows": 200, "epochs": 1, "turns": 1},
}


def test_every_benchmark_has_a_small_case() -> None:
    assert set(SMALL) == {path.stem for path in FOLDER.glob("bench_*.py")}


@pytest.mark.timeout(300)  # some start a process for each contestant, which imports torch
@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_runs_and_writes_its_results(name: str, tmp_path: Path) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    path = module.main(**SMALL[name], results=tmp_path)
    report = json.loads(path.read_text(encoding="utf-8"))
    assert {"config", "machine", "versions"} <= report.keys()
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert "Measured on:" in text
