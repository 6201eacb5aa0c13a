"""Collecting: only what the rules name goes, by way of the trash, and nothing that a name, tag or run needs."""

from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest

from cachestore import gc, layout, open_store, reconcile
from cachestore import manifest as manifests
from cachestore.build import run
from cachestore.errors import DamageError, StoreFull, StoreNotWritable, UsageError
from cachestore.fill import Limits
from cachestore.gc_plan import plan_gc
from cachestore.gc_rules import DAY, Rules
from cachestore.keys import fingerprint, keys
from cachestore.marks import Table
from cachestore.pins import Pin, pins, write_pin
from tests.store.counting import CountingEncoder

SMALL = Limits(shard_rows=10, window_rows=10)


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "store") as opened:
        yield opened


def texts(first, last):
    return {"text": [f"text {number}" for number in range(first, last)]}


def build(store, first, last, name=None, encoder=None):
    """A version of ``name``, or a manifest that nothing refers to, of texts first … last - 1; ten to a shard."""
    return run(
        store, texts(first, last), {"text": encoder or CountingEncoder()}, name=name, named=False, limits=SMALL
    ).manifest


def truth(first, last):
    return CountingEncoder().encode([text.encode() for text in texts(first, last)["text"]]).astype(np.float16)


def intact(store, manifest, first, last):
    vectors, mask = store.vectors(manifest, "text")
    return bool(mask.all()) and np.array_equal(vectors, truth(first, last))


def collect(store, **rules):
    return gc.collect(store, Rules(**rules))


def age(store, days, folder="."):
    then = time.time() - days * DAY
    for path in (store.root / folder).rglob("*"):
        if path.is_file() and "locks" not in path.parts and "index" not in path.parts:
            os.utime(path, (then, then))


def on_disk(store, folder, suffix=".arrow"):
    return set(layout.content_sizes(store.root, folder, suffix))


def test_by_default_only_leftovers_go(store):
    build(store, 0, 20, "named")
    loose = build(store, 20, 40)
    age(store, 1000)
    before = on_disk(store, "shards") | on_disk(store, "chunks") | on_disk(store, "manifests", ".json")
    (store.root / "tmp").joinpath("left").write_bytes(b"x" * 100)
    damaged = store.root / "index.damaged-12345678"
    damaged.mkdir()
    (damaged / "data.mdb").write_bytes(b"x" * 1000)
    plan, done = collect(store)
    assert (plan.to_trash, plan.manifests, plan.unreferenced, plan.superseded) == (0, (), (), ())
    assert (done.swept, done.freed, done.trashed, done.in_trash, done.deleted_from) == (1, 1000, 0, 0, None)
    assert not damaged.exists()
    assert not list((store.root / "tmp").iterdir())
    assert on_disk(store, "shards") | on_disk(store, "chunks") | on_disk(store, "manifests", ".json") == before
    assert intact(store, loose, 20, 40)


def test_a_plan_changes_nothing_and_needs_no_permission_to_write(store):
    build(store, 0, 20)
    age(store, 40)
    (store.root / "tmp").joinpath("left").write_bytes(b"x" * 100)
    there = sorted(path for path in store.root.rglob("*"))
    with open_store(store.root, mode="r") as reader:
        plan = plan_gc(reader, Rules(unreferenced_older_than=30 * DAY))
        assert len(plan.unreferenced) == 2
        assert (len(plan.manifests), len(plan.chunks)) == (1, 1)
        assert plan.to_delete == 100
        with pytest.raises(StoreNotWritable):
            gc.collect(reader, Rules())
    assert sorted(path for path in store.root.rglob("*")) == there


def test_unreferenced_vectors_go_when_they_are_old_enough(store):
    named = build(store, 0, 20, "named")
    old = build(store, 20, 40)
    age(store, 31)
    young = build(store, 40, 50)
    plan, done = collect(store, unreferenced_older_than=30 * DAY)
    assert len(plan.unreferenced) == 2
    assert [item.path.stem for item in plan.manifests] == [old.id]
    assert done.trashed == plan.to_trash == done.in_trash > 0
    assert intact(store, named, 0, 20)
    assert intact(store, young, 40, 50)
    (batch,) = (store.root / "trash").iterdir()
    assert sorted(path.suffix for path in batch.rglob("*") if path.is_file()) == [".arrow", ".arrow", ".arrow", ".json"]
    assert collect(store, unreferenced_older_than=30 * DAY)[0].to_trash == 0


def test_the_trash_is_deleted_when_its_grace_is_over(store):
    build(store, 0, 20)
    age(store, 31)
    _, done = collect(store, unreferenced_older_than=30 * DAY)
    assert abs(done.deleted_from - time.time() - DAY) < 60
    _, again = collect(store)
    assert (again.freed, again.in_trash) == (0, done.trashed)
    (batch,) = (store.root / "trash").iterdir()
    seconds, _, rest = batch.name.partition("-")
    batch.rename(batch.with_name(f"{int(seconds) - int(DAY) - 1}-{rest}"))
    _, last = collect(store)
    assert (last.freed, last.in_trash, last.deleted_from) == (done.trashed, 0, None)
    assert not list((store.root / "trash").iterdir())


def test_a_batch_from_the_future_is_new(store):
    batch = store.root / "trash" / f"{int(time.time() + 1000 * DAY)}-abc"
    batch.mkdir(parents=True)
    (batch / "file").write_bytes(b"x")
    assert collect(store)[1].in_trash == 1
    _, done = collect(store, grace=0)
    assert (done.freed, done.in_trash) == (1, 0)


def test_no_grace_deletes_at_once(store):
    build(store, 0, 20)
    plan, done = collect(store, unreferenced_older_than=0, grace=0)
    assert done.freed == plan.to_trash > 0
    assert (done.trashed, done.in_trash) == (0, 0)
    assert not on_disk(store, "shards")
    assert not (store.root / "trash").exists()


def test_files_from_the_future_are_new(store):
    build(store, 0, 20)
    age(store, -1000)
    assert collect(store, unreferenced_older_than=DAY)[0].to_trash == 0


def test_a_young_unnamed_manifest_protects_its_vectors(store):
    build(store, 0, 20)
    age(store, 31)
    young = build(store, 10, 30)
    plan, _ = collect(store, unreferenced_older_than=30 * DAY)
    assert len(plan.unreferenced) == 1
    assert intact(store, young, 10, 30)


def test_a_shard_stays_whole_while_one_row_of_it_is_needed(store):
    build(store, 0, 20)
    named = build(store, 9, 11, "named")
    age(store, 31)
    plan, _ = collect(store, unreferenced_older_than=30 * DAY)
    assert not plan.unreferenced
    assert intact(store, named, 9, 11)


def test_repack_rewrites_what_is_needed_of_sparse_shards(store):
    build(store, 0, 40)
    named = build(store, 9, 11, "named")
    full = build(store, 20, 28, "full")  # 80 % of its shard
    age(store, 31)
    plan, done = collect(store, unreferenced_older_than=30 * DAY, repack=True)
    assert (len(plan.unreferenced), len(plan.sparse)) == (1, 2)
    assert done.written > 0
    assert len(on_disk(store, "shards")) == 2
    assert intact(store, named, 9, 11)
    assert intact(store, full, 20, 28)
    assert store.settled()
    assert sorted(entry.rows for entry in store.index.shards().values()) == [2, 10]
    assert collect(store, unreferenced_older_than=30 * DAY, repack=True)[0].to_trash == 0


def test_repack_without_an_age_or_a_size_keeps_unreferenced_rows_and_says_so(store):
    loose = build(store, 0, 20)
    build(store, 9, 11, "named")
    age(store, 1000)
    plan, done = collect(store, repack=True)
    assert (plan.sparse, plan.unreferenced, done.written) == ((), (), 0)
    assert intact(store, loose, 0, 20)
    (note,) = plan.notes
    assert "--unreferenced-older-than" in note
    assert "--max-bytes" in note
    for rules in ({"unreferenced_older_than": 0}, {"max_bytes": 10**9}):
        assert plan_gc(store, Rules(repack=True, **rules)).notes == ()


def test_repack_leaves_a_damaged_shard_alone(store):
    build(store, 0, 10)
    build(store, 9, 10, "named")
    age(store, 31)
    (name,) = on_disk(store, "shards")
    path = layout.content_path(store.root, "shards", name, ".arrow")
    data = bytearray(path.read_bytes())
    at = bytes(data).index(truth(9, 10).tobytes())
    data[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    _, done = collect(store, unreferenced_older_than=0, repack=True)
    assert "was not rewritten" in done.notes[0]
    assert path.exists()
    assert len(store.index.shards()) == 1


def write_again(store, first, last):
    """A second shard of rows that others hold."""
    encoder = CountingEncoder()
    payloads = [text.encode() for text in texts(first, last)["text"]]
    with store.writing():
        return store.put(encoder.spec, keys(fingerprint(encoder.spec), payloads), truth(first, last))[0]


def test_superseded_shards_go_by_default(store):
    named = build(store, 0, 30, "named")
    number = write_again(store, 5, 15)
    plan, done = collect(store)
    assert [entry.number for entry in plan.superseded] == [number]
    assert done.trashed > 0
    assert intact(store, named, 0, 30)
    assert len(store.index.shards()) == 3


def test_a_superseded_shard_stays_while_the_other_copy_is_damaged(store):
    build(store, 0, 10, "named")
    (name,) = on_disk(store, "shards")
    write_again(store, 0, 5)
    path = layout.content_path(store.root, "shards", name, ".arrow")
    data = bytearray(path.read_bytes())
    data[bytes(data).index(truth(3, 4).tobytes())] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    store.release()
    plan, _ = collect(store)
    assert plan.superseded == ()
    assert "cachestore verify" in plan.notes[0]


def test_keep_last_lets_old_versions_go_but_tagged_and_pinned_ones(store, tmp_path):
    versions = [build(store, 0, 10 * count, "reviews") for count in range(1, 6)]
    store.tag("reviews", "paper", 2)
    pin(store, tmp_path / "run", "aa", versions[2])
    plan, _ = collect(store, keep_last=1)
    assert plan.versions == ("reviews@1", "reviews@4")
    assert on_disk(store, "manifests", ".json") == {versions[at].id for at in (1, 2, 4)}
    assert len(plan.chunks) == 2
    assert plan.unreferenced == ()
    for at in (1, 2, 4):
        assert intact(store, versions[at], 0, 10 * (at + 1))
    assert len(store.log("reviews")) == 5
    assert collect(store, keep_last=1)[0].manifests == ()
    assert collect(store, unreferenced_older_than=0)[0].unreferenced == ()


def test_the_head_of_a_name_stays_when_a_tag_has_a_higher_version_than_its_log(store):
    versions = [build(store, 0, 10 * count, "reviews") for count in range(1, 4)]
    store.tag("reviews", "paper", 3)
    manifests.write_log(store.root, "reviews", store.log("reviews")[:2])  # as repair does with a last line that is torn
    plan, _ = collect(store, keep_last=1)
    assert plan.versions == ("reviews@1",)
    assert store.manifest("reviews").id == versions[1].id
    assert intact(store, "reviews", 0, 20)
    assert intact(store, "reviews@paper", 0, 30)


def test_keep_last_counts_the_versions_that_a_log_has(store):
    versions = [build(store, 0, 10 * count, "reviews") for count in range(1, 5)]
    first, *_, last = store.log("reviews")
    manifests.write_log(store.root, "reviews", [first, last])  # as repair does with lines that are torn
    assert collect(store, keep_last=2)[0].versions == ()
    assert collect(store, keep_last=1)[0].versions == ("reviews@1",)
    assert intact(store, versions[3], 0, 40)


def test_keep_last_and_age_let_vectors_of_old_versions_go(store):
    build(store, 0, 20, "reviews")
    newest = build(store, 10, 30, "reviews")
    collect(store, keep_last=1, unreferenced_older_than=0)
    assert intact(store, newest, 10, 30)
    assert len(store.index.shards()) == 2
    encoder = CountingEncoder()
    build(store, 0, 20, "again", encoder)
    assert len(encoder.seen) == 10


def test_a_manifest_that_several_names_lead_to_stays_while_one_keeps_it(store):
    shared = build(store, 0, 10, "a")
    build(store, 0, 10, "b")
    build(store, 0, 20, "a")
    plan, _ = collect(store, keep_last=1)
    assert plan.manifests == ()
    assert intact(store, shared, 0, 10)


def pin(store, place, run_id, *pinned):
    place.mkdir(exist_ok=True)
    (place / "run.json").write_text(json.dumps({"id": run_id}))
    write_pin(store.root, Pin(run_id, str(place), tuple(each.id for each in pinned), "2026-01-01T00:00:00+00:00"))


def test_pins_hold_until_their_run_is_gone_and_asked_for(store, tmp_path):
    pinned = build(store, 0, 10)
    other = build(store, 10, 20)
    pin(store, tmp_path / "run", "aa", pinned)
    pin(store, tmp_path / "other", "bb", other)
    assert collect(store, unreferenced_older_than=0, drop_missing_runs=True)[0].pins == ()
    (tmp_path / "run" / "run.json").unlink()
    assert collect(store, unreferenced_older_than=0)[0].unreferenced == ()
    assert intact(store, pinned, 0, 10)
    plan, _ = collect(store, unreferenced_older_than=0, drop_missing_runs=True)
    assert [each.run for each in plan.pins] == ["aa"]
    assert [each.run for each in pins(store.root)] == ["bb"]
    assert intact(store, other, 10, 20)
    with pytest.raises(Exception, match="holds no manifest"):
        store.vectors(pinned.id, "text")


def shard_bytes(store):
    return sum(entry.nbytes for entry in store.index.shards().values())


def test_max_bytes_evicts_the_oldest_unreferenced_first(store):
    for first, days in ((0, 30), (10, 20), (20, 10)):
        build(store, first, first + 10)
        for path in store.root.rglob("*.*"):
            if path.suffix in (".arrow", ".json") and path.stat().st_mtime > time.time() - DAY:
                os.utime(path, (time.time() - days * DAY,) * 2)
    one = shard_bytes(store) // 3
    used = build(store, 0, 5)  # the oldest, used now
    plan, _ = collect(store, max_bytes=2 * one)
    assert len(plan.unreferenced) == 1
    assert len(plan.manifests) == 1
    assert shard_bytes(store) <= 2 * one
    assert intact(store, used, 0, 5)
    encoder = CountingEncoder()
    store.embed(texts(0, 30)["text"], encoder)
    assert encoder.seen == [text.encode() for text in texts(10, 20)["text"]]


def test_max_bytes_never_evicts_what_is_referenced_and_says_what_stays(store):
    named = build(store, 0, 30, "named")
    build(store, 30, 40)
    plan, _ = collect(store, max_bytes=0)
    assert len(plan.unreferenced) == 1
    assert intact(store, named, 0, 30)
    assert "names, tags and runs refer" in plan.notes[0]
    assert plan.versions == ()


def test_max_bytes_with_repack_frees_what_is_not_needed_of_shards(store):
    build(store, 0, 20)
    named = build(store, 0, 2, "named")
    plan, _ = collect(store, max_bytes=1)
    assert "--repack" in plan.notes[0]
    assert len(plan.unreferenced) == 1
    plan, _ = collect(store, max_bytes=1, repack=True)
    assert (len(plan.sparse), len(plan.unreferenced)) == (1, 0)
    assert intact(store, named, 0, 2)
    assert [entry.rows for entry in store.index.shards().values()] == [2]


def test_nothing_goes_while_a_root_cannot_be_read(store):
    build(store, 0, 10, "named")
    build(store, 10, 20)
    (chunk, *_) = [identity for identity, _ in store.manifest("named").chunks]
    path = layout.content_path(store.root, "chunks", chunk, ".arrow")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    before = on_disk(store, "shards")
    for rules in ({"unreferenced_older_than": 0}, {"max_bytes": 0}):
        with pytest.raises(DamageError, match="named@1"):
            collect(store, **rules)
    manifests.manifest_path(store.root, store.manifest("named").id).unlink()
    with pytest.raises(DamageError, match="named@1"):
        collect(store, keep_last=1)
    assert on_disk(store, "shards") == before
    collect(store)


def test_chunks_that_killed_builds_left_go_when_old(store):
    build(store, 0, 10, "named")
    column = [np.frombuffer(bytes(64), "V32")], [np.ones(2, np.uint8)]
    manifests.write_chunk(store.root, ["other"], *column)
    assert collect(store, unreferenced_older_than=DAY)[0].chunks == ()
    age(store, 2)
    assert len(collect(store, unreferenced_older_than=DAY)[0].chunks) == 1


def test_what_was_collected_is_encoded_again_when_it_is_built_again(store):
    manifest = build(store, 0, 20, "gone")
    (store.root / "names" / "gone.jsonl").unlink()
    collect(store, unreferenced_older_than=0)
    with pytest.raises(Exception, match="holds no manifest"):
        store.vectors(manifest.id, "text")
    encoder = CountingEncoder()
    assert build(store, 0, 20, "back", encoder).id == manifest.id
    assert len(encoder.seen) == 20
    assert intact(store, manifest, 0, 20)


def test_several_columns_and_encoders_are_told_apart(store):
    other = CountingEncoder(pooling="max")
    run(store, {"a": ["x", "y"], "b": ["y", "z"]}, {"a": CountingEncoder(), "b": other}, name="two", limits=SMALL)
    run(store, {"a": ["x", "y"]}, {"a": CountingEncoder(pooling="none")}, named=False, limits=SMALL)
    plan, _ = collect(store, unreferenced_older_than=0)
    assert len(plan.unreferenced) == 1
    assert store.vectors("two", "a")[1].all()
    assert store.vectors("two", "b")[1].all()


def test_rules_that_make_no_sense_are_refused():
    for wrong in ({"keep_last": 0}, {"grace": -1}, {"max_bytes": -1}, {"unreferenced_older_than": float("inf")}):
        with pytest.raises(UsageError):
            Rules(**wrong)


def test_keys_that_share_eight_bytes_are_kept_together(store):
    encoder = CountingEncoder()
    near = [bytes(8) + bytes([number]) * 24 for number in range(3)] + [b"\xff" * 32]
    with store.writing():
        store.put(encoder.spec, near, truth(0, 4))
    table = Table(store.index)
    assert table.places(np.frombuffer(near[1], "V32")).tolist() == [0, 1, 2]
    assert table.places(np.frombuffer(near[3] + b"\x01" * 32, "V32")).tolist() == [3]
    assert table.places(np.frombuffer(b"", "V32")).tolist() == []


def test_a_plan_of_a_store_that_others_write_to_meanwhile_is_made(store, monkeypatch):
    build(store, 0, 10)

    def late(index):
        write_again(store, 500, 510)
        return Table(index)

    monkeypatch.setattr("cachestore.gc_plan.Table", late)
    plan = plan_gc(store, Rules(unreferenced_older_than=0, max_bytes=0, repack=True))
    assert len(plan.unreferenced) == 1
    assert plan.notes == ()


def fails_once(real, when=lambda: True):
    """``real``, but that its first call finds the disk full."""
    calls = []

    def call(*arguments):
        calls.append(arguments)
        if len(calls) == 1 and when():
            raise StoreFull("No space.")
        return real(*arguments)

    return call


def test_on_a_full_disk_the_trash_goes_before_the_index_is_mended(store, monkeypatch):
    monkeypatch.setattr("cachestore.reconcile.reconcile", fails_once(reconcile.reconcile))
    with pytest.raises(StoreFull):
        collect(store)
    batch = store.root / "trash" / "1000000000-a"
    batch.mkdir(parents=True)
    (batch / "file").write_bytes(b"x" * 1000)
    monkeypatch.setattr("cachestore.reconcile.reconcile", fails_once(reconcile.reconcile))
    assert collect(store)[1].freed == 1000
    assert not batch.exists()


@pytest.mark.parametrize("grace", [0, DAY])
def test_an_index_without_room_to_change_loses_nothing(store, monkeypatch, grace):
    named = build(store, 0, 20, "named")
    build(store, 20, 40)
    monkeypatch.setattr(store.index, "drop", fails_once(store.index.drop))
    if grace:
        with pytest.raises(StoreFull, match="0 bytes of leftovers"):
            collect(store, unreferenced_older_than=0, grace=grace)
        assert len(on_disk(store, "shards")) == 4
        assert len(collect(store, unreferenced_older_than=0)[0].unreferenced) == 2
    else:  # the files make room
        assert len(collect(store, unreferenced_older_than=0, grace=grace)[0].unreferenced) == 2
    assert len(on_disk(store, "shards")) == len(store.index.shards()) == 2
    assert store.settled()
    assert intact(store, named, 0, 20)
