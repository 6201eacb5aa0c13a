"""Eight processes that build the same texts into one empty store at the same moment.

The floor: one process encodes everything (a cold build), and each process reads, hashes and looks every row up (a warm build of a
file that is not recorded), as many at a time as there are cores. So: cold + processes / cores × warm. Everything is timed from a
barrier after the imports. The encoder is the hashing one, the fastest there is, so that nothing hides behind it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import common
from cachestore import open_store
from cachestore.build import run
from cachestore.encoders import open_encoder
from cachestore.keys import Json

DIM = 384


class Counted:
    """The hashing encoder, counting what it encodes."""

    def __init__(self) -> None:
        self._encoder = open_encoder({"type": "hashing", "dim": DIM})
        self.spec: dict[str, Json] = dict(self._encoder.spec)
        self.dim = DIM
        self.encoded = 0

    def encode(self, payloads: Sequence[bytes]) -> NDArray[np.float32]:
        self.encoded += len(payloads)
        return self._encoder.encode(payloads)


def write_texts(path: Path, rows: int) -> None:
    """A CSV of distinct texts of a dozen words."""
    chance = random.Random(0)
    words = [f"{chance.choice('bdfgklmnprst')}{chance.choice('aeiou')}{number}" for number in range(2000)]
    with path.open("w", encoding="utf-8") as file:
        file.write("text\n")
        for row in range(rows):
            file.write(f"{row} {' '.join(chance.choices(words, k=12))}\n")


def build(folder: str, file: str, barrier: Barrier | None, found: Any) -> None:
    """Build, from the barrier on; puts (seconds, payloads encoded, manifest id, shards) into the queue ``found``."""
    encoder = Counted()
    if barrier:
        barrier.wait()
    began = time.perf_counter()
    with open_store(Path(folder) / "store") as store:
        done = run(store, Path(folder) / file, {"text": encoder}, name=Path(file).stem)
        seconds = time.perf_counter() - began
        found.put((seconds, encoder.encoded, done.manifest.id, len(store.index.shards())))


def at_once(folder: Path, file: str, processes: int) -> list[tuple[float, int, str, int]]:
    """What each of the processes found."""
    context = multiprocessing.get_context("spawn")
    found, barrier = context.Queue(), context.Barrier(processes)
    workers = [context.Process(target=build, args=(str(folder), file, barrier, found)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    results = [found.get() for _ in workers]
    for worker in workers:
        worker.join()
    return results


def main(rows: int = 20_000, processes: int = 8, turns: int = 5, results: Path = common.RESULTS) -> Path:
    """Run the comparison and write its result; returns the JSON file."""
    cores = len(os.sched_getaffinity(0))
    cold, warm, together, ratios, encoded, shards = [], [], [], [], 0, 0
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_texts(folder / "texts.csv", rows)
            (folder / "again.csv").write_text((folder / "texts.csv").read_text() + "\n")  # the same rows, another file
            alone = folder / "alone"
            alone.mkdir()
            for file in ("texts.csv", "again.csv"):
                (alone / file).symlink_to(folder / file)
            cold.append(at_once(alone, "texts.csv", 1)[0][0])
            warm.append(at_once(alone, "again.csv", 1)[0][0])
            found = at_once(folder, "texts.csv", processes)
            together.append(max(seconds for seconds, *_ in found))
            encoded = sum(count for _, count, *_ in found)
            shards = max(number for *_, number in found)
            if encoded != rows or len({identity for _, _, identity, _ in found}) != 1:
                raise RuntimeError(f"{rows} texts were encoded {encoded} times, or gave different manifests")
            ratios.append(together[-1] / (cold[-1] + processes / cores * warm[-1]))
    report = {
        "config": {"rows": rows, "processes": processes, "turns": turns, "dim": DIM, "cores": cores},
        "machine": common.machine(),
        "versions": common.versions("numpy", "lmdb", "pyarrow"),
        "seconds": {"cold": cold, "warm": warm, "together": together},
        "encoded": encoded,
        "shards": shards,
        "ratio_to_floor": common.median(ratios),
    }
    lines = [
        f"{processes} processes build the same {rows:,} texts at once (hashing encoder, {DIM} dimensions, medians of {turns} turns):",
        "",
        "| | |",
        "|---|---|",
        f"| one cold build | {common.median(cold):.2f} s |",
        f"| one warm build (known rows in another file) | {common.median(warm):.2f} s |",
        f"| floor: cold + {processes} / {cores} × warm | {common.median(cold) + processes / cores * common.median(warm):.2f} s |",
        f"| all {processes} at once | {common.median(together):.2f} s |",
        f"| **ratio to the floor** (wanted: at most 1) | **{common.median(ratios):.2f}** |",
        f"| texts encoded, of {rows:,} distinct | {encoded:,} |",
    ]
    return common.write("concurrent", "Many builders, one store", report, lines, results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5)
    print(main(**vars(parser.parse_args())).with_suffix(".md").read_text(encoding="utf-8"))
