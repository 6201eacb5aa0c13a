"""Time to a trained model, in whole processes: cached vectors cold and warm, full fine-tuning of the same encoder, and Ludwig.

all-MiniLM-L6-v2 and a linear head. Cold: an empty store, so that every text is encoded. Warm: the same command again. Fine-tuning
takes five epochs and an evaluation after each; its time is extrapolated from one epoch over a slice of the rows. Ludwig's cached
runs are measured where ``LUDWIG_PYTHON`` names the interpreter of an environment that has it. The contestants take turns; numbers
are medians. Without ``--data`` (a folder with train.csv and test.csv of ``text`` and ``category``) the texts are made up.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.bench_warm_train import make_table
from cachestore.encoders.locate import packaged_minilm
from cachestore.encoders.precision import cpu_has_bfloat16

FINE_TUNING_EPOCHS = 5
WANTED = {"cold": 30.0, "cold, equal precision": 15.0, "warm": 200.0, "Ludwig cold": 15.0, "Ludwig warm": 10.0}
_COMMAND = [sys.executable, "-c", "from cli.start import main; main()"]


def config(encoder: dict[str, Any], epochs: int, **trainer: Any) -> dict[str, Any]:
    """A linear head on stored vectors."""
    return {
        "input_features": [{"name": "text", "type": "text", "encoder": encoder}],
        "output_features": [{"name": "category", "type": "category"}],
        "trainer": {"epochs": epochs, "learning_rate": "auto", "optimizer": {"type": "adamw"}, **trainer},
    }


def ludwigs(epochs: int) -> dict[str, Any]:
    """The same for Ludwig, with its embedding cache."""
    folder = packaged_minilm()
    return {
        "input_features": [
            {
                "name": "text",
                "type": "text",
                "encoder": {
                    "type": "auto_transformer",
                    "pretrained_model_name_or_path": str(folder),
                    "trainable": False,
                    "reduce_output": "mean",
                },
                "preprocessing": {"cache_encoder_embeddings": True},
            }
        ],
        "output_features": [{"name": "category", "type": "category"}],
        "trainer": {"epochs": epochs, "learning_rate": 0.01, "batch_size": 128, "early_stop": -1},
        "preprocessing": {"split": {"type": "fixed"}},
    }


def joined(train: Path, test: Path, path: Path) -> Path:
    """One table with a ``split`` column."""
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["text", "category", "split"])
        for source, part in ((train, 0), (test, 2)):
            with source.open(encoding="utf-8", newline="") as file:
                writer.writerows([row["text"], row["category"], part] for row in csv.DictReader(file))
    return path


def timed(command: list[str], place: Path) -> tuple[float, str]:
    """Seconds of a process from start to end, and what it printed."""
    root = Path(__file__).resolve().parent.parent
    environment = os.environ | {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    done = subprocess.run(command, cwd=place, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - began, done.stdout


def cached(place: Path, name: str, store: str) -> dict[str, Any]:
    """One ``cachestore train``: seconds in all and by phase, what was encoded, and accuracy on the test rows."""
    command = [*_COMMAND, "train", "train.csv", "--test", "test.csv", "-c", name, "--store", store, "--output", "run"]
    seconds, out = timed([*command, "--json", "--quiet"], place)
    run = json.loads(out)
    return {
        "seconds": seconds,
        "phases": run["seconds"],
        "encoded": run["encoded"],
        "accuracy": run["metrics"]["test"]["category"]["accuracy"],
    }


def fine_tuned(place: Path, precision: str, rows: int, trained: int, evaluated: int) -> dict[str, float]:
    """Fine-tuning over ``trained`` rows, extrapolated from ``rows`` of them."""
    module = [sys.executable, "-m", "benchmarks.fine_tune", "train.csv", "text", "category", "--precision", precision]
    _, out = timed([*module, "--rows", str(rows)], place)
    found: dict[str, float] = json.loads(out)
    one = trained * found["row"] + evaluated * found["evaluated_row"]
    return {**found, "seconds": found["start"] + FINE_TUNING_EPOCHS * one}


def by_ludwig(place: Path, python: str) -> dict[str, float]:
    """Seconds of Ludwig's cold and warm run."""
    for left in place.glob("joined.*"):
        if left.suffix != ".csv":
            left.unlink()
    command = [python, "-m", "ludwig.cli", "train", "--dataset", "joined.csv", "--config", "ludwig.json"]
    cold, _ = timed(command, place)
    warm, _ = timed(command, place)
    shutil.rmtree(place / "results", ignore_errors=True)
    return {"cold": cold, "warm": warm}


def main(
    data: Path | None = None,
    rows: int = 10_003,
    test_rows: int = 3080,
    epochs: int = 20,
    slice_rows: int = 640,
    turns: int = 3,
    results: Path = common.RESULTS,
) -> Path:
    """Measure, write the results, return their path."""
    precisions = ["float32", "bfloat16"] if cpu_has_bfloat16() else ["float32"]
    ludwig = os.environ.get("LUDWIG_PYTHON")
    taken: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if data is None:
            for name, count in (("train.csv", rows), ("test.csv", test_rows)):
                make_table(place / name, count)
                lines = (place / name).read_text(encoding="utf-8")
                (place / name).write_text(lines.replace("label", "category", 1), encoding="utf-8")
        else:
            for name in ("train.csv", "test.csv"):
                shutil.copyfile(data / name, place / name)
        joined(place / "train.csv", place / "test.csv", place / "joined.csv")
        for precision in precisions:
            encoder = {"type": "minilm", "precision": precision}
            (place / f"{precision}.yaml").write_text(json.dumps(config(encoder, epochs)), encoding="utf-8")
            evaluating = config(encoder, epochs, evaluate_training_set=True)
            (place / f"{precision}-evaluating.yaml").write_text(json.dumps(evaluating), encoding="utf-8")
        (place / "ludwig.json").write_text(json.dumps(ludwigs(epochs)), encoding="utf-8")
        trained, evaluated = _rows(place / "train.csv"), _rows(place / "test.csv")
        for turn in range(turns):
            for precision in precisions:
                store = f"store-{precision}-{turn}"
                taken.setdefault(f"cold {precision}", []).append(cached(place, f"{precision}.yaml", store))
                taken.setdefault(f"warm {precision}", []).append(cached(place, f"{precision}.yaml", store))
                again = cached(place, f"{precision}-evaluating.yaml", store)
                taken.setdefault(f"warm {precision}, training set evaluated", []).append(again)
            for precision in ("float32", "bfloat16"):
                slow = precision == "bfloat16" and not cpu_has_bfloat16()  # some ten times
                tuned = fine_tuned(place, precision, slice_rows // 10 if slow else slice_rows, trained, evaluated)
                taken.setdefault(f"fine-tuning {precision}", []).append(tuned)
            if ludwig:
                found = by_ludwig(place, ludwig)
                for kind, seconds in found.items():
                    taken.setdefault(f"Ludwig {kind}", []).append({"seconds": seconds})
    if any(one["encoded"] for name, all_of in taken.items() if name.startswith("warm") for one in all_of):
        raise RuntimeError("a warm run encoded something")
    seconds = {name: common.median([one["seconds"] for one in all_of]) for name, all_of in taken.items()}
    ratios = _ratios(seconds, precisions)
    saved = _saved(taken, precisions[0])
    report = {
        "config": {
            "rows": trained,
            "test_rows": evaluated,
            "epochs": epochs,
            "fine_tuning_epochs": FINE_TUNING_EPOCHS,
            "slice_rows": slice_rows,
            "turns": turns,
            "data": "made up" if data is None else data.name,
        },
        "seconds": seconds,
        "ratios": ratios,
        "wanted": WANTED,
        "evaluate_training_set_false_saves": saved,
        "turns": taken,
        "machine": common.machine(),
        "versions": common.versions("torch", "transformers", "numpy"),
    }
    accuracy = taken[f"warm {precisions[0]}"][-1]["accuracy"]
    lines = [
        f"{report['config']['data']}: {trained:,} training and {evaluated:,} test texts, all-MiniLM-L6-v2 and a linear head, "
        f"{epochs} epochs on stored vectors (test accuracy {accuracy:.4f}), {FINE_TUNING_EPOCHS} epochs of fine-tuning, "
        f"extrapolated from {slice_rows} rows. Whole processes, medians of {turns} turns.",
        "",
        "| | seconds |",
        "|---|---:|",
        *(f"| {name} | {value:.1f} |" for name, value in seconds.items()),
        "",
        "| times as fast | measured | wanted |",
        "|---|---:|---:|",
        *(f"| {name} | {value:.1f} | {wanted:g} |" for name, (value, wanted) in ratios.items()),
        "",
        f"`evaluate_training_set: false` takes {saved:.0%} off the seconds of the epochs.",
        *([] if ludwig else ["", "Ludwig was not measured: LUDWIG_PYTHON names no environment that has it."]),
        *(
            []
            if len(precisions) > 1
            else ["", "This machine has no matrix unit for bfloat16: vectors were computed in float32."]
        ),
    ]
    return common.write("headline", "Time to a trained model", report, lines, results)


def _rows(path: Path) -> int:
    with path.open(encoding="utf-8", newline="") as file:
        return sum(1 for _ in csv.DictReader(file))


def _ratios(seconds: dict[str, float], precisions: list[str]) -> dict[str, tuple[float, float]]:
    """How many times as fast, and how many were wanted."""
    cold = min(seconds[f"cold {precision}"] for precision in precisions)
    warm = min(seconds[f"warm {precision}"] for precision in precisions)
    tuned = min(seconds["fine-tuning float32"], seconds["fine-tuning bfloat16"])
    ratios = {
        "cold, best against best": (tuned / cold, WANTED["cold"]),
        "warm, against fine-tuning in bfloat16": (seconds["fine-tuning bfloat16"] / warm, WANTED["warm"]),
        "warm, best against best": (tuned / warm, WANTED["warm"]),
    }
    for precision in precisions:
        equal = seconds[f"fine-tuning {precision}"] / seconds[f"cold {precision}"]
        ratios[f"cold, both in {precision}"] = (equal, WANTED["cold, equal precision"])
    if "Ludwig cold" in seconds:
        ratios["cold, against Ludwig"] = (seconds["Ludwig cold"] / cold, WANTED["Ludwig cold"])
        ratios["warm, against Ludwig"] = (seconds["Ludwig warm"] / warm, WANTED["Ludwig warm"])
    return ratios


def _saved(taken: dict[str, list[dict[str, Any]]], precision: str) -> float:
    """The share of the epochs' seconds that not evaluating the training set saves."""
    without = common.median([one["phases"]["epochs"] for one in taken[f"warm {precision}"]])
    evaluating = common.median([one["phases"]["epochs"] for one in taken[f"warm {precision}, training set evaluated"]])
    return 1 - without / evaluating


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--turns", type=int, default=3)
    print(main(**vars(parser.parse_args())).with_suffix(".md").read_text(encoding="utf-8"))
