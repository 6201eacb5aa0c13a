"""Import: vectors from elsewhere are checked whole, stored as their texts' own, and found by builds under the same spec."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from cachestore import imports, locks, open_store, payload_rows
from cachestore.build import run
from cachestore.errors import ColumnNotFound, ConfigError, DataError, EncoderError, StoreLocked, UsageError
from cachestore.imports import import_vectors
from cachestore.keys import fingerprint
from cachestore.manifest import MISSING, PRESENT, SKIPPED
from cachestore.plan import plan

SPEC = {"model": "api-1", "dim": 4}
TEXTS = ["a", "b", None, "a", "", "c"]
IMPORTED = {"type": "imported", "spec": SPEC}


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def vectors():
    found = np.random.default_rng(0).normal(size=(len(TEXTS), 4)).astype(np.float32)
    found[3] = found[0]
    return found


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(imports, "_BLOCK_BYTES", 64)
    monkeypatch.setattr(payload_rows, "_PAIRS_BYTES", 16)


def lists(vectors, kind=None):
    cells = [None if vector is None else list(map(float, vector)) for vector in vectors]
    return pa.array(cells, kind or pa.list_(pa.float32()))


def written(path, texts, vectors):
    parquet.write_table(pa.table({"text": texts, "vector": vectors}), path)
    return path


def holds(store, name, vectors):
    found, reasons = store.column(name, "text")
    present = [row for row, text in enumerate(TEXTS) if text is not None]
    np.testing.assert_array_equal(found[present], vectors[present].astype(np.float16))
    assert reasons.tolist() == [MISSING if text is None else PRESENT for text in TEXTS]


KINDS = {
    "list": pa.list_(pa.float32()),
    "large list": pa.large_list(pa.float64()),
    "fixed size": pa.list_(pa.float32(), 4),
    "half": pa.list_(pa.float16()),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", imports.TABLES)
def test_a_table_of_texts_and_vectors_is_imported(store, tmp_path, vectors, suffix, kind):
    path = tmp_path / f"v{suffix}"
    table = pa.table({"text": TEXTS, "vector": lists(vectors, KINDS[kind])})
    match suffix:
        case ".parquet":
            parquet.write_table(table, path)
        case ".feather":
            feather.write_feather(table, str(path))
        case _:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table, max_chunksize=4)
    done = import_vectors(store, path, SPEC, name="api")
    counts = done.counts
    assert (counts.rows, counts.encoded, counts.hits, counts.duplicates, counts.missing) == (6, 4, 0, 1, 1)
    holds(store, "api", vectors)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_an_array_beside_the_file_of_its_texts_is_imported(store, tmp_path, vectors, dtype):
    np.save(tmp_path / "v.npy", vectors.astype(dtype))
    (tmp_path / "texts.csv").write_text('id,text\n0,a\n1,b\n2,\n3,a\n4,""\n5,c\n')
    done = import_vectors(store, tmp_path / "v.npy", SPEC, data=tmp_path / "texts.csv")
    assert done.name == "texts"
    holds(store, "texts", vectors)


def test_the_same_again_is_recognised_and_adds_no_version(store, tmp_path, vectors):
    path = written(tmp_path / "v.parquet", TEXTS, lists(vectors))
    first = import_vectors(store, path, SPEC, name="api")
    again = import_vectors(store, path, SPEC, name="api")
    assert (again.recognised, again.counts.encoded, again.bytes_written) == (True, 0, 0)
    assert again.manifest == first.manifest
    assert len(store.log("api")) == 1


def test_more_rows_later_store_only_the_new_ones(store, tmp_path, vectors):
    import_vectors(store, written(tmp_path / "v.parquet", TEXTS, lists(vectors)), SPEC, name="api")
    more = written(tmp_path / "v.parquet", [*TEXTS, "d"], lists([*vectors, [1, 2, 3, 4]]))
    done = import_vectors(store, more, SPEC, name="api")
    assert (done.counts.encoded, done.counts.hits) == (1, 5)
    assert store.vectors("api", "text")[0][6].tolist() == [1, 2, 3, 4]


def test_a_float32_spec_keeps_every_digit(store, tmp_path, vectors):
    import_vectors(
        store, written(tmp_path / "v.parquet", TEXTS, lists(vectors)), {**SPEC, "dtype": "float32"}, name="v"
    )
    np.testing.assert_array_equal(store.vectors("v", "text")[0][1], vectors[1])


def test_a_build_under_the_spec_finds_what_was_imported_and_encodes_nothing(store, tmp_path, vectors):
    import_vectors(store, written(tmp_path / "v.parquet", TEXTS, lists(vectors)), SPEC)
    done = run(store, {"text": ["c", "a", "c"]}, {"text": IMPORTED}, name="other")
    assert (done.counts.hits, done.counts.encoded) == (3, 0)
    np.testing.assert_array_equal(store.embed(["b"], IMPORTED)[0], vectors[1].astype(np.float16))


def test_a_text_without_an_imported_vector_is_named(store, tmp_path, vectors):
    import_vectors(store, written(tmp_path / "v.parquet", TEXTS, lists(vectors)), SPEC)
    data = {"text": ["a", "unknown", "also unknown", "unknown"]}
    for use in (run, plan):
        with pytest.raises(EncoderError, match=r"2 texts have no imported vector .*\(api-1\); the first is 'unknown'"):
            use(store, data, {"text": IMPORTED})


def test_another_declaration_is_another_encoder(store, tmp_path, vectors):
    path = written(tmp_path / "v.parquet", TEXTS, lists(vectors))
    import_vectors(store, path, SPEC)
    done = import_vectors(store, written(tmp_path / "w.parquet", TEXTS, lists(-vectors)), {**SPEC, "model": "api-2"})
    assert done.counts.encoded == 4
    assert len(store.index.shards()) == 2


FAULTS = {
    "another length": ([[1, 2, 3, 4], [1, 2, 3]], r"data row 1 .* has 3 numbers; the spec says dim: 4"),
    "no vector": ([[1, 2, 3, 4], None], r"data row 1 .* has a text and no vector"),
    "a null": ([[1, 2, 3, 4], [1, None, 3, 4]], r"data row 1 .* holds a null among its numbers"),
    "NaN": ([[1, 2, 3, 4], [1, 2, float("nan"), 4]], r"data row 1 .* holds NaN or infinity"),
    "infinity": ([[1, 2, 3, 4], [1, 2, float("inf"), 4]], r"data row 1 .* holds NaN or infinity"),
    "zeros": ([[1, 2, 3, 4], [0, 0, 0, 0]], r"data row 1 .* is zero, as of a request that failed"),
    "below float16": ([[1, 2, 3, 4], [0, 1e-9, 0, -1e-9]], r"data row 1 .* is zero in float16; set dtype: float32"),
    "below everything": ([[1, 2, 3, 4], [0, 1e-300, 0, 0]], r"data row 1 .* is zero in float16; set dtype: float32"),
    "hardly in float16": ([[1, 2, 3, 4], [1e-6, 2e-6, 1.5e-7, 0]], r"data row 1 .* loses \d% of its length in float16"),
    "beyond float16": ([[1, 2, 3, 4], [1, 2, 70000, 4]], r"data row 1 .* beyond float16; set dtype: float32"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_vector_is_named_and_nothing_is_imported(store, tmp_path, fault):
    cells, words = FAULTS[fault]
    path = written(tmp_path / "v.parquet", ["x", "y"], pa.array(cells, pa.list_(pa.float64())))
    with pytest.raises(DataError, match=words):
        import_vectors(store, path, SPEC)
    assert untouched(store)


def test_small_numbers_beside_larger_ones_may_vanish_and_float32_keeps_all(store, tmp_path):
    cells = pa.array([[1e-9, 1e-3, 0, 1], [1e-30, 0, 0, 0]], pa.list_(pa.float64()))
    rounded = import_vectors(store, written(tmp_path / "v.parquet", ["x"], cells[:1]), SPEC)
    np.testing.assert_allclose(store.vectors(rounded.manifest, "text")[0], [[0, 1e-3, 0, 1]], rtol=5e-4)
    path = written(tmp_path / "w.parquet", ["x", "y"], cells)
    whole = import_vectors(store, path, {**SPEC, "dtype": "float32"})
    np.testing.assert_allclose(store.vectors(whole.manifest, "text")[0], cells.to_pylist(), rtol=1e-6)
    smaller = pa.array([[1e-60, 0, 0, 0]], pa.list_(pa.float64()))
    with pytest.raises(DataError, match=r"is zero in float32; scale all vectors by a number"):
        import_vectors(store, written(tmp_path / "x.parquet", ["z"], smaller), {**SPEC, "dtype": "float32"})


def test_a_text_without_words_may_have_a_vector_of_zeros(store, tmp_path):
    path = written(tmp_path / "v.parquet", ["", " ?!", "x"], lists([[0] * 4, [0] * 4, [1] * 4]))
    done = import_vectors(store, path, SPEC)
    assert store.vectors(done.manifest, "text")[0].tolist() == [[0] * 4, [0] * 4, [1] * 4]


def test_an_array_that_lies_column_by_column_is_imported_like_any_other(store, tmp_path, monkeypatch, vectors):
    monkeypatch.setattr(payload_rows, "_TURNED_BYTES", 40)  # two rows at a time, and a rest
    (tmp_path / "t.csv").write_text("text\n" + "".join(f"text {row}\n" for row in range(5)))
    np.save(tmp_path / "v.npy", np.asfortranarray(vectors[:5]))
    done = import_vectors(store, tmp_path / "v.npy", SPEC, data=tmp_path / "t.csv")
    np.testing.assert_array_equal(store.vectors(done.manifest, "text")[0], vectors[:5].astype(np.float16))
    with (tmp_path / "v.npy").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 4)
    with pytest.raises(DataError, match="cut short"):
        import_vectors(store, tmp_path / "v.npy", SPEC, data=tmp_path / "t.csv")


def test_a_faulty_vector_of_a_missing_text_is_no_fault(store, tmp_path):
    cells = pa.array([[1, 2, 3, 4], [1, float("nan")], None], pa.list_(pa.float64()))
    done = import_vectors(store, written(tmp_path / "v.parquet", ["x", None, None], cells), SPEC)
    assert (done.counts.encoded, done.counts.missing) == (1, 2)


def test_one_text_with_two_vectors_names_both_rows(store, tmp_path, vectors):
    vectors[3] += 1
    with pytest.raises(
        DataError, match=r"data rows 0 and 3 \(counted from 0\) hold the same text and different vectors"
    ):
        import_vectors(store, written(tmp_path / "v.parquet", TEXTS, lists(vectors)), SPEC)
    assert untouched(store)


def test_a_stored_vector_is_kept_and_a_different_one_refused(store, tmp_path, vectors):
    import_vectors(store, written(tmp_path / "v.parquet", TEXTS, lists(vectors)), SPEC, name="api")
    changed = vectors.copy()
    changed[1] += 1
    with pytest.raises(DataError, match=r"the text of data row 1 .* is stored under this spec with another vector"):
        import_vectors(store, written(tmp_path / "w.parquet", TEXTS, lists(changed)), SPEC, name="new")
    holds(store, "api", vectors)
    assert [name.name for name in store.names()] == ["api"]


def test_a_difference_within_the_rounding_of_the_dtype_is_none(store, tmp_path, vectors):
    import_vectors(store, written(tmp_path / "v.parquet", TEXTS, lists(vectors)), SPEC)
    close = np.nextafter(vectors.astype(np.float16), np.float16(10)).astype(np.float32)
    import_vectors(store, written(tmp_path / "w.parquet", TEXTS, lists(close)), SPEC)
    twice = np.nextafter(close.astype(np.float16), np.float16(10)).astype(np.float32)
    with pytest.raises(DataError, match="another vector"):
        import_vectors(store, written(tmp_path / "u.parquet", TEXTS, lists(twice)), SPEC)


def test_a_text_that_is_not_utf8_is_skipped_as_in_a_build(store, tmp_path, vectors):
    (tmp_path / "t.csv").write_bytes(b"text\na\nna\xefve\n")
    np.save(tmp_path / "v.npy", vectors[:2])
    done = import_vectors(store, tmp_path / "v.npy", SPEC, data=tmp_path / "t.csv")
    assert (done.counts.encoded, done.counts.skipped) == (1, 1)
    assert store.reasons("t", "text").tolist() == [PRESENT, SKIPPED]


@pytest.mark.parametrize("rows", [5, 7])
def test_an_array_of_another_length_is_refused(store, tmp_path, rows):
    np.save(tmp_path / "v.npy", np.ones((rows, 4), np.float32))
    (tmp_path / "t.csv").write_text("text\n" + "".join(f"text {row}\n" for row in range(6)))
    with pytest.raises(DataError, match=rf"v.npy has {rows} rows and .*t.csv has 6. Give one vector per text"):
        import_vectors(store, tmp_path / "v.npy", SPEC, data=tmp_path / "t.csv")
    assert untouched(store)


ARRAYS = {
    "another dim": (np.ones((1, 5)), "has vectors of 5 numbers, and the spec says dim: 4"),
    "one dimension": (np.ones(4), "has the shape"),
    "whole numbers": (np.ones((1, 4), int), "holds int64"),
    "objects": (np.array([[{}]]), "holds object"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_an_array_that_holds_no_vectors_is_refused(store, tmp_path, case):
    array, words = ARRAYS[case]
    np.save(tmp_path / "v.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=words):
        import_vectors(store, tmp_path / "v.npy", SPEC, data={"text": ["a"]})
    assert untouched(store)


def test_a_torn_or_foreign_array_is_refused(store, tmp_path):
    np.save(tmp_path / "v.npy", np.ones((2, 4)))
    whole = (tmp_path / "v.npy").read_bytes()
    for data, words in (
        (whole[:-1], "is cut short"),
        (b"PK\x03\x04 and more", "is no .npy file"),
        (b"", "is no .npy file"),
    ):
        (tmp_path / "v.npy").write_bytes(data)
        with pytest.raises(DataError, match=words):
            import_vectors(store, tmp_path / "v.npy", SPEC, data={"text": ["a", "b"]})


def test_what_does_not_go_together_is_refused(store, tmp_path, vectors):
    path = written(tmp_path / "v.parquet", TEXTS, lists(vectors))
    np.save(tmp_path / "v.npy", vectors)
    for arguments, error, words in (
        ({"vectors": tmp_path / "v.npy"}, UsageError, "--data"),
        ({"vectors": path, "data": path}, UsageError, "leave --data out"),
        ({"vectors": tmp_path / "v.csv"}, UsageError, r"\.csv is no format to import"),
        ({"vectors": path, "vector_column": "vectr"}, ColumnNotFound, "did you mean 'vector'"),
        ({"vectors": path, "vector_column": "text"}, DataError, "Vectors are lists of float"),
        ({"vectors": path, "spec": {"model": "x"}}, ConfigError, "dim"),
        ({"vectors": path, "spec": tmp_path / "none.yaml"}, UsageError, "none.yaml"),
        ({"vectors": tmp_path / "no.parquet"}, DataError, "does not exist"),
        ({"vectors": tmp_path / "no.npy", "data": path}, DataError, "cannot be opened"),
    ):
        with pytest.raises(error, match=words):
            import_vectors(store, **{"spec": SPEC, **arguments})
    assert untouched(store)


def test_an_array_that_changes_while_it_is_read_is_noticed(store, tmp_path, monkeypatch, vectors):
    np.save(tmp_path / "v.npy", vectors)
    sort = payload_rows.PayloadRows.sort

    def touched(self):
        sort(self)
        np.save(tmp_path / "v.npy", vectors[:2])

    monkeypatch.setattr(payload_rows.PayloadRows, "sort", touched)
    with pytest.raises(DataError, match=r"v.npy changed while it was read"):
        import_vectors(store, tmp_path / "v.npy", SPEC, data={"text": TEXTS})


def test_imports_go_one_at_a_time(store, tmp_path, monkeypatch, vectors):
    path = written(tmp_path / "v.parquet", TEXTS, lists(vectors))
    monkeypatch.setattr(imports, "LOCK_SECONDS", 0)
    with locks.held(store.root, "imports", exclusive=True, timeout=1), pytest.raises(StoreLocked, match="imports"):
        import_vectors(store, path, SPEC)
    assert untouched(store)


def test_the_fingerprint_is_of_the_declaration_alone(store, tmp_path, vectors):
    done = import_vectors(store, written(tmp_path / "v.parquet", TEXTS, lists(vectors)), SPEC)
    (column,) = done.manifest.columns
    assert column.spec == {"kind": "imported", "declared": {"model": "api-1"}, "dim": 4, "dtype": "float16"}
    assert column.fingerprint == fingerprint(column.spec)


def untouched(store):
    folders = [store.root / "shards", store.root / "manifests", store.root / "names"]
    return not any(path.is_file() for folder in folders for path in folder.rglob("*"))
