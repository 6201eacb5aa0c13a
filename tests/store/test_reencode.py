"""Encoding stored rows again: what cannot be compared is said, what is not what its encoder gives is found."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from cachestore import build, open_store, shard
from cachestore.keys import Key
from cachestore.manifest import read_chunks
from cachestore.verify import verify
from tests.store.counting import CountingEncoder
from tests.store.damage import Damaged, kinds

HASHING = {"type": "hashing", "dim": 32}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.csv"
    rows = "".join(f"row {row},{'' if row % 10 == 3 else f'title {row}'},{row}\n" for row in range(300))
    path.write_text("text,title,n\n" + rows, encoding="utf-8")
    return path


@pytest.fixture
def store(tmp_path, data):
    with open_store(tmp_path / "store") as store:
        build(store, data, {"text": HASHING, "title": {**HASHING, "dtype": "float32"}}, "both")
    return tmp_path / "store"


def test_rows_of_the_recorded_file_are_encoded_again_and_agree(store):
    report = verify(store, reencode=40, seed=1)
    assert not report.findings
    assert report.reencoded.rows == 40
    assert report.reencoded.wrong == 0
    assert 0.9999 < report.reencoded.least <= report.reencoded.mean <= 1.0001
    assert verify(store, ["both@1"], reencode=10_000).reencoded.rows == 300 + 270  # every row with a vector


def test_a_vector_that_its_encoder_does_not_give_is_found(store):
    with open_store(store) as opened:
        manifest = opened.manifest("both")
        keys = [Key(key) for key in next(read_chunks(store, manifest, "text"))[0][[7, 8]].tolist()]
        column = manifest.column("text")
        with opened.writing():
            name, nbytes = shard.write(store, column.spec, keys, np.eye(2, 32, dtype=np.float16))
            opened.index.commit(name, column.fingerprint, column.spec, keys, nbytes, moved=True)
    assert not verify(store, read_data=True).damage  # the bytes are sound; only the encoder knows
    report = verify(store, reencode=10_000)
    (finding,) = report.damage
    assert finding.what == "both@1"
    assert "2 of 300 vectors of column 'text' are not what their encoder gives now" in finding.detail
    assert report.reencoded.wrong == 2


def test_a_file_that_changed_or_is_gone_is_a_notice(store, data):
    text = data.read_text()
    data.write_text(text.replace("row 5", "row five"))
    report = verify(store, reencode=5)
    assert report.reencoded.rows == 0
    assert not report.damage
    assert "no longer the file" in report.notices[0].detail
    data.unlink()
    assert "cannot be read" in verify(store, reencode=5).notices[0].detail


def test_an_encoder_of_ones_own_is_given_or_the_column_is_named(tmp_path):
    store = Damaged(tmp_path / "store", tmp_path)
    store.build("first", 60)
    report = verify(store.root, reencode=5)
    assert "No encoder at hand is that of column 'text'" in report.notices[0].detail
    assert report.reencoded.least is None
    other = verify(store.root, reencode=5, encoders=[CountingEncoder(other=1)])
    assert other.reencoded.rows == 0
    report = verify(store.root, reencode=5, encoders=[CountingEncoder(other=1), CountingEncoder()])
    assert not report.findings
    assert report.reencoded.rows == 5


def test_tables_in_memory_cannot_be_encoded_again(tmp_path):
    with open_store(tmp_path / "store") as store:
        build(store, {"text": ["a", "b"]}, {"text": HASHING}, "memory")
    report = verify(tmp_path / "store", reencode=5)
    assert "not built from a file" in report.notices[0].detail
    assert not report.damage


def test_rows_without_a_vector_to_serve_are_reported_once_and_by_the_check_of_keys(tmp_path):
    store = Damaged(tmp_path / "store", tmp_path)
    store.build("first", 60)
    store.shards()[0].unlink()
    report = verify(store.root, reencode=60, encoders=[CountingEncoder()])
    assert kinds(report.damage) == {"shard", "vector"}
    assert 0 < report.reencoded.rows < 60


def test_rows_of_later_chunks_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["cachestore.build"], "CHUNK_ROWS", 16)
    store = Damaged(tmp_path / "store", tmp_path)
    store.build("first", 60)
    with open_store(store.root, "r") as opened:
        assert len(opened.manifest("first").chunks) == 4
    encoder = CountingEncoder()
    report = verify(store.root, reencode=60, encoders=[encoder])
    assert report.reencoded.rows == 60
    assert report.reencoded.least == pytest.approx(1, abs=1e-3)
    assert sorted(encoder.seen) == sorted(f"first row {row}".encode() for row in range(60))
