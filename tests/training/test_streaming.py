from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cachestore.dataset import open_dataset
from cachestore.errors import ConfigError
from cachestore.store import Store, open_store
from tests.training.test_run import config, everything, with_free, write
from tests.training.test_run import messages as plain_messages
from trainer import evaluate, load_config, predict, streaming, train
from trainer.batches import Batch, CachedBatches, bounds
from trainer.events import Clock
from trainer.prepare import prepare
from trainer.schema.training import in_bytes
from trainer.streaming import StreamedBatches

LIMIT = 64_000_000_000


def messages(count: int) -> list[dict[str, str]]:
    return with_free(plain_messages(count))


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with open_store(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def tiny_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything streams, in blocks of 40 vectors of 64 float16."""
    monkeypatch.setattr(streaming, "_IN_MEMORY", 0.0)
    monkeypatch.setattr(streaming, "_BLOCK", 40 * 128 / LIMIT)
    monkeypatch.setattr(streaming, "_NEIGHBOURS", 8)
    monkeypatch.setattr(streaming, "_KEYS", 50)


def settings(limit: object, **changes: Any) -> dict[str, Any]:
    found = {**everything(), **changes}
    return {**found, "trainer": {**found.get("trainer", {}), "memory_limit": limit}}


def batches_of(given: dict[str, Any], data: Path, store: Store) -> Any:
    loaded = load_config({**given, "preprocessing": {"split": {"type": "random"}}})
    return prepare(loaded, {"train": open_dataset(data)}, store, Clock(None)).batches["train"]


def assert_equal(left: Batch, right: Batch) -> None:
    assert left.rows == right.rows
    for mine, other in ((left.inputs, right.inputs), (left.missing, right.missing), (left.targets, right.targets)):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in mine)


@pytest.mark.usefixtures("tiny_blocks")
@pytest.mark.parametrize("size", [1, 16, 25, 1000])
def test_in_order_batches_are_those_of_memory(tmp_path: Path, store: Store, size: int) -> None:
    data = write(tmp_path / "messages.csv", messages(150))
    held = batches_of(settings(None), data, store)
    streamed = batches_of(settings(LIMIT), data, store)
    assert isinstance(held, CachedBatches)
    assert isinstance(streamed, StreamedBatches)
    assert streamed.rows == held.rows
    for left, right in zip(streamed.in_order(size), held.in_order(size), strict=True):
        assert_equal(left, right)


@pytest.mark.usefixtures("tiny_blocks")
@pytest.mark.parametrize("size", [1, 16, 25, 1000])
def test_a_shuffled_pass_has_every_row_once_in_an_order_of_the_seed_alone(
    tmp_path: Path, store: Store, size: int
) -> None:
    data = write(tmp_path / "messages.csv", messages(150))
    streamed = batches_of(settings(LIMIT), data, store)

    def rows(seed: int) -> torch.Tensor:
        parts = [
            torch.cat([part.inputs["text"], part.targets["cost"][:, None]], dim=1)
            for part in streamed.shuffled(size, torch.Generator().manual_seed(seed))
        ]
        assert [len(part) for part in parts] == [stop - start for start, stop in bounds(streamed.rows, size)]
        return torch.cat(parts)

    first = rows(1)
    assert torch.equal(first, rows(1))
    assert not torch.equal(first, rows(2))
    whole = next(streamed.in_order(streamed.rows))
    expected = torch.cat([whole.inputs["text"], whole.targets["cost"][:, None]], dim=1)
    assert not torch.equal(first, expected)
    assert sorted(map(tuple, first.tolist())) == sorted(map(tuple, expected.tolist()))


@pytest.mark.usefixtures("tiny_blocks")
def test_a_streamed_run_learns_evaluates_and_predicts_as_one_in_memory(tmp_path: Path, store: Store) -> None:
    data = write(tmp_path / "messages.csv", messages(200))
    trainer = {"epochs": 20, "batch_size": 16, "learning_rate": 0.05}
    runs = [
        train(settings(limit, trainer=trainer), data, store, output=tmp_path / f"run{place}")
        for place, limit in enumerate((LIMIT, LIMIT, None))
    ]
    weights = [(run.path / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]  # the order of rows is another one
    topics = [run.metrics["test"]["topic"]["accuracy"] for run in runs]
    assert abs(topics[0] - topics[2]) <= 0.1
    evaluated = evaluate(runs[0], data, store).metrics
    assert evaluated["topic"]["accuracy"] > 0.9
    assert predict(runs[0], data, store).predicted.all()


@pytest.mark.usefixtures("tiny_blocks")
def test_another_process_reads_the_batches_from_the_store_too(tmp_path: Path, store: Store) -> None:
    data = tmp_path / "data.csv"
    data = write(data, messages(150))
    streamed = batches_of(settings(LIMIT), data, store)
    program = "import pickle, sys; print(next(pickle.load(sys.stdin.buffer).in_order(50)).inputs['text'].double().sum().item())"
    done = subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps(streamed), capture_output=True, check=True
    )
    assert float(done.stdout) == next(streamed.in_order(50)).inputs["text"].double().sum().item()


@pytest.mark.usefixtures("tiny_blocks")
def test_missing_cells_are_zero_vectors_and_cannot_be_filled(tmp_path: Path, store: Store) -> None:
    rows = messages(60)
    rows[3]["text"] = ""
    data = write(tmp_path / "messages.csv", rows)
    held, streamed = batches_of(settings(None), data, store), batches_of(settings(LIMIT), data, store)
    for left, right in zip(streamed.in_order(16), held.in_order(16), strict=True):
        assert_equal(left, right)
    text = {**config()["input_features"][0], "preprocessing": {"missing_value_strategy": "bfill"}}
    with pytest.raises(ConfigError, match=r"trainer.memory_limit: the column 'text' has missing cells"):
        batches_of(settings(LIMIT, input_features=[text]), data, store)


def test_what_a_limit_may_hold_stays_in_memory(tmp_path: Path, store: Store) -> None:
    data = write(tmp_path / "messages.csv", messages(60))
    assert isinstance(batches_of(settings("4GB"), data, store), CachedBatches)


def test_too_little_memory_is_an_error_that_says_how_much_it_takes(tmp_path: Path, store: Store) -> None:
    data = write(tmp_path / "messages.csv", messages(60))
    with pytest.raises(ConfigError, match=r"trainer.memory_limit: is too little; this data takes at least \d+MB"):
        batches_of(settings("10kB"), data, store)


@pytest.mark.parametrize(
    ("size", "expected"),
    [("4GB", 4_000_000_000), ("1.5 gb", 1_500_000_000), ("512MiB", 512 * 1024**2), (7, 7), ("9", 9), ("2 kB", 2000)],
)
def test_sizes_are_read_as_users_write_them(size: int | str, expected: int) -> None:
    assert in_bytes(size) == expected


@pytest.mark.parametrize("size", ["much", "4 XB", "", 0, "-1GB"])
def test_what_is_no_size_is_named(size: object) -> None:
    with pytest.raises(ConfigError, match=r"trainer.memory_limit: must be"):
        load_config({**config(), "trainer": {"memory_limit": size}})


WATCHED = """
import json, sys, threading, time
from trainer import train
from trainer.streaming import anonymous_memory

most, done = [0], threading.Event()

def watch():
    while not done.is_set():
        most[0] = max(most[0], anonymous_memory())
        time.sleep(0.002)

arguments = json.loads(sys.argv[1])
thread = threading.Thread(target=watch)
thread.start()
try:
    run = train(arguments.pop("config"), arguments.pop("data"), arguments.pop("store"), **arguments)
finally:
    done.set()
    thread.join()
print(json.dumps([most[0], run.metrics["train"]["parity"]["accuracy"]]))
"""


@pytest.mark.timeout(300)
def test_memory_stays_under_the_limit_where_training_in_memory_would_take_more(tmp_path: Path) -> None:
    rows, dim = 30_000, 4096  # 245 MB of vectors, which training in memory holds twice
    data = tmp_path / "many.csv"
    data.write_text("text,parity\n" + "".join(f"word{n} w{n % 7},{n % 2}\n" for n in range(rows)), encoding="utf-8")
    given = {
        "input_features": [{"name": "text", "type": "text", "encoder": {"type": "hashing", "dim": dim}}],
        "output_features": [{"name": "parity", "type": "binary"}],
        "trainer": {"epochs": 1, "learning_rate": 0.01, "memory_limit": "600MB"},
        "preprocessing": {"split": {"type": "random"}},
    }
    with open_store(tmp_path / "store") as store:
        from cachestore.build import run as build

        build(store, open_dataset(data), {"text": [load_config(given).input_features[0].encoder]})  # type: ignore[union-attr]
    arguments = {"config": given, "data": str(data), "store": str(tmp_path / "store"), "output": str(tmp_path / "run")}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, json.dumps(arguments)], capture_output=True, text=True, timeout=250, check=True
    )
    most, _ = json.loads(done.stdout)
    assert 100_000_000 < most < 600_000_000
