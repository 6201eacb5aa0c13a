"""Export: every format holds the vectors in dataset order, says what they are, and is written whole or not at all."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet
from safetensors import safe_open

from cachestore import export as exports
from cachestore import open_store
from cachestore.build import run
from cachestore.errors import ColumnNotFound, DamageError, DataError, ManifestNotFound, MissingVector, UsageError
from cachestore.export import FORMATS, export
from tests.store.counting import CountingEncoder

TEXTS = ["soft", "small", None, "soft", "loud"]
STAMPS = ["2024-01-02", "2024-01-03T10:00:00+02:00", "", "2024-01-03 10:00:00.5", "2024-02-01T00:00:00Z"]


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "reviews.csv"
    rows = [f"{at},{text or ''},{when}" for at, (text, when) in enumerate(zip(TEXTS, STAMPS, strict=True))]
    path.write_text("\n".join(["id,text,when", *rows]) + "\n")
    return path


@pytest.fixture
def built(store, data):
    return run(store, data, {"text": CountingEncoder()}).manifest


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(exports, "_BLOCK_ROWS", 2)


def expected(dtype="float32"):
    encoder = CountingEncoder()
    vectors = np.zeros((len(TEXTS), encoder.dim), np.float16)
    for row, text in enumerate(TEXTS):
        if text is not None:
            vectors[row] = encoder.encode([text.encode()])[0]
    return vectors.astype(dtype)


MASK = np.array([text is not None for text in TEXTS])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_npy_file_is_one_array_with_zeros_where_a_row_has_no_vector(store, built, tmp_path, dtype):
    done = export(store, "reviews", tmp_path / "out.npy", dtype=dtype)
    found = np.load(tmp_path / "out.npy", allow_pickle=False)
    np.testing.assert_array_equal(found, expected(dtype))
    assert found.dtype == dtype
    assert (done.rows, done.vectors, done.nbytes) == (5, {"text": 4}, (tmp_path / "out.npy").stat().st_size)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_safetensors_have_a_mask_and_say_what_they_are(store, built, tmp_path, dtype):
    export(store, built, tmp_path / "out.safetensors", dtype=dtype)
    with safe_open(tmp_path / "out.safetensors", "np") as file:
        assert set(file.keys()) == {"text", "text.mask"}
        np.testing.assert_array_equal(file.get_tensor("text"), expected(dtype))
        np.testing.assert_array_equal(file.get_tensor("text.mask"), MASK)
        metadata = file.metadata()
    assert metadata["cachestore.manifest"] == built.id
    (column,) = json.loads(metadata["cachestore.columns"]).values()
    assert column == {"fingerprint": built.columns[0].fingerprint.hex(), "dim": 8, "spec": built.columns[0].spec}


@pytest.mark.parametrize("name", ["out.parquet", "out.arrow"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_tables_hold_lists_and_null_where_a_row_has_no_vector(store, built, tmp_path, name, dtype):
    export(store, "reviews", tmp_path / name, dtype=dtype)
    found = read(tmp_path / name)
    kind = pa.float32() if dtype == "float32" else pa.float16()
    assert found.schema.field("text_vector").type.value_type == kind
    assert found.column("text_vector").is_valid().to_pylist() == MASK.tolist()
    rows = [row for row in found.column("text_vector").to_pylist() if row is not None]
    np.testing.assert_array_equal(np.array(rows, dtype), expected(dtype)[MASK])
    assert found.schema.metadata[b"cachestore.manifest"].decode() == built.id
    created = datetime.fromisoformat(store.log("reviews")[-1].created)
    assert found.column("event_timestamp").to_pylist() == [created] * 5
    assert found.schema.field("event_timestamp").type == pa.timestamp("us", "UTC")


def test_pandas_reads_the_parquet_file(store, built, tmp_path):
    export(store, "reviews", tmp_path / "out.parquet", carry=["id"])
    frame = pd.read_parquet(tmp_path / "out.parquet")
    assert list(frame.columns) == ["id", "text_vector", "event_timestamp"]
    assert frame["text_vector"][0].dtype == np.float32


def test_columns_of_the_source_stand_beside_their_rows(store, built, tmp_path):
    done = export(store, "reviews@1", tmp_path / "out.parquet", carry=["text", "id"], timestamp_column="when")
    found = read(tmp_path / "out.parquet").to_pydict()
    assert list(found) == ["text", "id", "text_vector", "event_timestamp"]
    assert found["text"] == TEXTS
    assert found["id"] == ["0", "1", "2", "3", "4"]
    assert found["event_timestamp"] == [
        datetime(2024, 1, 2, tzinfo=UTC),
        datetime(2024, 1, 3, 8, tzinfo=UTC),
        None,
        datetime(2024, 1, 3, 10, 0, 0, 500_000, tzinfo=UTC),
        datetime(2024, 2, 1, tzinfo=UTC),
    ]
    assert done.carried == ("text", "id")


def test_typed_columns_of_the_source_keep_their_types(store, tmp_path):
    stamps = pa.array([0, 1_000_000, None], pa.timestamp("ms"))
    source = pa.table(
        {
            "text": ["a", "b", "c"],
            "stars": [5, None, 3],
            "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
            "at": stamps,
        }
    )
    parquet.write_table(source, tmp_path / "typed.parquet")
    run(store, tmp_path / "typed.parquet", {"text": CountingEncoder()})
    export(store, "typed", tmp_path / "out.arrow", carry=["stars", "kind"], timestamp_column="at")
    found = read(tmp_path / "out.arrow")
    assert found.column("stars").to_pylist() == [5, None, 3]
    assert found.schema.field("stars").type == pa.int64()
    assert found.column("kind").to_pylist() == ["x", "y", "x"]
    assert found.column("event_timestamp").to_pylist()[1] == datetime.fromtimestamp(1000, UTC)


def test_cells_beside_that_are_not_utf8_are_null_and_counted(store, tmp_path):
    (tmp_path / "latin.csv").write_bytes(b"text,note\na,na\xefve\nb,fine\n")
    run(store, tmp_path / "latin.csv", {"text": CountingEncoder()})
    done = export(store, "latin", tmp_path / "out.parquet", carry=["note"])
    assert done.undecodable == 1
    assert read(tmp_path / "out.parquet").column("note").to_pylist() == [None, "fine"]


def test_several_columns_are_exported_or_chosen(store, tmp_path):
    (tmp_path / "two.csv").write_text("a,b\nx,y\nz,\n")
    run(store, tmp_path / "two.csv", {"a": CountingEncoder(), "b": CountingEncoder(dtype="float32", n=1)})
    done = export(store, "two", tmp_path / "out.safetensors")
    assert done.vectors == {"a": 2, "b": 1}
    with safe_open(tmp_path / "out.safetensors", "np") as file:
        assert set(file.keys()) == {"a", "a.mask", "b", "b.mask"}
        assert file.get_tensor("b.mask").tolist() == [True, False]
        assert file.get_tensor("b")[0].any()
    export(store, "two", tmp_path / "out.parquet")
    assert read(tmp_path / "out.parquet").column_names == ["a_vector", "b_vector", "event_timestamp"]
    with pytest.raises(UsageError, match="one column of vectors, and there are a, b"):
        export(store, "two", tmp_path / "out.npy")
    export(store, "two", tmp_path / "out.npy", columns=["b"])
    assert np.load(tmp_path / "out.npy").shape == (2, 8)


def test_an_older_version_is_exported_with_its_own_time_and_source(store, built, data, tmp_path):
    with data.open("a") as file:
        file.write("5,more,\n")
    run(store, data, {"text": CountingEncoder()})
    assert export(store, "reviews@1", tmp_path / "out.parquet").rows == 5
    assert export(store, "reviews", tmp_path / "new.parquet", carry=["id"]).rows == 6
    with pytest.raises(DataError, match=r"has changed since reviews@1 was built from it"):
        export(store, "reviews@1", tmp_path / "old.parquet", carry=["id"])
    assert not (tmp_path / "old.parquet").exists()


def test_a_table_in_memory_is_exported_by_its_id_without_a_time(store, tmp_path):
    made = run(store, {"text": ["a", "b"]}, {"text": CountingEncoder()})
    export(store, made.manifest.id, tmp_path / "out.parquet")
    assert read(tmp_path / "out.parquet").column_names == ["text_vector"]
    with pytest.raises(UsageError, match="No name leads to manifest"):
        export(store, made.manifest.id, tmp_path / "out.parquet", carry=["text"])
    run(store, {"text": ["a", "b"]}, {"text": CountingEncoder()}, name="memory")
    with pytest.raises(DataError, match=r"memory@1 was built from the dict, not from a file"):
        export(store, "memory", tmp_path / "out.parquet", carry=["text"])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("reviews", "out.csv"), UsageError, r"\.csv is no format to export.*\.parquet, \.arrow, \.npy, \.safetensors"),
        (("reviews", "out"), UsageError, "a name without suffix"),
        (("reviews", "store/out.npy"), UsageError, "lies in the store"),
        (("reviews", "folder.npy"), UsageError, "is a directory"),
        (("reviews", "no/folder/out.npy"), UsageError, "cannot be written"),
        (("nobody", "out.npy"), ManifestNotFound, "nobody"),
        (("reviews@9", "out.npy"), ManifestNotFound, "version 1 only"),
    ],
)
def test_what_cannot_be_exported_is_refused(store, built, tmp_path, arguments, error, words):
    (tmp_path / "folder.npy").mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=words):
        export(store, arguments[0], tmp_path / arguments[1])
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "settings", "error", "words"),
    [
        ("out.npy", {"carry": ["id"]}, UsageError, "holds vectors only"),
        ("out.parquet", {"carry": ["idd"]}, ColumnNotFound, "did you mean 'id'"),
        ("out.parquet", {"columns": ["txet"]}, UsageError, "did you mean 'text'"),
        ("out.parquet", {"dtype": "float64"}, UsageError, "float32 or float16"),
        ("out.parquet", {"timestamp_column": "text"}, DataError, r"Data row 0 .*'soft', which is no time"),
        ("reviews.arrow", {"carry": ["event_timestamp"]}, UsageError, "stand twice"),
        ("reviews.parquet", {}, UsageError, "is the file that the vectors were built from"),
    ],
)
def test_what_does_not_go_together_is_refused(store, built, tmp_path, name, settings, error, words):
    source = "reviews"
    if name.startswith("reviews"):
        table = pa.table({"text": ["a"], "event_timestamp": pa.array([1], pa.timestamp("us"))})
        parquet.write_table(table, tmp_path / "reviews.parquet")
        run(store, tmp_path / "reviews.parquet", {"text": CountingEncoder()}, name="typed")
        source = "typed"
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(error, match=words):
        export(store, source, tmp_path / name, **settings)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_failed_export_leaves_the_file_that_was_there(store, built, tmp_path, suffix):
    place = tmp_path / f"out{suffix}"
    place.write_bytes(b"before")
    (entry,) = store.index.shards().values()
    store.index.drop([entry.number])
    with pytest.raises((MissingVector, DamageError)):
        export(store, "reviews", place)
    assert place.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


def test_no_space_is_told_in_a_sentence(store, built, tmp_path, monkeypatch):
    from cachestore import outside

    monkeypatch.setattr(outside.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UsageError, match="No space left on device"):
        export(store, "reviews", tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_a_number_beyond_float16_is_refused(store, tmp_path):
    class Large(CountingEncoder):
        def encode(self, payloads):
            return super().encode(payloads) * 1e6

    run(store, {"text": ["a"]}, {"text": Large(dtype="float32")}, name="large")
    with pytest.raises(DataError, match=r"data row 0 .* has a number beyond float16. Export it with --dtype float32"):
        export(store, "large", tmp_path / "out.npy", dtype="float16")
    export(store, "large", tmp_path / "out.npy")


def read(path):
    if path.suffix == ".parquet":
        return parquet.read_table(path)
    with path.open("rb") as file, pa.ipc.open_stream(file) as stream:
        return stream.read_all()
