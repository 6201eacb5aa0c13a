"""Forgetting: what was asked for is in no file of the store any more, and everything else is as it was."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest

from cachestore import forget, gc, gc_plan, layout, open_store
from cachestore import manifest as manifests
from cachestore.build import run
from cachestore.errors import DamageError, ManifestNotFound, StoreLocked, StoreNotWritable, UsageError
from cachestore.fill import Limits
from cachestore.forget_plan import plan_forget, plan_keys
from cachestore.gc_rules import Rules
from cachestore.keys import fingerprint, key
from cachestore.manifest import FORGOTTEN, PRESENT
from cachestore.marks import Wanted
from cachestore.pins import Pin, write_pin
from tests.store.counting import CountingEncoder

SMALL = Limits(shard_rows=10, window_rows=10)
OTHER = {"pooling": "max"}


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "store") as opened:
        yield opened


def table(folder, first, last, name="data"):
    path = folder / f"{name}.csv"
    path.write_text("text\n" + "".join(f"text {number}\n" for number in range(first, last)))
    return path


def build(store, path, name=None, **settings):
    return run(store, path, {"text": CountingEncoder(**settings)}, name=name, limits=SMALL).manifest


def vector(number):
    return CountingEncoder().encode([f"text {number}".encode()]).astype(np.float16)


def key_of(number, **settings):
    return key(fingerprint(CountingEncoder(**settings).spec), f"text {number}".encode())


def traces(root, number, encoders=({}, OTHER)):
    """Files of the store with the vector, or a key in either form, or the text."""
    needles = [vector(number).tobytes(), f"text {number}\n".encode()]
    for settings in encoders:
        needles += [key_of(number, **settings), key_of(number, **settings).hex().encode()]
    return [
        path.relative_to(root).as_posix()
        for path in sorted(root.rglob("*"))
        if path.is_file() and any(needle in path.read_bytes() for needle in needles)
    ]


def rest_is_intact(store, reference, numbers, gone):
    """Whether every row but those gone has its vector, and those have none and say why."""
    vectors, reasons = store.column(reference, "text")
    expected = np.concatenate([vector(number) for number in numbers])
    lost = np.isin(list(numbers), list(gone))
    expected[lost] = 0
    return np.array_equal(vectors, expected) and np.array_equal(reasons, np.where(lost, FORGOTTEN, PRESENT))


def test_a_forgotten_text_is_in_no_file_of_the_store(store, tmp_path):
    path = table(tmp_path, 0, 25)
    build(store, path, "first")
    build(store, path, "second", **OTHER)
    build(store, table(tmp_path, 20, 40, "more"), "third")
    for folder in ("trash/1-a", "quarantine", "index.damaged-0", "tmp"):
        place = store.root / folder
        place.mkdir(parents=True, exist_ok=True)
        (place / "old").write_bytes(key_of(23))
    assert {each.split("/")[0] for each in traces(store.root, 23)} >= {
        "shards",
        "chunks",
        "index",
        "trash",
        "quarantine",
    }
    plan, done = forget.forget(store, [b"text 23"])
    assert traces(store.root, 23) == []
    assert (plan.payloads, plan.vectors, len(plan.shards), done.cells) == (1, 2, 2, 3)
    assert plan.versions == ("first@1", "second@1", "third@1")
    assert len(done.manifests) == 3
    assert done.purged > 0
    assert rest_is_intact(store, "first", range(25), {23})
    assert rest_is_intact(store, "second", range(25), {23})
    assert rest_is_intact(store, "third", range(20, 40), {23})
    assert store.settled()


def test_the_audit_says_what_was_done_without_the_content(store, tmp_path):
    build(store, table(tmp_path, 0, 25), "first")
    old = store.manifest("first").id
    _, done = forget.forget(store, [b"text 3"])
    forget.forget(store, [b"text 4"])
    first, second = (json.loads(line) for line in (store.root / "audit.jsonl").read_text().splitlines())
    assert first.keys() == {"format", "time", "user", "vectors", "cells", "shards", "manifests", "purged"}
    assert (first["vectors"], first["cells"]) == (1, 1)
    assert first["manifests"] == dict(done.manifests) == {old: second["manifests"] and next(iter(second["manifests"]))}
    assert first["shards"] == dict(done.shards)
    assert traces(store.root, 3) == traces(store.root, 4) == []


def test_versions_tags_and_runs_follow_to_what_is_left(store, tmp_path):
    versions = [build(store, table(tmp_path, 0, last), "reviews") for last in (10, 20, 30)]
    store.tag("reviews", "paper", 2)
    write_pin(store.root, Pin("aa", "/runs/a", (versions[1].id,), "2026-01-01T00:00:00+00:00"))
    plan, _ = forget.forget(store, [b"text 15"])
    assert (plan.versions, plan.tags, plan.runs) == (("reviews@2", "reviews@3"), ("reviews@paper",), ("/runs/a",))
    assert plan.sources == (str(tmp_path / "data.csv"),)
    assert store.manifest("reviews@1").id == versions[0].id
    for reference in ("reviews@2", "reviews@paper", versions[1].id, versions[1].id[:12]):
        assert rest_is_intact(store, reference, range(20), {15})
    assert rest_is_intact(store, "reviews", range(30), {15})
    assert traces(store.root, 15) == []
    gc.collect(store, Rules(unreferenced_older_than=0, grace=0, repack=True))
    assert rest_is_intact(store, "reviews@2", range(20), {15})
    forget.forget(store, [b"text 5"])
    for last in (10, 20, 30):
        assert rest_is_intact(store, f"reviews@{last // 10}", range(last), {5, 15} & set(range(last)))


def test_rows_are_forgotten_with_what_other_encoders_made_of_them(store, tmp_path):
    path = table(tmp_path, 0, 25)
    build(store, path, "first")
    build(store, path, "second", **OTHER)
    plan, _ = forget.forget(store, rows=("first", [3, 17, 3]))
    assert (plan.payloads, plan.vectors, plan.notes) == (2, 4, ())
    for number in (3, 17):
        assert traces(store.root, number) == []
    assert rest_is_intact(store, "first", range(25), {3, 17})
    assert rest_is_intact(store, "second", range(25), {3, 17})


def test_rows_whose_source_changed_are_forgotten_for_their_own_encoder_and_it_says_so(store, tmp_path):
    path = table(tmp_path, 0, 25)
    build(store, path, "first")
    build(store, path, "second", **OTHER)
    path.write_text(path.read_text() + "more\n")
    plan, _ = forget.forget(store, rows=("first@1", [3]))
    assert (plan.payloads, plan.vectors) == (0, 1)
    assert "has changed since" in plan.notes[0]
    assert "--text" in plan.notes[0]
    assert traces(store.root, 3, ({},)) == [each for each in traces(store.root, 3) if each.startswith("shards")]
    assert rest_is_intact(store, "second", range(25), set())
    path.unlink()
    assert "other encoders" in forget.forget(store, rows=("first@1", [4]))[0].notes[0]


def test_a_row_that_is_not_there_is_refused_and_nothing_changes(store, tmp_path):
    build(store, table(tmp_path, 0, 5), "first")
    before = sorted(store.root.rglob("*"))
    with pytest.raises(UsageError, match="no row 5"):
        forget.forget(store, rows=("first", [0, 5]))
    with pytest.raises(ManifestNotFound):
        forget.forget(store, rows=("absent", [0]))
    assert sorted(store.root.rglob("*")) == before


def test_rows_without_a_vector_are_told(store, tmp_path):
    build(store, table(tmp_path, 0, 5), "first")
    forget.forget(store, rows=("first", [2]))
    plan, _ = forget.forget(store, rows=("first", [2, 3]))
    assert "1 of the rows" in plan.notes[0]
    assert rest_is_intact(store, "first", range(5), {2, 3})


def test_a_shard_of_nothing_else_goes_and_an_unknown_text_still_purges(store):
    store.embed(["text 1"], CountingEncoder())
    _, done = forget.forget(store, [b"text 1"])
    assert list(done.shards.values()) == [None]
    assert store.index.shards() == {}
    (store.root / "trash" / "1-a").mkdir(parents=True)
    (store.root / "trash" / "1-a" / "old").write_bytes(b"x")
    plan, done = forget.forget(store, [b"never stored"])
    assert (plan.vectors, done.purged) == (0, 1)
    assert not list((store.root / "trash").iterdir())


def test_copies_in_superseded_shards_and_loose_chunks_go_too(store, tmp_path):
    build(store, table(tmp_path, 0, 10), "first")
    encoder = CountingEncoder()
    with store.writing():
        store.put(encoder.spec, [key_of(3), key_of(4)], np.concatenate([vector(3), vector(4)]))
    manifests.write_chunk(store.root, ["other"], [np.frombuffer(key_of(3), "V32")], [np.zeros(1, np.uint8)])
    plan, _ = forget.forget(store, [b"text 3"])
    assert (plan.vectors, len(plan.loose_chunks)) == (2, 1)
    assert traces(store.root, 3) == []
    assert rest_is_intact(store, "first", range(10), {3})


def test_chunks_that_several_versions_share_are_rewritten_once(store, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("cachestore.build"), "CHUNK_ROWS", 8)
    versions = [build(store, table(tmp_path, 0, last), "reviews") for last in (10, 20)]
    assert versions[0].chunks[0] == versions[1].chunks[0]
    _, done = forget.forget(store, [b"text 3"])
    assert (done.cells, len(done.manifests)) == (1, 2)
    first, second = (store.manifest(f"reviews@{at}") for at in (1, 2))
    assert first.chunks[0] == second.chunks[0] != versions[0].chunks[0]
    assert first.chunks[1:] == versions[0].chunks[1:]
    assert rest_is_intact(store, "reviews@1", range(10), {3})


def test_a_build_of_the_unchanged_source_encodes_it_again_and_forgetting_it_again_works(store, tmp_path):
    path = table(tmp_path, 0, 25)
    before = build(store, path, "first")
    forget.forget(store, [b"text 3"])
    encoder = CountingEncoder()
    assert run(store, path, {"text": encoder}, name="first").manifest.id == before.id
    assert encoder.seen == [b"text 3"]
    assert rest_is_intact(store, "first", range(25), set())
    forget.forget(store, [b"text 3"])
    assert traces(store.root, 3) == []
    assert rest_is_intact(store, "first", range(25), {3})


def test_a_plan_changes_nothing_and_reads_a_store_that_may_not_be_written(store, tmp_path):
    build(store, table(tmp_path, 0, 25), "first")
    before = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file() and path.suffix != ".mdb"}
    with open_store(store.root, mode="r") as reader:
        plan = plan_forget(reader, [b"text 3"])
        assert (plan.vectors, plan.versions) == (1, ("first@1",))
        with pytest.raises(StoreNotWritable):
            forget.forget(reader, [b"text 3"])
    assert {path: path.read_bytes() for path in before} == before


def test_readers_of_the_shard_are_waited_for_and_then_it_is_refused(store, tmp_path):
    build(store, table(tmp_path, 0, 25), "first")
    before = traces(store.root, 3)
    told = []
    with open_store(store.root, mode="r") as reader:
        reader.vectors("first", "text")  # keeps its shards mapped
        with pytest.raises(StoreLocked, match="readers"):
            forget.forget(store, [b"text 3"], wait=0.2, tell=told.append)
        assert traces(store.root, 3) == before
        assert len(told) == 1
        with pytest.raises(StoreLocked, match="readers"):
            forget.forget(store, [b"text 3"], wait=0)
    forget.forget(store, [b"text 3"], wait=0)
    assert traces(store.root, 3) == []


def test_readers_of_other_shards_are_not_waited_for(store):
    store.embed(["text 1"], CountingEncoder())
    store.embed(["text 2"], CountingEncoder())
    store.release()
    with open_store(store.root, mode="r") as reader:
        reader.embed(["text 2"], CountingEncoder())
        forget.forget(store, [b"text 1"], wait=0)
        np.testing.assert_array_equal(reader.embed(["text 2"], CountingEncoder()), vector(2))
    assert traces(store.root, 1) == []


def test_damage_is_repaired_before_and_nothing_is_half_done(store, tmp_path):
    build(store, table(tmp_path, 0, 10), "first")
    (name,) = layout.content_sizes(store.root, "shards", ".arrow")
    path = layout.content_path(store.root, "shards", name, ".arrow")
    data = bytearray(path.read_bytes())
    data[bytes(data).index(vector(4).tobytes())] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    store.release()
    before = sorted(store.root.rglob("*"))
    with pytest.raises(DamageError, match="cachestore repair"):
        forget.forget(store, [b"text 3"])
    assert sorted(store.root.rglob("*")) == before
    forget.forget(store, [b"text 4"])  # the damaged row itself
    assert rest_is_intact(store, "first", range(10), {4})


def test_a_damaged_chunk_with_the_key_goes(store, tmp_path):
    build(store, table(tmp_path, 0, 10), "first")
    ((chunk, _),) = store.manifest("first").chunks
    path = layout.content_path(store.root, "chunks", chunk, ".arrow")
    data = bytearray(path.read_bytes())
    data[bytes(data).index(key_of(7))] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    plan, _ = forget.forget(store, [b"text 3"])
    assert plan.loose_chunks == (chunk,)
    assert traces(store.root, 3) == []


@pytest.mark.timeout(20)
@pytest.mark.parametrize("damaged", [False, True])
def test_ten_thousand_keys_are_looked_for_in_a_large_loose_chunk_in_a_second(store, damaged):
    random = np.random.default_rng(0)
    held = np.frombuffer(random.bytes(32 * manifests.CHUNK_ROWS), "V32")
    chunk = manifests.write_chunk(store.root, ["text"], [held], [np.zeros(len(held), np.uint8)])
    if damaged:
        path = layout.content_path(store.root, "chunks", chunk, ".arrow")
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-100])
    wanted = [random.bytes(32) for _ in range(10_000)]
    assert plan_keys(store, wanted).loose_chunks == ()
    assert plan_keys(store, [*wanted, held[-10].tobytes()]).loose_chunks == (chunk,)


@pytest.mark.parametrize("searched", [1 << 20, 16])
def test_a_key_is_found_anywhere_in_a_file_as_it_is_and_in_hexadecimal(tmp_path, monkeypatch, searched):
    monkeypatch.setattr("cachestore.marks._SEARCHED", searched)
    path = tmp_path / "file"
    keys = [bytes(range(first, first + 32)) for first in range(0, 200, 3)] + [bytes(32), b"\xff" * 32]
    wanted = Wanted(keys)
    for at in (0, 1, 7, 15, 16, 17, 31, 100):
        for each in (keys[40], keys[-1], keys[3].hex().encode()):
            path.write_bytes(b"x" * at + each)
            assert wanted.inside(path), at
            assert not Wanted([]).inside(path)
            path.write_bytes(b"x" * at + each[:-1] + b"x")
            assert not wanted.inside(path), at
    for content in (b"", b"x", keys[40][:31], keys[40][1:] + keys[40][:1]):
        path.write_bytes(content)
        assert not wanted.inside(path)
    assert not wanted.inside(tmp_path / "absent")


def test_a_forget_that_was_cut_short_is_finished_by_any_other(store, tmp_path, monkeypatch):
    path = table(tmp_path, 0, 25)
    build(store, path, "first")
    build(store, path, "second", **OTHER)
    with monkeypatch.context() as patched:
        patched.setattr("cachestore.forget._rewrite_shards", lambda plan: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            forget.forget(store, rows=("first", [3]))
    path.unlink()
    assert any(each.startswith("shards") for each in traces(store.root, 3))
    assert "forget --resume" in gc_plan.plan_gc(store, Rules()).notes[0]
    plan, _ = forget.forget(store, [b"text 4"])
    assert plan.vectors == 2
    assert traces(store.root, 3) == traces(store.root, 4) == []
    assert rest_is_intact(store, "first", range(25), {3, 4})
    assert rest_is_intact(store, "second", range(25), {3, 4})
    assert gc_plan.plan_gc(store, Rules()).notes == ()
    assert len((store.root / "audit.jsonl").read_text().splitlines()) == 2


def test_a_journal_that_cannot_be_read_is_damage(store):
    (store.root / "forgetting.json").write_text("{")
    with pytest.raises(DamageError, match=r"forgetting\.json"):
        forget.forget(store, [b"text 4"])
