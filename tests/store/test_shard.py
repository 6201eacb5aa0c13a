"""Shards: what is written is what is read, and damage is never served."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from cachestore import layout, shard
from cachestore.errors import DamageError, StoreFormatError
from cachestore.keys import fingerprint, key

SPEC = {"type": "test", "dtype": "float16", "precision": "float32"}


def some(rows: int, dim: int = 8, spec=SPEC):
    keys = [key(fingerprint(spec), str(row).encode()) for row in range(rows)]
    vectors = np.random.default_rng(rows).normal(size=(rows, dim)).astype(shard.stored_dtype(spec))
    return keys, vectors


def path_of(root, name):
    return layout.content_path(root, shard.FOLDER, name, shard.SUFFIX)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_round_trip(tmp_path, dtype):
    spec = SPEC | {"dtype": dtype}
    keys, vectors = some(100, spec=spec)
    name, nbytes = shard.write(tmp_path, spec, keys, vectors)
    opened = shard.open_shard(tmp_path, name)
    assert opened.keys.tolist() == keys
    assert opened.vectors.dtype == vectors.dtype
    np.testing.assert_array_equal(opened.vectors, vectors)
    assert opened.spec == spec
    assert opened.fingerprint == fingerprint(spec)
    assert nbytes == path_of(tmp_path, name).stat().st_size
    rows = np.array([7, 3, 3, 99])
    np.testing.assert_array_equal(opened.take(rows, opened.keys[rows]), vectors[rows])


def test_named_by_its_bytes_readable_without_us_and_not_writable(tmp_path):
    keys, vectors = some(5)
    name, _ = shard.write(tmp_path, SPEC, keys, vectors)
    path = path_of(tmp_path, name)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == name
    assert path.stat().st_mode & 0o222 == 0
    with pa.memory_map(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
        assert batch.column("key").to_pylist() == keys
        assert batch.column("check").to_pylist() == [
            xxhash.xxh3_64_intdigest(bytes(name) + row.tobytes()) for name, row in zip(keys, vectors, strict=True)
        ]
        assert json.loads(batch.schema.metadata[b"cachestore.spec"]) == SPEC


def test_mapped_vectors_cannot_be_written_through(tmp_path):
    name, _ = shard.write(tmp_path, SPEC, *some(5))
    opened = shard.open_shard(tmp_path, name)
    with pytest.raises(ValueError, match="read-only"):
        opened.vectors[0, 0] = 1


def test_a_row_is_served_only_for_its_own_key(tmp_path):
    name, _ = shard.write(tmp_path, SPEC, *some(5))
    opened = shard.open_shard(tmp_path, name)
    with pytest.raises(DamageError, match="other keys"):
        opened.take(np.array([1]), opened.keys[[2]])
    with pytest.raises(DamageError, match="row 5"):
        opened.take(np.array([5]), opened.keys[[2]])


def test_a_flipped_bit_in_a_vector_is_found_and_other_rows_still_served(tmp_path):
    keys, vectors = some(20)
    name, _ = shard.write(tmp_path, SPEC, keys, vectors)
    path = path_of(tmp_path, name)
    data = bytearray(path.read_bytes())
    at = bytes(data).index(vectors[3].tobytes())
    data[at + 5] ^= 4
    path.chmod(0o644)
    path.write_bytes(data)
    opened = shard.open_shard(tmp_path, name)
    np.testing.assert_array_equal(opened.take(np.array([2, 4]), opened.keys[[2, 4]]), vectors[[2, 4]])
    with pytest.raises(DamageError, match="Row 3"):
        opened.take(np.array([2, 3]), opened.keys[[2, 3]])


@pytest.mark.parametrize("keep", [0, 1, 8, 200, 0.5, 0.99])
def test_a_torn_shard_is_damage_not_a_crash(tmp_path, keep):
    name, nbytes = shard.write(tmp_path, SPEC, *some(50))
    path = path_of(tmp_path, name)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[: int(keep if keep >= 1 else keep * nbytes)])
    with pytest.raises(DamageError, match=name):
        shard.open_shard(tmp_path, name)


def test_a_shard_that_is_gone_or_not_a_file_is_damage(tmp_path):
    with pytest.raises(DamageError, match="gone"):
        shard.open_shard(tmp_path, "ab" * 32)
    path_of(tmp_path, "cd" * 32).mkdir(parents=True)
    with pytest.raises(DamageError, match="regular file"):
        shard.open_shard(tmp_path, "cd" * 32)


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shard, "FORMAT", 2)
    name, _ = shard.write(tmp_path, SPEC, *some(5))
    monkeypatch.undo()
    with pytest.raises(StoreFormatError, match=r"format 2.*Upgrade"):
        shard.open_shard(tmp_path, name)


def test_wrong_dtype_or_count_never_reaches_the_disk(tmp_path):
    keys, vectors = some(5)
    with pytest.raises(ValueError, match="float16"):
        shard.write(tmp_path, SPEC, keys, vectors.astype(np.float32))
    with pytest.raises(ValueError, match="4 keys"):
        shard.write(tmp_path, SPEC, keys[:4], vectors)
    assert not list(tmp_path.rglob("*.arrow"))
