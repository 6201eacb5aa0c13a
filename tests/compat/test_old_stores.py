"""Stores that earlier versions wrote, checked in as files, are read, checked and built upon by this one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from cachestore import open_store
from cachestore.build import run
from cachestore.forget import forget
from cachestore.gc import collect
from cachestore.gc_rules import Rules
from cachestore.keys import key
from cachestore.manifest import FORGOTTEN, MISSING, PRESENT, SKIPPED
from cachestore.pins import pins
from cachestore.verify import verify
from tests.compat import write_store

STORES = sorted(Path(__file__).parent.glob("store-*"), key=lambda path: int(path.name.partition("-")[2]))
ROWS = 30


@pytest.fixture(params=STORES, ids=lambda path: path.name)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a folder with an old store, what was read from it then, and the table that it was built from."""
    return Path(shutil.copytree(request.param, tmp_path / "old"))


def expected(old: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((old / "expected.json").read_text())
    return found


def test_there_is_one_of_the_format_that_this_version_writes() -> None:
    assert write_store.PLACE in STORES
    assert sum(path.stat().st_size for path in write_store.PLACE.rglob("*") if path.is_file()) < 200_000


def test_it_holds_what_a_store_can_hold(old: Path) -> None:
    found = expected(old)
    assert set(found["reviews"]["text"]["reasons"]) == {PRESENT, MISSING, SKIPPED, FORGOTTEN}
    assert {found["reviews"][column]["dtype"] for column in ("text", "title")} == {"<f2", "<f4"}
    for file in ("superseded.json", "audit.jsonl", "tags/reviews@first.json", "pins/5eed0000.json", "index/data.mdb"):
        assert (old / "store" / file).exists()
    assert found["reviews"]["id"] != found["reviews@1"]["id"] == found["reviews@first"]["id"]


def test_vectors_are_those_that_were_written(old: Path) -> None:
    assert write_store.read(old / "store") == expected(old)


def test_it_is_sound_and_reading_changes_nothing(old: Path) -> None:
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file() and path.name != "lock.mdb"}
    report = verify(old / "store", read_data=True)
    assert not report.damage, report.findings
    assert report.cells == 30 * 2 + 20 * 2 + 3 - sum(
        reason != PRESENT
        for reference in ("reviews", "reviews@1", "notes")
        for column in write_store.REFERENCES[reference]
        for reason in expected(old)[reference][column]["reasons"]
    )
    for path, data in before.items():
        assert path.read_bytes() == data, path


def test_without_its_index_it_is_the_same(old: Path) -> None:
    shutil.rmtree(old / "store" / "index")
    with open_store(old / "store") as store, store.writing():
        pass
    assert write_store.read(old / "store") == expected(old)
    assert not verify(old / "store", read_data=True).damage


def test_it_is_built_upon(old: Path) -> None:
    """Its rows are known by the keys of then, so that only new ones are encoded; what was forgotten is new."""
    with warnings.catch_warnings(), open_store(old / "store") as store:
        warnings.simplefilter("ignore")
        again = run(store, old / "reviews.csv", write_store.ENCODERS, name="reviews")
        assert (again.counts.encoded, again.counts.skipped, again.counts.missing) == (1, 1, 1)
        assert (old / "reviews.csv").read_bytes() == write_store.table(ROWS)
        (old / "reviews.csv").write_bytes(write_store.table(ROWS) + b"a new text,title 1\n")
        more = run(store, old / "reviews.csv", write_store.ENCODERS, name="reviews")
        assert (more.counts.rows, more.counts.encoded) == (ROWS + 1, 1)
        assert store.manifest("reviews").id == more.manifest.id
        store.tag("reviews", "now")
        assert [pin.run for pin in pins(store.root)] == ["5eed0000"]
        forget(store, [write_store.FORGOTTEN.encode()])
        _, done = collect(store, Rules(grace=0, unreferenced_older_than=0, repack=True))
        assert done.freed >= 0
    found = write_store.read(old / "store")
    for reference in ("reviews@1", "reviews@first", "notes"):
        assert found[reference] == expected(old)[reference]
    assert found["reviews"]["text"]["vectors"].startswith(expected(old)["reviews"]["text"]["vectors"])
    assert not verify(old / "store", read_data=True).damage


def test_what_was_forgotten_is_in_no_file(old: Path) -> None:
    for column in expected(old)["reviews"]:
        if column in write_store.ENCODERS:
            with open_store(old / "store", mode="r") as store:
                encoder = store.manifest("reviews").column(column).fingerprint
            needle = key(encoder, write_store.FORGOTTEN.encode())
            for path in (old / "store").rglob("*"):
                content = path.read_bytes() if path.is_file() else b""
                assert needle not in content
                assert needle.hex().encode() not in content


WITHOUT_US = """
import hashlib, json, sys
from pathlib import Path
sys.modules["cachestore"] = None  # importing it would fail
import pyarrow as pa
root = Path(sys.argv[1])
vectors = {}
for path in root.glob("shards/*/*.arrow"):
    assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
    with pa.memory_map(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
        values = batch.column("vector").flatten().to_numpy()
        for key, vector in zip(batch.column("key").to_pylist(), values.reshape(batch.num_rows, -1)):
            vectors[key] = vector.tobytes()
found = {}
for log in root.glob("names/*.jsonl"):
    newest = json.loads(log.read_text().splitlines()[-1])["manifest"]
    superseded = json.loads((root / "superseded.json").read_text())["manifests"]
    newest = superseded.get(newest, newest)
    path = root / "manifests" / newest[:2] / f"{newest}.json"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == newest
    manifest = json.loads(path.read_text())
    found[log.stem] = {"id": newest, "rows": manifest["rows"]}
    for column in manifest["columns"]:
        size = column["dim"] * (2 if column["spec"]["dtype"] == "float16" else 4)
        data, reasons = b"", []
        for chunk in manifest["chunks"]:
            table = pa.ipc.open_file((root / "chunks" / chunk["id"][:2] / f"{chunk['id']}.arrow").read_bytes()).read_all()
            for key in table.column(f"key.{column['name']}").to_pylist():
                data += bytes(size) if key is None else vectors[key]
            reasons += table.column(f"reason.{column['name']}").to_pylist()
        found[log.stem][column["name"]] = {
            "dtype": "<f2" if column["spec"]["dtype"] == "float16" else "<f4",
            "dim": column["dim"], "reasons": reasons, "vectors": data.hex(),
        }
print(json.dumps(found))
"""


def test_pyarrow_alone_reads_it(old: Path) -> None:
    """B3 33: whoever leaves this package takes everything along."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_US, str(old / "store")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {name: expected(old)[name] for name in ("reviews", "notes")}
