"""`verify --read-data` beside SHA-256 alone, in one thread, on the same mapped shards of 384 float16 numbers a row.

Verify digests every shard and checks every row besides: its XXH3, NaN and infinities. They take turns, so that whatever else the
machine does meets both; numbers are medians over the turns. The vectors are random: their values change neither.
"""

from __future__ import annotations

import argparse
import tempfile
from hashlib import sha256
from pathlib import Path

import numpy as np

from benchmarks import common
from cachestore import files, layout, open_store, shard
from cachestore.keys import Key
from cachestore.store import Store
from cachestore.verify import verify

DIM = 384
SPEC = {"kind": "benchmark", "dtype": "float16", "precision": "float32"}
WANTED = 0.5


def fill(store: Store, shards: int, rows: int) -> None:
    """Shards of random keys and vectors."""
    draw = np.random.default_rng(0)
    for _ in range(shards):
        keys = [Key(key) for key in _split(draw.bytes(32 * rows))]
        vectors = draw.standard_normal((rows, DIM), np.float32).astype("<f2")
        with store.writing():
            store.put(SPEC, keys, vectors)


def _split(joined: bytes) -> list[bytes]:
    return [joined[at : at + 32] for at in range(0, len(joined), 32)]


def digest_all(root: Path) -> int:
    """SHA-256 of every shard, mapped, one after the other; returns the bytes."""
    total = 0
    for name in layout.content_sizes(root, shard.FOLDER, shard.SUFFIX):
        data = files.map_file(layout.content_path(root, shard.FOLDER, name, shard.SUFFIX))
        sha256(data).digest()
        total += data.nbytes
    return total


def main(shards: int = 8, rows: int = 82_000, turns: int = 5, results: Path = common.RESULTS) -> Path:
    """Measure, write the results, return their path."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        with open_store(root) as store:
            fill(store, shards, rows)
        nbytes = digest_all(root)  # and the files are in memory from here on
        contestants = {
            "sha256": lambda: digest_all(root),
            "verify --read-data": lambda: verify(root, read_data=True),
            "verify": lambda: verify(root),
        }
        assert not verify(root, read_data=True).damage
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(turns):
            for name, action in contestants.items():
                seconds[name] += common.timed(action, 1)
    middle = {name: common.median(values) for name, values in seconds.items()}
    reading = middle["verify --read-data"] - middle["verify"]
    ratio = middle["sha256"] / middle["verify --read-data"]
    report = {
        "config": {"shards": shards, "rows_per_shard": rows, "dim": DIM, "dtype": "float16", "turns": turns},
        "bytes": nbytes,
        "ratio": ratio,
        "wanted": WANTED,
        "gb_per_second": {name: nbytes / value / 1e9 for name, value in middle.items() if name != "verify"},
        "seconds": seconds,
        "machine": common.machine(),
        "versions": common.versions("numpy", "pyarrow", "xxhash", "lmdb"),
    }
    rate = {name: f"{nbytes / value / 1e9:.2f}" for name, value in middle.items()}
    lines = [
        f"{shards} shards of {nbytes / shards / 2**20:.1f} MiB, {rows:,} rows each, in memory, median of {turns} turns.",
        "",
        "| | seconds | GB/s |",
        "|---|---:|---:|",
        f"| SHA-256 alone, one thread, mapped shards | {middle['sha256']:.2f} | {rate['sha256']} |",
        f"| `verify --read-data`, structure and index included | {middle['verify --read-data']:.2f} | {rate['verify --read-data']} |",
        f"| of it, structure and index (`verify`) | {middle['verify']:.2f} | |",
        f"| of it, reading | {reading:.2f} | {nbytes / reading / 1e9 if reading > 0 else 0:.2f} |",
        "",
        f"Verify with everything to SHA-256 alone: {ratio:.2f}; at least {WANTED} is wanted.",
    ]
    return common.write("verify", "Reading a store whole", report, lines, results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    print(main(turns=parser.parse_args().turns).with_suffix(".md").read_text(encoding="utf-8"))
