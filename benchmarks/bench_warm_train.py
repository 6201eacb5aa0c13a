"""A warm ``cachestore train`` as a whole process, beside ``python -c "import torch"``, which nothing that uses torch can undercut.

10,003 rows, 384 numbers each, 77 classes, 20 epochs at batch 128, every vector stored before. The two take turns; numbers are
medians. The data is made here; ``--data FILE --text COLUMN --label COLUMN --encoder minilm`` measures a table of your own.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import common

CLASSES, BATCH = 77, 128
OVER_IMPORT, OUTSIDE_EPOCHS = 3.5, 1.0  # seconds wanted at most
_COMMAND = [sys.executable, "-c", "from cli.start import main; main()"]


def make_table(path: Path, rows: int) -> None:
    """Texts of eight words, half of them typical of the row's class."""
    draw = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for row in range(rows):
            kind = row % CLASSES
            words = [f"w{kind * 7 + draw.randrange(7)}" for _ in range(4)] + [
                f"v{draw.randrange(2000)}" for _ in range(4)
            ]
            writer.writerow([" ".join(words), f"class {kind}"])


def config(text: str, label: str, encoder: dict[str, Any], epochs: int) -> dict[str, Any]:
    """A linear head."""
    return {
        "input_features": [{"name": text, "type": "text", "encoder": encoder}],
        "output_features": [{"name": label, "type": "category"}],
        "trainer": {"epochs": epochs, "batch_size": BATCH, "learning_rate": 0.01, "optimizer": {"type": "adamw"}},
        "preprocessing": {"split": {"type": "random", "probabilities": [1.0, 0.0, 0.0]}},
    }


def run(command: list[str], place: Path) -> tuple[float, str]:
    """Seconds of a process from start to end, and its output."""
    root = Path(__file__).resolve().parent.parent
    environment = os.environ | {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    done = subprocess.run(command, cwd=place, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - began, done.stdout


def main(
    rows: int = 10_003,
    epochs: int = 20,
    turns: int = 5,
    results: Path = common.RESULTS,
    data: Path | None = None,
    text: str = "text",
    label: str = "label",
    encoder: str = "hashing",
) -> Path:
    """Measure, write the results, return their path."""
    spec: dict[str, Any] = {"type": "hashing", "dim": 384} if encoder == "hashing" else {"type": encoder}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        table = (data or place / "table.csv").resolve()
        if data is None:
            make_table(table, rows)
        (place / "config.yaml").write_text(json.dumps(config(text, label, spec, epochs)))
        train = [
            *_COMMAND,
            "train",
            str(table),
            "-c",
            "config.yaml",
            "--store",
            "store",
            "--output",
            "run",
            "--json",
            "--quiet",
        ]
        _, cold = run(train, place)
        turned = []
        for _ in range(turns):
            bare, _ = run([sys.executable, "-c", "import torch"], place)
            warm, out = run(train, place)
            turned.append({"import_torch": bare, "warm": warm, **json.loads(out)})
    if any(turn["encoded"] for turn in turned):
        raise RuntimeError("a warm run encoded something")
    over = common.median([turn["warm"] - turn["import_torch"] for turn in turned])
    in_epochs = common.median([turn["seconds"]["epochs"] for turn in turned])
    outside = common.median([turn["warm"] - turn["import_torch"] - turn["seconds"]["epochs"] for turn in turned])
    report = {
        "config": {
            "rows": json.loads(cold)["rows"]["train"],
            "epochs": epochs,
            "batch_size": BATCH,
            "turns": turns,
            "encoder": spec,
        },
        "over_import_torch": over,
        "in_epochs": in_epochs,
        "outside_epochs": outside,
        "wanted": {"over_import_torch": OVER_IMPORT, "outside_epochs": OUTSIDE_EPOCHS},
        "turns": [
            {key: turn[key] for key in ("import_torch", "warm", "seconds", "hits", "encoded")} for turn in turned
        ],
        "machine": common.machine(),
        "versions": common.versions("torch", "numpy", "pyarrow"),
    }
    lines = [
        f"{report['config']['rows']} rows, encoder {encoder}, {epochs} epochs, batch {BATCH}; medians of {turns} turns.",
        "",
        "| seconds | measured | wanted at most |",
        "|---|---:|---:|",
        f"| `import torch` alone | {common.median([turn['import_torch'] for turn in turned]):.2f} | |",
        f"| warm train, more than that | {over:.2f} | {OVER_IMPORT} |",
        f"| of which epochs | {in_epochs:.2f} | |",
        f"| of which everything else | {outside:.2f} | {OUTSIDE_EPOCHS} |",
    ]
    return common.write("warm_train", "A warm training run, as a process", report, lines, results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="label")
    parser.add_argument("--encoder", default="hashing")
    print(main(**vars(parser.parse_args())).with_suffix(".md").read_text(encoding="utf-8"))
