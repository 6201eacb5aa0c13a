"""B3 13: a store that is open when its process forks serves both, also in the workers of a DataLoader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cachestore import open_store
from cachestore.store import Store
from tests.faults import trials
from tests.faults.record import Record
from tests.faults.warm import ROOT, Warm
from tests.store.counting import CountingEncoder

Recording = Callable[[str], Record]
HERE = "tests.faults.test_forks:"


def fork_after_open(folder: str, depth: int, readers: int) -> dict[str, Any]:
    """Fork with an open store, to ``depth`` generations; each of them reads, writes rows of its own and reads all of them."""
    place = Path(folder)
    texts = [text for generation in range(depth + 1) for text in _texts(generation)]
    (place / "more.csv").write_text("\n".join(["text", *texts]) + "\n")
    with open_store(place / "store") as store:
        manifest = trials.run(store, place / "table.csv", CountingEncoder(), "table").manifest
        stop = threading.Event()
        threads = [threading.Thread(target=_read, args=(store, manifest, stop), daemon=True) for _ in range(readers)]
        for thread in threads:
            thread.start()
        code = _generation(store, place, depth)
        stop.set()
        for thread in threads:
            thread.join()
        wrong = sum(_wrong(store, generation) for generation in range(depth + 1))
    return {"code": code, "wrong": wrong}


def _generation(store: Store, place: Path, depth: int) -> int:
    child = os.fork() if depth else 0
    if depth and child == 0:
        os._exit(_generation(store, place, depth - 1))
    wrong = _write(store, depth) + _wrong(store, depth)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if depth else 0
    return abs(code) + wrong


def _texts(generation: int) -> list[str]:
    return [f"generation {generation} row {row}" for row in range(50)]


def _write(store: Store, generation: int) -> int:
    for at in range(0, 50, 10):
        store.embed(_texts(generation)[at : at + 10], CountingEncoder())
    return 0


def _wrong(store: Store, generation: int) -> int:
    """Rows of a generation that are not there or not what they should be."""
    encoder = CountingEncoder()
    vectors = store.embed(_texts(generation), encoder)
    truth = CountingEncoder().encode([text.encode() for text in _texts(generation)])
    return len(encoder.seen) + int((vectors != truth.astype(vectors.dtype)).any(axis=1).sum())


def _read(store: Store, manifest: Any, stop: threading.Event) -> None:
    while not stop.is_set():
        store.vectors(manifest, "text")


@pytest.mark.parametrize("readers", [0, 2], ids=["no thread reads", "threads read meanwhile"])
def test_a_process_and_those_it_forks_read_and_write_an_open_store(
    warm: Warm, folder: Path, record: Recording, readers: int
) -> None:
    with record("13 fork with an open store") as trial:
        for number in range(5):
            place = trials.fresh(folder / str(number))
            facts = warm.run(HERE + "fork_after_open", folder=str(place), depth=3, readers=readers).facts
            assert facts == {"code": 0, "wrong": 0}
            left = warm.run("aftermath", folder=str(place)).facts
            trial.trial(lost=left["lost"], wrong=left["wrong"] + facts["wrong"])
            assert (left["wrong"], left["partial"], left["complete"], left["encoded"]) == (0, [], True, 0)


# A script, as a user has one: spawned workers import it again.
LOADER = """
import json, sys
from pathlib import Path
import torch
from torch.utils.data import ConcatDataset, DataLoader
from cachestore import open_store
from tests.faults.test_forks import Rows

if __name__ == "__main__":
    torch.multiprocessing.set_start_method(sys.argv[2], force=True)
    store = Path(sys.argv[1]) / "store"
    rows = ConcatDataset([Rows(open_store(store, mode="r")), Rows(open_store(store))])
    rows[0], rows[-1]  # opened and used before it forks
    found = {}
    for method, workers in (("fork", 3), ("spawn", 1)):
        loader = DataLoader(rows, batch_size=16, num_workers=workers, multiprocessing_context=method)
        found[method] = [vector for batch in loader for vector in batch.tolist()]
    print(json.dumps(found))
"""


class Rows:
    """A map-style data set over an open store, as a user writes one. One that may write also stores something for each row."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.rows = store.manifest("table").rows

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.store.root, "mode": "r" if self.store.readonly else "w", "rows": self.rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.store = open_store(state["root"], mode=state["mode"])
        self.rows = state["rows"]

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> Any:
        if not self.store.readonly and row % 16 == 0:
            self.store.embed([f"seen {row}"], CountingEncoder())
        vectors, _ = self.store.vectors("table", "text")
        return vectors[row].astype(np.float32)


def test_the_workers_of_a_data_loader_reopen_the_store(warm: Warm, folder: Path, record: Recording) -> None:
    with record("13 DataLoader workers, forked and spawned") as trial:
        place = trials.fresh(folder / "trial")
        assert warm.run("build", folder=str(place)).code == 0
        (place / "loader.py").write_text(LOADER)
        done = subprocess.run(
            [sys.executable, place / "loader.py", place, "spawn"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=110,
        )
        assert done.returncode == 0, done.stderr
        truth = np.tile(CountingEncoder().encode(trials.payloads(place)).astype(np.float16), (2, 1))
        for method, vectors in json.loads(done.stdout).items():
            wrong = int((truth != np.array(vectors, np.float16)).any(axis=1).sum())
            trial.trial(wrong=wrong)
            assert wrong == 0, method
        (place / "more.csv").write_text(
            "\n".join(["text", *(f"seen {row}" for row in range(0, trials.ROWS, 16))]) + "\n"
        )
        left = warm.run("aftermath", folder=str(place)).facts
        trial.trial(lost=left["lost"], wrong=left["wrong"])
        assert (left["lost"], left["wrong"], left["partial"], left["complete"]) == (0, 0, [], True), left
