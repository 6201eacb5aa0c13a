"""What a frozen encoder, LoRA and full fine-tuning reach, and what they take: test accuracy, seconds, memory, optimizer state.

all-MiniLM-L6-v2 and a linear head on a subset of a table, every mode with the same command and config but for two words; each in
a process of its own. The best epoch is chosen by rows of the training table that are not trained on, whose curves are written down; the
test rows are looked at once.
Without ``--data`` (a folder with train.csv and test.csv of ``text`` and ``category``) the texts are made up.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.bench_headline import timed
from benchmarks.bench_trainer import make_up
from cachestore.encoders.precision import cpu_has_bfloat16

EPOCHS = {"frozen": 100, "lora": 20, "full": 8}
TRAINER: dict[str, dict[str, Any]] = {
    "frozen": {"learning_rate": "auto"},
    "lora": {"learning_rate": "auto", "learning_rate_scheduler": {"warmup_fraction": 0.1, "decay": "linear"}},
    "full": {"learning_rate": "auto", "learning_rate_scheduler": {"warmup_fraction": 0.1, "decay": "linear"}},
}
SMALL_STATE = 0.05


def measured(
    place: Path, mode: str, precision: str, epochs: int, batch_size: int, trainer: dict[str, Any]
) -> dict[str, Any]:
    """What a process of ``benchmarks.end_to_end`` measured."""
    command = [sys.executable, "-m", "benchmarks.end_to_end", "cachestore", "train.csv"]
    command += [
        "--validation",
        "validation.csv",
        "--test",
        "test.csv",
        "--mode",
        mode,
        "--precision",
        precision,
        "--epochs",
        str(epochs),
    ]
    _, out = timed([*command, "--batch-size", str(batch_size), "--trainer", json.dumps(trainer)], place)
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def main(
    data: Path | None = None,
    rows: int = 2000,
    validation_rows: int = 1000,
    test_rows: int = 3080,
    epochs: dict[str, int] | None = None,
    batch_size: int = 32,
    precision: str | None = None,
    results: Path = common.RESULTS,
) -> Path:
    """Measure, write the results, return their path. The precision is bfloat16 where the CPU computes it, unless told."""
    epochs = epochs or EPOCHS
    precision = precision or ("bfloat16" if cpu_has_bfloat16() else "float32")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        name = tables(data, place, rows, validation_rows, test_rows)
        found = {
            mode: measured(place, mode, precision, epochs[mode], batch_size, trainer)
            for mode, trainer in TRAINER.items()
        }
    share = found["lora"]["state"] / found["full"]["state"]
    report = {
        "config": {
            "rows": rows,
            "validation_rows": validation_rows,
            "test_rows": test_rows,
            "epochs": epochs,
            "batch_size": batch_size,
            "precision": precision,
            "trainer": TRAINER,
            "data": name,
        },
        "modes": found,
        "state_of_lora_to_full": (share, SMALL_STATE),
        "gain": {mode: found[mode]["accuracy"] - found["frozen"]["accuracy"] for mode in ("lora", "full")},
        "machine": common.machine(),
        "versions": common.versions("torch", "transformers", "peft"),
    }
    lines = [
        f"{name}: {rows:,} training, {validation_rows:,} validation and {test_rows:,} test texts, all-MiniLM-L6-v2 and a linear head, "
        f"batches of {batch_size} where the encoder is in the loop, which then computes in {precision}. The validation texts choose the "
        "epoch whose weights are tested.",
        "",
        "| | epochs, the best | learning rate, encoder's | test accuracy | seconds | of these, epochs | most memory | optimizer state |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {mode} | {epochs[mode]}, {one['best_epoch']} | {_rates(one)} | {one['accuracy']:.4f} | {one['seconds']:.1f} | "
            f"{one['phases']['epochs']:.1f} | {one['peak'] / 2**20:,.0f} MiB | {one['state'] / 2**20:,.2f} MiB |"
            for mode, one in found.items()
        ),
        "",
        f"LoRA's optimizer state is {share:.1%} of that of full fine-tuning (wanted: at most {SMALL_STATE:.0%}).",
        "",
        "Validation accuracy after some epochs:",
        "",
        *(f"- {mode}: {_curve(one['curve'])}" for mode, one in found.items()),
    ]
    return common.write("modes", "Frozen, LoRA and full fine-tuning", report, lines, results)


def tables(data: Path | None, place: Path, rows: int, validation_rows: int, test_rows: int) -> str:
    """Write train.csv, validation.csv and test.csv, no row in two of them; returns what they are of."""
    source = place / "made_up.csv" if data is None else data / "train.csv"
    if data is None:
        make_up(source, rows + validation_rows + test_rows)
    common.sample(source, place / "train.csv", rows)
    common.sample(source, place / "validation.csv", validation_rows, rows)
    if data is None:
        common.sample(source, place / "test.csv", test_rows, rows + validation_rows)
        return "made up"
    common.sample(data / "test.csv", place / "test.csv", test_rows)
    return data.name


def _rates(one: dict[str, Any]) -> str:
    """The learning rate of the head, and of the encoder where it is trained."""
    return ", ".join(f"{rate:g}" for rate in (one["learning_rate"], *one["encoder_learning_rates"].values()))


def _curve(values: list[float]) -> str:
    """About ten of the values, each with its epoch."""
    every = max(1, len(values) // 10)
    shown = sorted({0, *range(every - 1, len(values), every), len(values) - 1})
    return ", ".join(f"{at + 1}: {values[at]:.3f}" for at in shown)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--precision", choices=["float32", "bfloat16"])
    print(main(**vars(parser.parse_args())).with_suffix(".md").read_text(encoding="utf-8"))
