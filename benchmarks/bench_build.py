"""A whole build (read, hash, encode, store) beside what a user would run by hand, and beside other embedding caches.

Speed of encoding: `cachestore build` of a file against `SentenceTransformer.encode` with its defaults, on the same texts and
the same model, taking turns; models are loaded and warmed before. With bfloat16 hardware, both in bfloat16 as well.
What is not the encoder: the same build with vectors that are there already. And those vectors stored by LangChain's
CacheBackedEmbeddings over files (if it is installed) and as rows of SQLite, one transaction a batch.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import common
from cachestore import open_store
from cachestore.build import run
from cachestore.encoders import _torchvision
from cachestore.encoders.locate import packaged_minilm
from cachestore.encoders.precision import cpu_has_bfloat16
from cachestore.keys import Json

DIM = 384
EVERY = 5  # reviews


class Given:
    """An encoder whose vectors are there already, so that all that takes time is the store."""

    dim = DIM

    def __init__(self, rows: int) -> None:
        self.spec: dict[str, Json] = {"kind": "given", "dtype": "float16", "precision": "float32"}
        self.vectors = np.random.default_rng(0).standard_normal((rows, DIM), np.float32).astype(np.float16)
        self._at = 0

    def encode(self, payloads: Sequence[bytes]) -> NDArray[np.float16]:
        self._at += len(payloads)
        return self.vectors[self._at - len(payloads) : self._at]


def write_texts(path: Path, texts: Sequence[str]) -> Path:
    """A CSV with one column ``text``."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text"])
        writer.writerows([text] for text in texts)
    return path


def made_up(rows: int, words: int) -> list[str]:
    """Distinct texts of about so many words."""
    chance = random.Random(words)
    known = [f"{chance.choice('bdfgklmnprst')}{chance.choice('aeiou')}{number}" for number in range(2000)]
    return [f"{row} {' '.join(chance.choices(known, k=words))}" for row in range(rows)]


def of_data(data: Path) -> dict[str, list[str]]:
    """The texts of banking77 (short) and movie_reviews (long)."""
    import pyarrow.parquet

    short: list[str] = []
    for name in ("train.csv", "test.csv"):
        with (data / "banking77" / name).open(encoding="utf-8", newline="") as file:
            short += [row["text"] for row in csv.DictReader(file)]
    table = pyarrow.parquet.read_table(data / "movie_reviews" / "data.parquet")
    reviews: list[str] = table.column("review").to_pylist()
    return {"short (banking77)": short, f"long (every {EVERY}th of movie_reviews)": reviews[::EVERY]}


def encoding(label: str, texts: list[str], turns: int, folder: Path, precision: str) -> dict[str, Any]:
    """Texts per second of both, their ratio turn by turn, and the lowest cosine of their vectors."""
    _torchvision.make_importable()
    import torch
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(packaged_minilm()), device="cpu")
    cast = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    peer = peer.to(cast)
    file = write_texts(folder / f"{precision}.csv", texts)
    settings = {"type": "minilm", "precision": precision}
    sample = texts[:256]
    peer.encode(sample)
    with open_store(folder / "warm") as store:
        store.embed(sample, settings)
    theirs: NDArray[Any] = np.empty(0)
    ours: NDArray[Any] = np.empty(0)
    seconds: dict[str, list[float]] = {"sentence-transformers": [], "cachestore": []}
    for turn in range(turns):
        began = time.perf_counter()
        theirs = np.asarray(peer.encode(texts), np.float32)
        seconds["sentence-transformers"].append(time.perf_counter() - began)
        with open_store(folder / f"{precision}-{turn}") as store:
            began = time.perf_counter()
            built = run(store, file, {"text": settings})
            seconds["cachestore"].append(time.perf_counter() - began)
            ours = store.vectors(built.manifest, "text")[0].astype(np.float32)
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    ratios = [one / other for one, other in zip(*seconds.values(), strict=True)]
    return {
        "texts": label,
        "rows": len(texts),
        "distinct": len(set(texts)),
        "precision": precision,
        "seconds": seconds,
        "texts_per_second": {name: len(texts) / common.median(values) for name, values in seconds.items()},
        "ratio": common.median(ratios),
        "min_cosine": float(((ours * theirs).sum(1) / lengths).min()),
    }


def by_store(file: Path, given: Given, folder: Path) -> None:
    """A build with vectors that are there."""
    with open_store(folder / "store") as store:
        run(store, file, {"text": given})


def by_langchain(texts: Sequence[str], given: Given, folder: Path) -> None:
    """LangChain's cache over one file for each text."""
    from langchain_classic.embeddings import CacheBackedEmbeddings
    from langchain_classic.storage import LocalFileStore
    from langchain_core.embeddings import Embeddings

    class There(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return given.encode([text.encode() for text in texts]).tolist()

        def embed_query(self, text: str) -> list[float]:
            return self.embed_documents([text])[0]

    cached = CacheBackedEmbeddings.from_bytes_store(
        There(), LocalFileStore(folder / "files"), namespace="given", batch_size=4096, key_encoder="sha256"
    )
    cached.embed_documents(list(texts))


def by_sqlite(texts: Sequence[str], given: Given, folder: Path) -> None:
    """A table of keys and vectors, one transaction for each 4096 rows."""
    connection = sqlite3.connect(folder / "vectors.db")
    connection.execute("create table vectors (key blob primary key, vector blob) without rowid")
    for at in range(0, len(texts), 4096):
        payloads = [text.encode() for text in texts[at : at + 4096]]
        vectors = given.encode(payloads)
        rows = [(sha256(payload).digest(), vector.tobytes()) for payload, vector in zip(payloads, vectors, strict=True)]
        with connection:
            connection.executemany("insert or ignore into vectors values (?, ?)", rows)
    connection.close()


def storing(rows: int, turns: int) -> dict[str, Any]:
    """Rows per second of vectors that are there, into each store."""
    texts = made_up(rows, 12)
    contestants: dict[str, Callable[[Path, Given], None]] = {
        "cachestore": lambda folder, given: by_store(folder / "texts.csv", given, folder),
        "sqlite": lambda folder, given: by_sqlite(texts, given, folder),
    }
    if importlib.util.find_spec("langchain_classic"):
        contestants["langchain files"] = lambda folder, given: by_langchain(texts, given, folder)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns):
        for name, action in contestants.items():
            with tempfile.TemporaryDirectory() as made:
                write_texts(Path(made) / "texts.csv", texts)
                given = Given(rows)
                began = time.perf_counter()
                action(Path(made), given)
                seconds[name].append(time.perf_counter() - began)
    speeds = {name: rows / common.median(values) for name, values in seconds.items()}
    return {"rows": rows, "seconds": seconds, "rows_per_second": speeds}


def main(
    data: Path | None = None,
    rows: int = 2000,
    stored_rows: int = 100_000,
    turns: int = 3,
    results: Path = common.RESULTS,
) -> Path:
    """Run the comparison and write its result; returns the JSON file. Without ``data`` the texts are made up."""
    sets = of_data(data) if data else {"short": made_up(rows, 12), "long": made_up(max(1, rows // 10), 600)}
    precisions = ["float32", "bfloat16"] if cpu_has_bfloat16() else ["float32"]
    encoded = []
    for label, texts in sets.items():
        for precision in precisions:
            with tempfile.TemporaryDirectory() as folder:
                encoded.append(encoding(label, texts, turns, Path(folder), precision))
    stored = storing(stored_rows, turns)
    short = encoded[0]
    share = (short["rows"] / stored["rows_per_second"]["cachestore"]) / common.median(short["seconds"]["cachestore"])
    report = {
        "config": {"rows": {label: len(texts) for label, texts in sets.items()}, "turns": turns, "dim": DIM},
        "encoding": encoded,
        "storing": stored,
        "share_of_the_store": share,
        "machine": common.machine(),
        "versions": common.versions("torch", "transformers", "sentence-transformers", "numpy", "lmdb", "pyarrow"),
    }
    lines = [
        "A whole build of all-MiniLM-L6-v2 vectors (read, hash, encode, store) against `SentenceTransformer.encode` with its defaults:",
        "",
        "| texts | rows | precision | sentence-transformers, texts/s | cachestore, texts/s | ratio | lowest cosine |",
        "|---|---:|---|---:|---:|---:|---:|",
        *[
            f"| {one['texts']} | {one['rows']:,} | {one['precision']} | {one['texts_per_second']['sentence-transformers']:.0f} "
            f"| {one['texts_per_second']['cachestore']:.0f} | **{one['ratio']:.2f}** | {one['min_cosine']:.6f} |"
            for one in encoded
        ],
        "",
        *([] if len(precisions) > 1 else ["This CPU has no bfloat16, so `precision: auto` is float32 here.", ""]),
        f"All that is not the encoder takes {share:.1%} of the build of short texts.",
        "",
        f"Storing {stored['rows']:,} vectors that are there, {DIM} numbers of float16 each:",
        "",
        "| | rows/s |",
        "|---|---:|",
        *[f"| {name} | {speed:,.0f} |" for name, speed in stored["rows_per_second"].items()],
    ]
    return common.write("build", "A build, and what a user would run by hand", report, lines, results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a folder with banking77/ and movie_reviews/")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--stored-rows", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=3)
    print(main(**vars(parser.parse_args())).with_suffix(".md").read_text(encoding="utf-8"))
