"""Stats: counts agree with what was built, and the quality of vectors with what numpy says of them."""

from __future__ import annotations

import os

import numpy as np
import pytest

from cachestore import open_store
from cachestore.build import run
from cachestore.errors import DamageError
from cachestore.fill import Limits
from cachestore.keys import fingerprint, keys
from cachestore.stats import stats
from tests.store.counting import CountingEncoder


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "store") as opened:
        yield opened


def put(store, spec, vectors):
    names = keys(fingerprint(spec), [str(row).encode() for row in range(len(vectors))])
    with store.writing():
        store.put(spec, names, np.asarray(vectors, np.float32))


def test_an_empty_store_has_nothing(store):
    found = stats(store)
    assert (found.vectors, found.shards, found.names, found.encoders, found.builds) == (0, 0, 0, (), ())
    assert found.nbytes > 0  # its header and index


def test_vectors_names_builds_and_bytes_are_counted(store, tmp_path):
    few, many = CountingEncoder(n=1), CountingEncoder(n=2)
    run(store, {"text": ["a", "b", "a", None]}, {"text": few}, name="first")
    run(store, {"text": ["a", "b", "c"]}, {"text": few}, name="second")
    run(
        store,
        {"text": [f"text {row}" for row in range(100)]},
        {"text": many},
        name="second",
        limits=Limits(shard_rows=30, window_rows=10),
    )
    found = stats(store)
    assert (found.vectors, found.names, found.versions) == (103, 2, 3)
    assert [(encoder.vectors, encoder.names) for encoder in found.encoders] == [
        (100, ("second",)),
        (3, ("first", "second")),
    ]
    assert found.encoders[0].fingerprint == fingerprint(many.spec)
    assert found.encoders[0].shards >= 3
    assert found.encoders[0].oldest <= found.encoders[0].newest
    assert {(b.name, b.version): (b.rows, b.hits, b.encoded, b.repeats) for b in found.builds} == {
        ("first", 1): (4, 0, 2, 1),
        ("second", 1): (3, 2, 1, 0),
        ("second", 2): (100, 0, 100, 0),
    }
    on_disk = sum(path.stat().st_size for path in store.root.rglob("*") if path.is_file())
    assert found.nbytes == on_disk
    assert found.disk["shards"] == sum(encoder.nbytes for encoder in found.encoders)


def test_quality_of_all_vectors_is_what_numpy_says(store):
    vectors = np.random.default_rng(1).normal(size=(50, 6)).astype(np.float32)
    vectors[:, 2] = 0.5
    vectors[7] = vectors[3]
    vectors[8] = 0
    vectors[:, 2] = 0
    put(store, {"kind": "q", "dtype": "float32"}, vectors)
    (encoder,) = stats(store, sample=0).encoders
    found = encoder.quality
    norms = np.linalg.norm(vectors, axis=1)
    assert found.rows == 50
    assert found.norm_min == 0
    assert found.norm_median == pytest.approx(np.median(norms), rel=1e-6)
    assert found.norm_max == pytest.approx(norms.max(), rel=1e-6)
    assert (found.zeros, found.dead, found.not_finite) == (1, 1, 0)
    assert found.duplicates == pytest.approx(1 / 50)


def test_vectors_that_are_not_finite_are_counted_and_left_out_of_the_rest(store):
    vectors = np.ones((4, 3), np.float32)
    vectors[1, 0] = np.nan
    vectors[2, 1] = np.inf
    put(store, {"kind": "q", "dtype": "float32"}, vectors)
    (encoder,) = stats(store).encoders
    found = encoder.quality
    assert (found.not_finite, found.norm_max, found.dead) == (2, pytest.approx(3**0.5), 3)


def test_a_sample_is_the_same_every_time_and_over_all_shards(store):
    spec = {"kind": "q", "dtype": "float32"}
    for shard in range(4):
        names = keys(fingerprint(spec), [f"{shard} {row}".encode() for row in range(100)])
        with store.writing():
            store.put(spec, names, np.full((100, 2), shard, np.float32))
    first, second = (stats(store, sample=60).encoders[0].quality for _ in range(2))
    assert first == second
    assert first.rows == 60
    assert (first.norm_min, first.norm_max) == (0, pytest.approx(3 * 2**0.5))


def test_one_vector_has_no_dead_dimensions(store):
    put(store, {"kind": "q", "dtype": "float32"}, [[1, 2]])
    assert stats(store).encoders[0].quality.dead is None


def test_a_rotten_row_is_damage(store):
    put(store, {"kind": "q", "dtype": "float32"}, np.ones((10, 64)))
    (path,) = (store.root / "shards").rglob("*.arrow")
    data = bytearray(path.read_bytes())
    at = data.find(np.ones(64, "<f4").tobytes())
    data[at] ^= 1
    os.chmod(path, 0o644)
    path.write_bytes(data)
    with pytest.raises(DamageError, match="fails its check"):
        stats(store)
