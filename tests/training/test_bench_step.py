from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks import bench_step


def test_the_benchmark_runs_and_both_loops_learn_the_same(tmp_path: Path) -> None:
    path = bench_step.main(rows=300, epochs=1, turns=1, results=tmp_path)
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["ratio"] > 0
    assert "at least 0.9 is wanted" in path.with_suffix(".md").read_text(encoding="utf-8")

    vectors = torch.nn.functional.normalize(
        torch.randn(200, bench_step.DIM)
    )  # as the benchmark has them: nothing is clipped
    targets = torch.arange(200) % bench_step.CLASSES
    loops = (bench_step.by_hand(vectors, targets, 30), bench_step.ours(vectors, targets, 30))
    weights = [next(model.parameters()).norm().item() for model in loops]
    assert abs(weights[0] - weights[1]) < 0.02 * weights[0]
