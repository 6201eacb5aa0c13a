"""Steps per second of the frozen loop beside a minimal torch loop and torch's DataLoader, of the same model, batch size and optimizer.

All train a linear layer of 384 → 77 on the same 10,003 random vectors with fused AdamW. The loop by hand indexes tensors and
runs with torch's own number of threads and with one, and the better of the two counts; the other one takes its batches from a
DataLoader over a TensorDataset. They take turns, so that whatever else the machine does meets all; numbers are medians over the
turns.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import common
from trainer.batches import CachedBatches
from trainer.combiners import ConcatCombiner
from trainer.decoders import CategoryClassifier, SoftmaxCrossEntropy
from trainer.loop import FitSettings, fit
from trainer.model import Model
from trainer.optim import Adam

DIM, CLASSES, BATCH, RATE = 384, 77, 128, 0.01
WANTED, WANTED_TO_LOADER = 0.9, 1.8


def by_hand(vectors: Tensor, targets: Tensor, epochs: int) -> nn.Module:
    """The loop that one writes without a framework."""
    torch.manual_seed(0)
    model = nn.Linear(DIM, CLASSES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, fused=True)
    for _ in range(epochs):
        order = torch.randperm(len(vectors))
        for start in range(0, len(vectors), BATCH):
            rows = order[start : start + BATCH]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(vectors[rows]), targets[rows]).backward()
            optimizer.step()
    return model


def by_loader(vectors: Tensor, targets: Tensor, epochs: int) -> nn.Module:
    """The same with torch's DataLoader."""
    torch.manual_seed(0)
    model = nn.Linear(DIM, CLASSES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, fused=True)
    loader = DataLoader(TensorDataset(vectors, targets), BATCH, shuffle=True)
    for _ in range(epochs):
        for rows, classes in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(rows), classes).backward()
            optimizer.step()
    return model


def ours(vectors: Tensor, targets: Tensor, epochs: int) -> nn.Module:
    """The loop of a run, metrics of every epoch included."""
    torch.manual_seed(0)
    combiner = ConcatCombiner().build({"text": DIM})
    classes = [str(number) for number in range(CLASSES)]
    decoder = CategoryClassifier().build(combiner.dim, classes, SoftmaxCrossEntropy(), top_k=3, where="kind")
    model = Model({"text": nn.Identity()}, (), combiner, {"kind": decoder}, {"kind": 1.0})
    fit(
        model,
        CachedBatches({"text": vectors}, {"kind": targets}),
        None,
        optimizer=Adam(model.parameters(), weight_decay=0.01, decoupled=True),
        settings=FitSettings(epochs, BATCH, RATE, "kind", "accuracy"),
        on_epoch=lambda _: None,
    )
    return model


def main(rows: int = 10_003, epochs: int = 5, turns: int = 9, results: Path = common.RESULTS) -> Path:
    """Measure, write the results, return their path."""
    draw = torch.Generator().manual_seed(0)
    vectors = nn.functional.normalize(torch.randn(rows, DIM, generator=draw))
    stored, targets = vectors.half(), torch.randint(CLASSES, (rows,), generator=draw)
    steps = epochs * -(-rows // BATCH)
    by_hand(vectors, targets, 1)  # imports torch._dynamo, which is not what is measured
    ours(stored, targets, 1)
    threads = torch.get_num_threads()
    contestants = {
        "by hand": (by_hand, vectors, threads),
        "by hand, one thread": (by_hand, vectors, 1),
        "DataLoader": (by_loader, vectors, threads),
        "ours": (ours, stored, threads),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns):
        for name, (loop, held, allowed) in contestants.items():
            torch.set_num_threads(allowed)
            began = time.perf_counter()
            loop(held, targets, epochs)
            seconds[name].append(time.perf_counter() - began)
    torch.set_num_threads(threads)
    rates = {name: common.median([steps / value for value in found]) for name, found in seconds.items()}
    ratio = rates["ours"] / max(rates["by hand"], rates["by hand, one thread"])
    to_loader = rates["ours"] / rates["DataLoader"]
    report = {
        "config": {"rows": rows, "dim": DIM, "classes": CLASSES, "batch_size": BATCH, "epochs": epochs, "turns": turns},
        "steps_per_second": rates,
        "ratio": ratio,
        "wanted": WANTED,
        "ratio_to_loader": to_loader,
        "wanted_to_loader": WANTED_TO_LOADER,
        "threads": threads,
        "seconds": seconds,
        "machine": common.machine(),
        "versions": common.versions("torch", "numpy"),
    }
    lines = [
        f"Linear {DIM} → {CLASSES}, batch {BATCH}, fused AdamW, {rows} rows, median of {turns} turns of {epochs} epochs.",
        "",
        "| loop | steps/s |",
        "|---|---:|",
        f"| by hand, float32 vectors, {threads} threads | {rates['by hand']:.0f} |",
        f"| by hand, float32 vectors, one thread | {rates['by hand, one thread']:.0f} |",
        f"| DataLoader over a TensorDataset, {threads} threads | {rates['DataLoader']:.0f} |",
        f"| ours, float16 vectors, metrics of every epoch | {rates['ours']:.0f} |",
        "",
        f"Ours to the better one by hand: {ratio:.2f}; at least {WANTED} is wanted. "
        f"To the DataLoader: {to_loader:.2f}; at least {WANTED_TO_LOADER} is wanted.",
    ]
    return common.write("step", "Steps of the frozen loop", report, lines, results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9)
    print(main(turns=parser.parse_args().turns).with_suffix(".md").read_text(encoding="utf-8"))
