"""Build: encodes each missing payload once, lists every row, and resumes, appends and repeats without work done twice."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import cachestore
from cachestore import naming, open_store
from cachestore.build import run
from cachestore.dataset import stem
from cachestore.errors import ColumnNotFound, DamageError, DataError, EncoderError, UsageError
from cachestore.fill import Limits
from cachestore.index import Index
from cachestore.manifest import MISSING, PRESENT, SKIPPED
from cachestore.plan import plan
from cachestore.store import Store
from tests.store.counting import CountingEncoder

build_module = sys.modules["cachestore.build"]  # the name leads to the function


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "store") as opened:
        yield opened


def table(path, texts):
    path.write_text("id,text\n" + "".join(f"{row},{text}\n" for row, text in enumerate(texts)))
    return path


def sums(build):
    counts = build.counts
    return counts.encoded + counts.hits + counts.duplicates + counts.missing + counts.skipped


def test_counts_and_vectors(store, tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b'text\na\nb\na\n""\n  \nc\xff\nb\n')
    encoder = CountingEncoder()
    made = run(store, path, {"text": encoder})
    counts = made.counts
    assert (counts.rows, counts.encoded, counts.hits, counts.duplicates, counts.missing, counts.skipped) == (
        7,
        4,
        0,
        2,
        0,
        1,
    )
    assert encoder.seen == [b"a", b"b", b"", b"  "]
    assert [(cell.row, cell.column) for cell in made.skipped_cells] == [(5, "text")]
    vectors, mask = store.vectors(made.manifest, "text")
    assert mask.tolist() == [True] * 5 + [False, True]
    expected = CountingEncoder().encode([b"a", b"b", b"a", b"", b"  ", b"", b"b"]).astype(np.float16)
    expected[5] = 0
    np.testing.assert_array_equal(vectors, expected)
    assert store.reasons(made.manifest, "text").tolist() == [PRESENT] * 5 + [SKIPPED, PRESENT]


def test_missing_cells_have_no_vector(store):
    manifest = cachestore.build(store, {"text": ["a", None, ""]}, {"text": CountingEncoder()}, name="t")
    assert store.reasons(manifest, "text").tolist() == [PRESENT, MISSING, PRESENT]
    assert store.manifest("t") == manifest


def test_a_second_build_encodes_nothing_and_adds_no_version(store, tmp_path):
    path = table(tmp_path / "t.csv", ["a", "b", "a"])
    first = run(store, path, {"text": CountingEncoder()})
    encoder = CountingEncoder()
    again = run(store, path, {"text": encoder})
    assert encoder.seen == []
    assert again.recognised
    assert again.manifest == first.manifest
    assert (again.counts.encoded, again.counts.hits, sums(again)) == (0, 3, 3)
    assert len(store.log("t")) == 1


def test_a_recognised_file_still_reports_what_was_skipped(store, tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"text\na\n\xff\n")
    first = run(store, path, {"text": CountingEncoder()})
    again = run(store, path, {"text": CountingEncoder()})
    assert again.recognised
    assert again.skipped_cells == first.skipped_cells != ()
    assert again.counts.skipped == 1


def test_an_edited_file_is_read_again(store, tmp_path):
    path = table(tmp_path / "t.csv", ["a", "b"])
    run(store, path, {"text": CountingEncoder()})
    encoder = CountingEncoder()
    changed = run(store, table(path, ["a", "x"]), {"text": encoder})
    assert not changed.recognised
    assert encoder.seen == [b"x"]
    assert [version.version for version in store.log("t")] == [1, 2]


def test_appended_rows_encode_only_new_distinct_texts(store, tmp_path):
    texts = [f"text {row % 50}" for row in range(120)]
    run(store, table(tmp_path / "t.csv", texts), {"text": CountingEncoder()})
    encoder = CountingEncoder()
    grown = run(store, table(tmp_path / "t.csv", [*texts, "text 3", "new", "new", "newer"]), {"text": encoder})
    assert encoder.seen == [b"new", b"newer"]
    assert (grown.counts.encoded, grown.counts.hits, grown.counts.duplicates) == (2, 121, 1)


def test_the_same_text_in_two_columns_and_files_is_encoded_once(store, tmp_path):
    encoder = CountingEncoder()
    run(store, {"title": ["a", "b"], "body": ["b", "c"]}, {"title": encoder, "body": encoder})
    run(store, table(tmp_path / "t.csv", ["c", "a"]), {"text": encoder})
    assert sorted(encoder.seen) == [b"a", b"b", b"c"]


def test_id_depends_on_rows_and_encoders_not_on_the_way(store, tmp_path):
    texts = [f"text {row}" for row in range(300)]
    ids = {
        run(store, table(tmp_path / "t.csv", texts), {"text": CountingEncoder()}).manifest.id,
        run(store, pd.DataFrame({"text": texts}), {"text": CountingEncoder()}).manifest.id,
        run(store, pa.table({"text": texts}), {"text": CountingEncoder()}).manifest.id,
    }
    with open_store(tmp_path / "other") as other:
        half = table(tmp_path / "half.csv", texts[150:])
        run(other, half, {"text": CountingEncoder()}, limits=Limits(shard_rows=7, window_rows=3))
        ids.add(run(other, pa.table({"text": texts}), {"text": CountingEncoder()}).manifest.id)
    assert len(ids) == 1
    assert run(store, {"text": texts[::-1]}, {"text": CountingEncoder()}).manifest.id not in ids
    assert run(store, {"text": texts}, {"text": CountingEncoder(pooling="max")}).manifest.id not in ids


def test_chunks_are_shared_by_versions_that_grow(store, monkeypatch):
    monkeypatch.setattr(build_module, "CHUNK_ROWS", 10)
    texts = [f"text {row}" for row in range(25)]
    first = run(store, {"text": texts}, {"text": CountingEncoder()}).manifest
    second = run(store, {"text": [*texts, "more"]}, {"text": CountingEncoder()}).manifest
    assert [rows for _, rows in first.chunks] == [10, 10, 5]
    assert first.chunks[:2] == second.chunks[:2]
    assert first.chunks[2] != second.chunks[2]
    vectors, _ = store.vectors(second, "text")
    np.testing.assert_array_equal(vectors[25], CountingEncoder().encode([b"more"])[0].astype(np.float16))


def test_a_refused_vector_skips_its_rows_and_no_others(store, monkeypatch):
    class Faulty(CountingEncoder):
        def encode(self, payloads):
            vectors = super().encode(payloads).copy()
            vectors[[payload == b"bad" for payload in payloads]] = np.nan
            return vectors

    monkeypatch.setattr(build_module, "CHUNK_ROWS", 4)
    encoder = Faulty()
    made = run(store, {"text": ["a", "bad", "b", "bad", "c", "bad"]}, {"text": encoder}, limits=Limits(window_rows=2))
    assert encoder.seen.count(b"bad") == 1
    assert store.reasons(made.manifest, "text").tolist() == [PRESENT, SKIPPED, PRESENT, SKIPPED, PRESENT, SKIPPED]
    assert [(cell.row, "NaN" in cell.why) for cell in made.skipped_cells] == [(1, True), (3, True), (5, True)]
    assert (made.counts.encoded, made.counts.skipped, made.counts.duplicates) == (3, 3, 0)


def test_an_encoder_that_fails_keeps_what_was_stored(store):
    class Failing(CountingEncoder):
        def encode(self, payloads):
            if b"row 25" in payloads:
                raise EncoderError("the service is down")
            return super().encode(payloads)

    texts = [f"row {row}" for row in range(40)]
    with pytest.raises(EncoderError, match="service"):
        run(store, {"text": texts}, {"text": Failing()}, limits=Limits(shard_rows=10, window_rows=5))
    encoder = CountingEncoder()
    run(store, {"text": texts}, {"text": encoder}, limits=Limits(shard_rows=10, window_rows=5))
    assert encoder.seen[0] == b"row 25"  # five rows were encoded and not yet a full shard


def test_ctrl_c_keeps_what_was_encoded(store):
    class Interrupted(CountingEncoder):
        def encode(self, payloads):
            if self.seen:
                raise KeyboardInterrupt
            return super().encode(payloads)

    texts = [f"row {row}" for row in range(40)]
    with pytest.raises(KeyboardInterrupt):
        run(store, {"text": texts}, {"text": Interrupted()}, limits=Limits(window_rows=5))
    encoder = CountingEncoder()
    assert run(store, {"text": texts}, {"text": encoder}).counts.hits == 5
    assert encoder.seen[0] == b"row 5"


def test_a_file_that_changes_while_it_is_read_is_no_version(store, tmp_path):
    path = table(tmp_path / "t.csv", ["a", "b"])

    class Editing(CountingEncoder):
        def encode(self, payloads):
            with path.open("a") as file:
                file.write("9,z\n")
            return super().encode(payloads)

    with pytest.raises(DataError, match="changed while it was read"):
        run(store, path, {"text": Editing()})
    assert store.names() == []


def test_bad_requests_name_the_fault(store, tmp_path):
    path = table(tmp_path / "t.csv", ["a"])
    with pytest.raises(ColumnNotFound, match=r"did you mean 'text'"):
        run(store, path, {"texts": CountingEncoder()})
    with pytest.raises(UsageError, match="at least one column"):
        run(store, path, {})
    with pytest.raises(UsageError, match="cannot be a name"):
        run(store, path, {"text": CountingEncoder()}, name="a/b")


def test_a_plan_counts_what_a_build_then_does_and_writes_nothing(store, tmp_path):
    texts = [f"text {row % 70}" for row in range(100)]
    run(store, {"text": texts[:20]}, {"text": CountingEncoder()})
    path = table(tmp_path / "t.csv", [*texts, ""])
    before = sorted((file, file.stat().st_mtime_ns) for file in store.root.rglob("*"))
    planned = plan(store, path, {"text": CountingEncoder()})
    assert sorted((file, file.stat().st_mtime_ns) for file in store.root.rglob("*")) == before
    assert planned.counts == run(store, path, {"text": CountingEncoder()}).counts
    assert planned.seconds is not None
    assert planned.nbytes == 50 * (8 * 2 + 40)
    assert plan(store, path, {"text": CountingEncoder()}).seconds is None
    assert plan(None, path, {"text": CountingEncoder()}).counts.encoded == 70


def test_progress_ends_at_the_total(store):
    seen = []
    run(
        store,
        pa.table({"text": [f"text {row}" for row in range(100)]}),
        {"text": CountingEncoder()},
        progress=seen.append,
    )
    assert (seen[-1].rows, seen[-1].total, seen[-1].encoded) == (100, 100, 100)
    assert [step.encoded for step in seen] == sorted(step.encoded for step in seen)


def test_names_lists_what_ls_shows(store, tmp_path):
    run(store, table(tmp_path / "my data!.csv", ["a", "b", "a"]), {"text": CountingEncoder()})
    (name,) = store.names()
    assert (name.name, len(name.versions), name.manifest.rows, name.nbytes) == ("my-data", 1, 3, 3 * 8 * 2)
    assert name.versions[0].provenance["source"]["label"].endswith("my data!.csv")


def test_files_of_one_stem_have_names_of_their_own(store, tmp_path):
    for folder, texts in (("one", ["a"]), ("two", ["b"]), ("deep/two", ["c"]), ("one", ["a", "d"])):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        run(store, table(tmp_path / folder / "train.csv", texts), {"text": CountingEncoder()})
    versions = {name.name: len(name.versions) for name in store.names()}
    assert versions == {"train": 2, "two-train": 1, "two-train-2": 1}


def test_a_name_made_of_a_path_can_be_one(store, tmp_path):
    for text in ("0" * 64, "--", "-x", "ä", "a" * 200):
        name = run(store, table(tmp_path / f"{text}.csv", [text]), {"text": CountingEncoder()}).name
        assert store.log(name)[-1].version == 1


def test_an_unnamed_build_leads_nowhere(store, tmp_path):
    made = run(store, table(tmp_path / "t.csv", ["a"]), {"text": CountingEncoder()}, named=False)
    assert (made.name, store.names()) == (None, [])
    assert store.manifest(made.manifest.id) == made.manifest


def test_the_order_in_which_columns_are_given_is_no_difference(store):
    data = {"a": ["x"], "b": ["y"]}
    one = run(store, data, {"a": CountingEncoder(), "b": CountingEncoder()})
    other = run(store, data, {"b": CountingEncoder(), "a": CountingEncoder()})
    assert one.manifest == other.manifest


def test_a_file_replaced_before_it_is_parsed_is_never_recognised_as_the_other(store, tmp_path, monkeypatch):
    path = table(tmp_path / "t.csv", ["a", "b"])
    real = Store.writing

    @contextlib.contextmanager
    def slow(self):
        table(path, ["b", "a"])
        with real(self):
            yield

    monkeypatch.setattr(Store, "writing", slow)
    with pytest.raises(DataError, match="changed while it was read"):
        run(store, path, {"text": CountingEncoder()})
    monkeypatch.undo()
    made = run(store, table(path, ["a", "b"]), {"text": CountingEncoder()})
    vectors, _ = store.vectors(made.manifest, "text")
    np.testing.assert_array_equal(vectors, CountingEncoder().encode([b"a", b"b"]).astype(np.float16))


def flip(path):
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("kind", "pattern", "harm", "advice"),
    [
        ("chunk gone", "chunks/*/*.arrow", lambda path: path.unlink(), lambda path: None),
        ("chunk damaged", "chunks/*/*.arrow", flip, lambda path: path.unlink()),
        ("manifest gone", "manifests/*/*.json", lambda path: path.unlink(), lambda path: None),
        ("manifest damaged", "manifests/*/*.json", flip, lambda path: None),
        ("shard empty", "shards/*/*.arrow", lambda path: os.truncate(path, 0), lambda path: path.unlink()),
        ("shard cut short", "shards/*/*.arrow", lambda path: os.truncate(path, 500), lambda path: path.unlink()),
        ("shard gone", "shards/*/*.arrow", lambda path: path.unlink(), lambda path: None),
        ("shard damaged", "shards/*/*.arrow", flip, lambda path: path.unlink()),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_following_what_an_error_says_mends_the_damage(tmp_path, kind, pattern, harm, advice):
    path = table(tmp_path / "t.csv", [f"text {row}" for row in range(20)])
    with open_store(tmp_path / "store") as store:
        made = run(store, path, {"text": CountingEncoder()})
        expected, _ = store.vectors(made.manifest, "text")
        (victim,) = store.root.glob(pattern)
    harm(victim)
    with open_store(tmp_path / "store") as store:
        if kind != "manifest gone":
            with pytest.raises(DamageError):
                store.vectors(store.manifest("t"), "text")
    if kind in ("shard empty", "shard cut short"):
        with open_store(tmp_path / "store") as store, pytest.raises(DamageError, match="cachestore repair"):
            run(store, path, {"text": CountingEncoder()})
    advice(victim)
    with open_store(tmp_path / "store") as store:
        run(store, path, {"text": CountingEncoder()})
        vectors, mask = store.vectors(store.manifest("t"), "text")
    assert mask.all()
    np.testing.assert_array_equal(vectors, expected)


def _build(root, path, seed):
    with open_store(root) as store:
        run(store, path, {"text": CountingEncoder()}, limits=Limits(shard_rows=11 + seed, window_rows=5))


def test_several_processes_build_into_one_store(tmp_path):
    paths = [
        table(tmp_path / f"t{number}.csv", [f"text {row}" for row in range(number * 40, number * 40 + 200)])
        for number in range(3)
    ]
    spawn = multiprocessing.get_context("spawn")
    children = [spawn.Process(target=_build, args=(tmp_path / "store", path, seed)) for seed, path in enumerate(paths)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    with open_store(tmp_path / "store") as store:
        for number, path in enumerate(paths):
            encoder = CountingEncoder()
            made = run(store, path, {"text": encoder}, named=False)
            assert encoder.seen == []
            vectors, _ = store.vectors(made.manifest, "text")
            expected = [f"text {row}".encode() for row in range(number * 40, number * 40 + 200)]
            np.testing.assert_array_equal(vectors, CountingEncoder().encode(expected).astype(np.float16))


def test_nothing_is_named_before_it_is_durable(tmp_path, monkeypatch):
    """File synced, renamed, its folder and every new folder above synced; shard before index before chunk, manifest and name."""
    events = []
    places = {}

    def recorded(name, real, show):
        def call(*args, **settings):
            events.append((name, show(*args)))
            return real(*args, **settings)

        return call

    real_open = os.open

    def open_(path, *args, **settings):
        descriptor = real_open(path, *args, **settings)
        places[descriptor] = str(path)
        return descriptor

    root = tmp_path / "new" / "store"
    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "fsync", recorded("sync", os.fsync, lambda descriptor: places[descriptor]))
    monkeypatch.setattr(os, "rename", recorded("rename", os.rename, lambda source, target: (str(source), str(target))))
    monkeypatch.setattr(os, "mkdir", recorded("mkdir", os.mkdir, lambda path, *_: str(path)))
    monkeypatch.setattr(Index, "commit", recorded("commit", Index.commit, lambda self, name, *_: name))
    with open_store(root) as store:
        run(store, {"text": ["a", "b"]}, {"text": CountingEncoder()}, name="t")
    for at, (kind, what) in enumerate(events):
        if kind == "mkdir":
            assert ("sync", os.path.dirname(what)) in events[at:], what
        if kind == "rename" and "claims-" not in what[1]:  # a lock need not outlive its holder
            source, target = what
            assert ("sync", source) in events[:at], target
            assert ("sync", os.path.dirname(target)) in events[at : at + 2], target
    published = [os.path.relpath(what[1], root).split(os.sep)[0] for kind, what in events if kind == "rename"]
    published.remove("locks")
    assert published == ["store.json", "shards", "chunks", "manifests", "names"]
    (commit,) = [at for at, (kind, _) in enumerate(events) if kind == "commit"]
    shard_at = next(
        at for at, (kind, what) in enumerate(events) if kind == "rename" and f"{os.sep}shards{os.sep}" in what[1]
    )
    chunk_at = next(
        at for at, (kind, what) in enumerate(events) if kind == "rename" and f"{os.sep}chunks{os.sep}" in what[1]
    )
    assert shard_at + 1 < commit < chunk_at


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("reviews.2024.csv", "reviews.2024"),
        ("日本.csv", "日本"),
        ("a.tsv.gz", "a"),
        ("my data!.csv", "my-data"),
        ("x.arrow", "x"),
    ],
)
def test_a_file_goes_by_its_stem(file, name):
    assert naming._cleaned(stem(Path(file))) == name
