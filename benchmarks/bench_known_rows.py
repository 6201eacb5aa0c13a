"""A build of a million rows that the store knows, arriving in a new, shuffled file; and of a file that was built before.

The floor of the first: reading the CSV with pyarrow and hashing each cell with SHA-256, which is what identity takes; the rest is
the look-up of a million keys in LMDB, writing the chunks, and noticing what is missing. The floor of the second: one XXH3-128 over
the file. Both are measured beside the builds, in turns, each build in a process of its own that is timed after its imports.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.csv as pacsv
import xxhash
from numpy.typing import NDArray

from benchmarks import common
from cachestore import open_store
from cachestore.build import run
from cachestore.keys import Json


class Ready:
    """Vectors that cost nothing, for benchmarks of everything else."""

    dim = 16
    spec: dict[str, Json] = {"kind": "ready", "dim": 16, "dtype": "float16"}  # noqa: RUF012

    def encode(self, payloads: Sequence[bytes]) -> NDArray[np.float32]:
        """(len(payloads), 16) ones."""
        return np.ones((len(payloads), self.dim), np.float32)


def write_texts(folder: Path, rows: int) -> None:
    """``first.csv`` with distinct texts of a dozen words, and ``shuffled.csv`` with the same in another order."""
    chance = random.Random(0)
    words = [f"{chance.choice('bdfgklmnprst')}{chance.choice('aeiou')}{number}" for number in range(2000)]
    lines = [f"{row} {' '.join(chance.choices(words, k=12))}" for row in range(rows)]
    folder.joinpath("first.csv").write_text("\n".join(["text", *lines]) + "\n")
    chance.shuffle(lines)
    folder.joinpath("shuffled.csv").write_text("\n".join(["text", *lines]) + "\n")


def build(folder: Path, file: str) -> None:
    """Build one file and print the seconds from opening the store to the manifest."""
    began = time.perf_counter()
    with open_store(folder / "store") as store:
        done = run(store, folder / file, {"text": Ready()}, name=file)
    print(json.dumps([time.perf_counter() - began, done.counts.encoded, done.recognised]))


def hash_cells(file: Path) -> None:
    """Read a CSV with pyarrow, and hash each cell."""
    sha256 = hashlib.sha256
    for text in pacsv.read_csv(file).column("text").to_pylist():
        sha256(text.encode()).digest()


def digest_file(file: Path) -> None:
    """XXH3-128 of a file, block by block."""
    digest = xxhash.xxh3_128()
    with file.open("rb", buffering=0) as source:
        while block := source.read(1 << 20):
            digest.update(block)


def main(rows: int = 1_000_000, turns: int = 3, results: Path = common.RESULTS) -> Path:
    """Run the comparison and write its result; returns the JSON file."""
    seconds: dict[str, list[float]] = {"known": [], "hash": [], "recorded": [], "digest": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_texts(folder, rows)
        size = (folder / "shuffled.csv").stat().st_size

        def child(file: str) -> tuple[float, int, bool]:
            command = [sys.executable, "-m", "benchmarks.bench_known_rows", "--build", str(folder), file]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            spent, encoded, recognised = json.loads(done.stdout.splitlines()[-1])
            return spent, encoded, recognised

        child("first.csv")
        for turn in range(turns):
            fresh = f"turn-{turn}.csv"  # a file not seen before, of rows that all were
            with (folder / fresh).open("w") as file:
                file.write((folder / "shuffled.csv").read_text())
                file.write(f'"{(folder / "first.csv").read_text().splitlines()[turn + 1]}"\n')
            seconds["hash"] += common.timed(lambda fresh=fresh: hash_cells(folder / fresh), 1)  # type: ignore[misc]
            spent, encoded, recognised = child(fresh)
            if encoded or recognised:
                raise RuntimeError(f"{encoded} rows were encoded, recognised: {recognised}")
            seconds["known"].append(spent)
            seconds["digest"] += common.timed(lambda fresh=fresh: digest_file(folder / fresh), 1)  # type: ignore[misc]
            spent, _, recognised = child(fresh)
            if not recognised:
                raise RuntimeError("the file was parsed again")
            seconds["recorded"].append(spent)
            (folder / fresh).unlink()
    middle = {name: common.median(values) for name, values in seconds.items()}
    known = common.median([a / b for a, b in zip(seconds["known"], seconds["hash"], strict=True)])
    recorded = common.median([a / b for a, b in zip(seconds["recorded"], seconds["digest"], strict=True)])
    report = {
        "config": {"rows": rows, "turns": turns, "file_bytes": size},
        "machine": common.machine(),
        "versions": common.versions("numpy", "lmdb", "pyarrow", "xxhash"),
        "seconds": seconds,
        "known_to_floor": known,
        "recorded_to_floor": recorded,
    }
    lines = [
        f"{rows:,} known rows in a shuffled CSV of {size / 1e6:.0f} MB (medians of {turns} turns):",
        "",
        "| | |",
        "|---|---|",
        f"| read with pyarrow, SHA-256 of each cell | {middle['hash']:.2f} s |",
        f"| build, nothing to encode | {middle['known']:.2f} s = {rows / middle['known']:,.0f} rows/s |",
        f"| **ratio** (wanted: at most 3) | **{known:.2f}** |",
        f"| XXH3-128 of the file | {middle['digest'] * 1000:.0f} ms |",
        f"| build of the recorded, unchanged file | {middle['recorded'] * 1000:.0f} ms |",
        f"| **ratio** (wanted: at most 2) | **{recorded:.2f}** |",
    ]
    return common.write("known_rows", "Rows that are known already", report, lines, results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--build", nargs=2, metavar=("FOLDER", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.build:
        build(Path(given.build[0]), given.build[1])
    else:
        print(main(given.rows, given.turns).with_suffix(".md").read_text(encoding="utf-8"))
