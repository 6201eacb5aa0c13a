"""32 linear trials in one pass beside the same 32 trained one after the other.

A linear layer of 384 → 77 on 10,003 random vectors, batch 128, fused AdamW; every trial has a learning rate and weight decay of
its own. The two ways take turns; numbers are medians over the turns. The rate of the products alone, (128 × 384) · (384 × 32·77)
and that for the gradients of the weights, is measured beside them: what the pass with all else takes is told as a fraction of it.
Each trial's losses in the stack are compared with those of its lone run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import common
from trainer.batches import CachedBatches
from trainer.combiners import ConcatCombiner
from trainer.decoders import CategoryClassifier, SoftmaxCrossEntropy
from trainer.loop import EpochDone, FitSettings, fit
from trainer.model import Model
from trainer.optim import Adam, Clipping
from trainer.sweep.together import Member, fit_together

DIM, CLASSES, BATCH, TRIALS = 384, 77, 128, 32
WANTED = 0.40
CLIPPING = {"no clipping": Clipping(), "clipped at a norm of 0.5": Clipping(global_norm=0.5)}

Losses = dict[int, list[float]]


def members(trials: int, epochs: int, clipping: Clipping) -> list[Member]:
    """Fresh models, their optimizers and settings."""
    found = []
    for number in range(trials):
        torch.manual_seed(0)
        combiner = ConcatCombiner().build({"text": DIM})
        classes = [str(label) for label in range(CLASSES)]
        decoder = CategoryClassifier().build(combiner.dim, classes, SoftmaxCrossEntropy(), top_k=3, where="kind")
        model = Model({"text": nn.Identity()}, (), combiner, {"kind": decoder}, {"kind": 1.0})
        rate = 10 ** (-3 + 2 * number / trials)
        optimizer = Adam(model.parameters(), weight_decay=0.001 * (number % 4), decoupled=True)
        found.append(Member(model, optimizer, FitSettings(epochs, BATCH, rate, "kind", "accuracy", clipping=clipping)))
    return found


def sequential(batches: CachedBatches, trials: Sequence[Member]) -> Losses:
    """One loop after the other."""
    losses: Losses = {}
    for at, trial in enumerate(trials):
        seen = losses.setdefault(at, [])
        fit(
            trial.model,
            batches,
            None,
            optimizer=trial.optimizer,
            settings=trial.settings,
            on_epoch=lambda epoch, to=seen: to.append(_loss(epoch)),  # type: ignore[misc]
        )
    return losses


def stacked(batches: CachedBatches, trials: Sequence[Member]) -> Losses:
    """All in one pass."""
    losses: Losses = {at: [] for at in range(len(trials))}
    fit_together(
        trials,
        batches,
        None,
        on_epoch=lambda at, epoch: losses[at].append(_loss(epoch)),
        on_end=lambda _at, _done: None,
    )
    return losses


def products(vectors: Tensor, trials: int, steps: int) -> None:
    """The products of matrices of so many steps of all trials, and nothing else."""
    weights = torch.randn(trials * CLASSES, DIM)
    batch = vectors[:BATCH].float().contiguous()
    scores, gradients = torch.empty(BATCH, trials * CLASSES), torch.empty_like(weights)
    for _ in range(steps):
        torch.mm(batch, weights.T, out=scores)
        torch.mm(scores.T, batch, out=gradients)


def main(
    rows: int = 10_003, epochs: int = 3, turns: int = 5, trials: int = TRIALS, results: Path = common.RESULTS
) -> Path:
    """Measure, write the results, return their path."""
    draw = torch.Generator().manual_seed(0)
    vectors = nn.functional.normalize(torch.randn(rows, DIM, generator=draw)).half()
    batches = CachedBatches({"text": vectors}, {"kind": torch.randint(CLASSES, (rows,), generator=draw)})
    steps = epochs * -(-rows // BATCH)
    flop = 4 * BATCH * DIM * CLASSES * trials * steps
    sequential(batches, members(1, 1, Clipping()))
    seconds: dict[str, list[float]] = {}
    worst = 0.0
    for _ in range(turns):
        for name, clipping in CLIPPING.items():
            one_by_one = members(trials, epochs, clipping)
            began = time.perf_counter()
            expected = sequential(batches, one_by_one)
            seconds.setdefault(f"one by one, {name}", []).append(time.perf_counter() - began)
            at_once = members(trials, epochs, clipping)
            began = time.perf_counter()
            found = stacked(batches, at_once)
            seconds.setdefault(f"in one pass, {name}", []).append(time.perf_counter() - began)
            worst = max(
                worst,
                *(abs(a - b) / abs(b) for at in expected for a, b in zip(found[at], expected[at], strict=True)),
            )
        began = time.perf_counter()
        products(vectors, trials, steps)
        seconds.setdefault("products", []).append(time.perf_counter() - began)
    took = {name: common.median(found) for name, found in seconds.items()}
    ratios = {name: took[f"in one pass, {name}"] / took[f"one by one, {name}"] for name in CLIPPING}
    fractions = {name: took["products"] / took[f"in one pass, {name}"] for name in CLIPPING}
    report = {
        "config": {
            **{"rows": rows, "dim": DIM, "classes": CLASSES, "batch_size": BATCH},
            **{"trials": trials, "epochs": epochs, "turns": turns},
        },
        "ratios": ratios,
        "wanted": WANTED,
        "fractions_of_the_rate_of_products": fractions,
        "gflops": {name: flop / value / 1e9 for name, value in took.items()},
        "largest_relative_difference_of_a_loss": worst,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "machine": common.machine(),
        "versions": common.versions("torch", "numpy"),
    }
    lines = [
        f"{trials} trials of a linear {DIM} → {CLASSES}, batch {BATCH}, fused AdamW, {rows} rows, {epochs} epochs, metrics of "
        f"every epoch; median of {turns} turns.",
        "",
        "| | one by one | in one pass | ratio | of the products' rate |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {name} | {took[f'one by one, {name}']:.2f} s | {took[f'in one pass, {name}']:.2f} s | {ratios[name]:.2f} | "
            f"{fractions[name]:.2f} |"
            for name in CLIPPING
        ),
        "",
        f"At most {WANTED} is wanted. The products alone: {took['products']:.2f} s, {flop / took['products'] / 1e9:.0f} "
        f"GFLOP/s. Largest relative difference of a loss to that of the lone run: {worst:.1e}.",
    ]
    return common.write("sweep", "Trials in one pass", report, lines, results)


def _loss(epoch: EpochDone) -> float:
    return epoch.metrics["train"]["kind"]["loss"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    print(main(turns=parser.parse_args().turns).with_suffix(".md").read_text(encoding="utf-8"))
