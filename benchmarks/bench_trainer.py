"""Rows trained per second with the encoder in the loop, beside Hugging Face's Trainer: full fine-tuning and LoRA, float32 and bfloat16.

all-MiniLM-L6-v2 with mean pooling and a linear head, the same texts, batch size, optimizer and clipping, dynamic padding in both;
each contestant in a process of its own, in turns, and the steps of one epoch count, but for the first. cachestore puts texts of about
one length together; it is measured without that, too, and Trainer with it. Without ``--data`` (a folder with train.csv and test.csv
of ``text`` and ``category``) the texts are made up.
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
from benchmarks.bench_warm_train import make_table
from cachestore.encoders.precision import cpu_has_bfloat16

WANTED = {"full": 1.2, "lora": 1.0, "bfloat16": 1.3}
CONTESTANTS = {
    "cachestore": ("cachestore",),
    "cachestore, unsorted": ("cachestore", "--unsorted"),
    "Trainer": ("transformers", "--unsorted"),
    "Trainer, group_by_length": ("transformers",),
}


def measured(place: Path, contestant: str, mode: str, precision: str, batch_size: int) -> dict[str, Any]:
    """What a process of ``benchmarks.end_to_end`` measured."""
    by, *flags = CONTESTANTS[contestant]
    command = [sys.executable, "-m", "benchmarks.end_to_end", by, "train.csv", *flags]
    _, out = timed([*command, "--mode", mode, "--precision", precision, "--batch-size", str(batch_size)], place)
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def table(data: Path | None, rows: int, path: Path) -> str:
    """Some rows of the training table of ``data``, or made up ones; returns what they are."""
    if data is None:
        make_up(path, rows)
        return "made up"
    common.sample(data / "train.csv", path, rows)
    return data.name


def make_up(path: Path, rows: int) -> None:
    """Write a table of made up texts."""
    make_table(path, rows)
    path.write_text(path.read_text(encoding="utf-8").replace("label", "category", 1), encoding="utf-8")


def main(
    data: Path | None = None,
    rows: int = 2000,
    batch_size: int = 32,
    turns: int = 3,
    modes: tuple[str, ...] = ("full", "lora"),
    precisions: tuple[str, ...] | None = None,
    contestants: tuple[str, ...] = tuple(CONTESTANTS),
    results: Path = common.RESULTS,
) -> Path:
    """Measure, write the results, return their path. bfloat16 is measured where the CPU computes it."""
    precisions = precisions or (("float32", "bfloat16") if cpu_has_bfloat16() else ("float32",))
    taken: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        name = table(data, rows, place / "train.csv")
        for _ in range(turns):
            for mode in modes:
                for precision in precisions:
                    for contestant in contestants:
                        found = measured(place, contestant, mode, precision, batch_size)
                        taken.setdefault(f"{mode} {precision} {contestant}", []).append(found)
    rate = {key: 1 / common.median([one["row"] for one in all_of]) for key, all_of in taken.items()}
    ratios = {}
    for mode in modes:
        for precision in precisions:
            ours, theirs = rate[f"{mode} {precision} cachestore"], rate[f"{mode} {precision} Trainer"]
            ratios[f"{mode}, {precision}: cachestore to Trainer"] = (ours / theirs, WANTED[mode])
        if len(precisions) == 2:
            half, whole = rate[f"{mode} bfloat16 cachestore"], rate[f"{mode} float32 cachestore"]
            ratios[f"{mode}: bfloat16 to float32"] = (half / whole, WANTED["bfloat16"])
    report = {
        "config": {"rows": rows, "batch_size": batch_size, "turns": turns, "data": name},
        "rows_per_second": rate,
        "ratios": ratios,
        "wanted": WANTED,
        "turns": taken,
        "machine": common.machine(),
        "versions": common.versions("torch", "transformers", "accelerate", "peft"),
    }
    lines = [
        f"{name}: {rows:,} texts, all-MiniLM-L6-v2 with mean pooling and a linear head, batches of {batch_size}, AdamW, gradients "
        f"clipped at 1, one epoch. Processes of their own, medians of {turns} turns.",
        "",
        "| rows per second | " + " | ".join(contestants) + " |",
        "|---|" + "---:|" * len(contestants),
        *(
            f"| {mode}, {precision} | "
            + " | ".join(f"{rate[f'{mode} {precision} {contestant}']:,.0f}" for contestant in contestants)
            + " |"
            for mode in modes
            for precision in precisions
        ),
        "",
        "| times as fast | measured | wanted |",
        "|---|---:|---:|",
        *(f"| {key} | {value:.2f} | {wanted:g} |" for key, (value, wanted) in ratios.items()),
        *([] if cpu_has_bfloat16() else ["", "This CPU has no instructions for bfloat16: it was not measured."]),
    ]
    return common.write("trainer", "Training with the encoder in the loop", report, lines, results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=3)
    print(main(**vars(parser.parse_args())).with_suffix(".md").read_text(encoding="utf-8"))
