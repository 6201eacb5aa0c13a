"""Repair: nothing sound is lost, nothing wrong is served afterwards, and a build encodes only what was lost."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys

import lmdb
import numpy as np
import pytest

from cachestore import layout, open_store, references, shard
from cachestore.errors import StoreLocked, StoreNotFound
from cachestore.forget import forget
from cachestore.manifest import read_chunks
from cachestore.repair import repair
from cachestore.salvage import Origin, salvage
from cachestore.sealed import seal
from tests.store.damage import Damaged, kinds


@pytest.fixture
def store(tmp_path):
    store = Damaged(tmp_path / "store", tmp_path)
    store.build("first", 100)
    store.build("second", 40)
    return store


def snapshot(root):
    """Every file of the store but LMDB's table of readers: name → bytes and time."""
    return {
        path.relative_to(root): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file() and path.name != "lock.mdb" and "locks" not in path.parts
    }


def rebuilt(store):
    """Build both data sets again; returns their manifests and how many texts that encoded."""
    before = len(store.encoder.seen)
    ids = (store.build("first", 100).manifest.id, store.build("second", 40).manifest.id)
    return ids, len(store.encoder.seen) - before


def manifests_of(store):
    with open_store(store.root, "r") as opened:
        return opened.manifest("first").id, opened.manifest("second").id


def only_needs_a_build(store, planned):
    """After a repair, verify finds nothing but what the repair said to build."""
    damage = store.verify().damage
    assert kinds(damage) <= {"vector", "manifest", "chunk", "tag", "pin"}
    named = {label for one in planned.build for label in one.label.split(", ")}
    for finding in damage:
        assert finding.kind == "chunk" or set(finding.what.split(", ")) <= named, (finding, named)


def row_bytes(store, path, row):
    opened = shard.open_shard(store.root, path.stem)
    return path.read_bytes().index(opened.vectors[row].tobytes())


def test_a_healthy_store_stays_as_it_is_byte_for_byte(store):
    before = snapshot(store.root)
    planned = repair(store.root)
    assert planned.empty
    assert not planned.build
    assert snapshot(store.root) == before


def test_a_plan_writes_nothing(store):
    store.flip(store.shards()[0], row_bytes(store, store.shards()[0], 3))
    (store.root / "names" / "second.jsonl").write_text("{")
    before = snapshot(store.root)
    planned = repair(store.root, dry_run=True)
    assert not planned.empty
    assert snapshot(store.root) == before


def test_only_the_rotten_rows_are_lost_and_encoded_again(store):
    vectors, ids, path = store.vectors(), manifests_of(store), store.shards()[0]
    for row in (3, 17):
        store.flip(path, row_bytes(store, path, row))
    planned = repair(store.root)
    (mend,) = planned.shards
    assert (mend.name, mend.salvaged) == (path.stem, 30)
    assert [(one.label, one.vectors) for one in planned.build] == [("first@1", 2)]
    assert planned.whole == ("second@1",)
    assert not path.exists()
    assert [kept.name.startswith(path.name) for kept in (store.root / "quarantine").iterdir()] == [True]
    only_needs_a_build(store, planned)
    assert rebuilt(store) == (ids, 2)
    np.testing.assert_array_equal(store.vectors(), vectors)
    assert not store.verify().damage
    assert repair(store.root).empty


def test_one_flipped_bit_anywhere_in_a_shard_costs_at_most_one_row(store):
    """In the magic, both copies of the schema, the offsets, keys, vectors, checks and the footer."""
    path = store.shards()[0]
    whole, size = path.read_bytes(), path.stat().st_size
    origin = open_store(store.root, "r")
    opened = shard.open_shard(store.root, path.stem)
    places = [0, 8, 12, size - 1, size - 8]
    places += [whole.index(array[5:6].tobytes()) + 1 for array in (opened.keys, opened.vectors, opened.checks)]
    draw = random.Random(4)
    places += draw.sample(range(size), 16)
    with origin:
        known = {opened.fingerprint: Origin(opened.spec, 8)}
        entries = {entry.name: entry for entry in origin.index.shards().values()}
    expected = dict(zip(opened.keys.tolist(), opened.vectors.tolist(), strict=True))
    for at in places:
        for entry in (entries[path.stem], None):
            store.flip(path, at, draw.randrange(8))
            found = salvage(path, known, entry)
            path.write_bytes(whole)
            assert found is not None, at
            assert len(found.keys) >= 31, at
            for key, vector in zip(found.keys.tolist(), found.vectors.tolist(), strict=True):
                assert expected[key] == vector  # never a wrong one


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.99, "vectors", "footer"])
def test_of_a_truncated_shard_the_rows_that_are_there_are_kept(store, keep):
    ids, vectors, path = manifests_of(store), store.vectors(), store.shards()[0]
    opened = shard.open_shard(store.root, path.stem)
    start, width = path.read_bytes().index(opened.vectors.tobytes()), opened.vectors[0].nbytes
    match keep:
        case "vectors":
            size, expected = start + 10 * width + 3, 10
        case "footer":
            size, expected = start + 32 * width + 5, 32
        case part:
            size = int(part * path.stat().st_size)
            expected = max(0, min(32, (size - start) // width))
    del opened
    store.truncate(path, size)
    planned = repair(store.root)
    assert [mend.salvaged for mend in planned.shards] == [expected]
    only_needs_a_build(store, planned)
    assert rebuilt(store) == (ids, 32 - expected)
    np.testing.assert_array_equal(store.vectors(), vectors)
    assert not store.verify().damage


def test_missing_swapped_and_strange_shard_files(store):
    ids, vectors = manifests_of(store), store.vectors()
    first, second, third, fourth = store.shards()[:4]
    first.unlink()
    content = second.read_bytes()
    for path, data in ((second, third.read_bytes()), (third, content)):
        path.chmod(0o644)
        path.write_bytes(data)  # swapped: every row is sound, the names are wrong
    fourth.unlink()
    fourth.symlink_to("/etc/passwd")
    planned = repair(store.root)
    assert {mend.name: mend.salvaged for mend in planned.shards} == {
        second.stem: 32,
        third.stem: 32,
        fourth.stem: 0,
    }
    only_needs_a_build(store, planned)
    assert os.path.exists("/etc/passwd")
    rebuilt_ids, encoded = rebuilt(store)
    assert rebuilt_ids == ids
    assert encoded == sum(one.vectors for one in planned.build)
    np.testing.assert_array_equal(store.vectors(), vectors)
    assert not store.verify().damage


@pytest.mark.parametrize("how", ["gone", "noise", "torn", "entry", "shards"])
def test_the_index_is_filled_anew_and_nothing_is_lost(store, how):
    ids, vectors = manifests_of(store), store.vectors()
    path = store.root / "index" / "data.mdb"
    match how:
        case "gone":
            shutil.rmtree(path.parent)
        case "noise":
            path.write_bytes(random.Random(0).randbytes(path.stat().st_size))
        case "torn":
            store.truncate(path, 5000)
        case "entry" | "shards":
            with lmdb.open(str(path.parent), max_dbs=16, map_size=1 << 30) as environment:
                handle = environment.open_db(b"keys" if how == "entry" else b"shards")
                with environment.begin(write=True, db=handle) as txn:
                    key, value = next(iter(txn.cursor()))
                    txn.put(key, value[:4] + bytes([value[4] ^ 1]) + value[5:])
    planned = repair(store.root)
    assert planned.index
    assert not planned.shards
    assert not planned.build
    assert store.verify().findings == ()
    assert not list((store.root / "quarantine").glob("*"))  # an index is derived: there is nothing to keep of it
    np.testing.assert_array_equal(store.vectors(), vectors)
    assert rebuilt(store) == (ids, 0)


def test_a_shard_damaged_together_with_the_index_is_still_salvaged(store):
    ids, path = manifests_of(store), store.shards()[0]
    store.flip(path, row_bytes(store, path, 3))
    store.flip(path, 40)  # in the schema
    shutil.rmtree(store.root / "index")
    planned = repair(store.root)
    assert [mend.salvaged for mend in planned.shards] == [31]
    assert [(one.label, one.vectors) for one in planned.build] == [("first@1", 1)]
    assert rebuilt(store) == (ids, 1)
    assert not store.verify().damage


def test_damaged_chunks_and_manifests_come_back_by_a_build_that_encodes_nothing(store):
    ids = manifests_of(store)
    with open_store(store.root, "r") as opened:
        key = next(read_chunks(store.root, opened.manifest("second"), "text"))[0][5].tobytes()
    (chunk,) = (path for path in (store.root / "chunks").rglob("*.arrow") if key in path.read_bytes())
    store.flip(chunk, chunk.read_bytes().index(key))
    store.flip(store.root / "manifests" / ids[0][:2] / f"{ids[0]}.json", 50)
    planned = repair(store.root)
    assert len(planned.files) == 2
    assert {(one.label, one.vectors, one.rows) for one in planned.build} == {("first@1", None, 0), ("second@1", 0, 40)}
    assert not planned.index
    assert rebuilt(store) == (ids, 0)
    assert not store.verify().damage


def test_a_log_keeps_what_can_be_read_and_is_mended_where_it_says_things_twice(store):
    store.build("first", 120)
    store.build("first", 130)
    path = store.root / "names" / "first.jsonl"
    lines = path.read_text().splitlines()
    versions = [json.loads(line) for line in lines]

    def repaired(changed):
        path.write_text("\n".join(changed) + "\n")
        planned = repair(store.root)
        assert not store.verify(read_data=False).damage
        kept = path.read_text().splitlines()
        (mend,) = planned.logs
        assert len(mend.versions) == len(kept)
        return kept

    assert repaired([lines[0], lines[1][:50], lines[2]]) == [lines[0], lines[2]]
    for field, wrong in (("version", 7), ("manifest", "ab" * 32), ("parent", "ab" * 32)):
        for at in range(2 if field == "manifest" else 3):
            changed = [*lines]
            changed[at] = json.dumps({**versions[at], field: wrong})
            assert repaired(changed) == lines, (field, at)
    doubted = [lines[0], lines[1].replace('"created": "20', '"created": "21'), lines[2]]
    (line,) = [line for line in repaired(doubted) if line not in lines]
    assert json.loads(line)["created"].startswith("21")  # its check was wrong: what it leads to is kept
    kept = sorted((store.root / "quarantine").iterdir())
    assert len(kept) == 10  # every damaged log as it was
    path.write_text("nothing\n")
    repair(store.root)
    assert not path.exists()


def test_damaged_tags_pins_and_header_are_set_aside(store):
    for folder, name in (("tags", "first@good.json"), ("pins", "run1.json")):
        (store.root / folder).mkdir(exist_ok=True)
        (store.root / folder / name).write_text("{")
    (store.root / "superseded.json").write_text("[")
    (store.root / "store.json").write_text("")
    planned = repair(store.root)
    assert planned.header
    assert set(planned.files) == {"tags/first@good.json", "pins/run1.json", "superseded.json"}
    assert not store.verify().damage
    assert rebuilt(store)[1] == 0


def test_all_kinds_of_damage_at_once_are_mended_in_one_repair(store):
    ids, vectors = manifests_of(store), store.vectors()
    draw = random.Random(11)
    for path in store.shards()[:3]:
        for at in draw.sample(range(path.stat().st_size), 3):
            store.flip(path, at)
    store.shards()[3].unlink()
    for folder in ("chunks", "manifests"):
        path = next(path for path in (store.root / folder).rglob("*.*") if path.is_file())
        store.truncate(path, path.stat().st_size // 2)
    (store.root / "names" / "first.jsonl").write_text("")
    store.truncate(store.root / "index" / "data.mdb", 9000)
    planned = repair(store.root)
    only_needs_a_build(store, planned)
    assert rebuilt(store)[0] == ids
    np.testing.assert_array_equal(store.vectors(), vectors)
    assert not store.verify().damage


def test_it_waits_for_builders_and_refuses_while_they_are_there(store):
    store.flip(store.shards()[0], 900)
    with open_store(store.root) as opened, opened.writing(), pytest.raises(StoreLocked):
        repair(store.root, wait=0.1)
    assert repair(store.root, wait=0.1).shards


def test_where_there_is_no_store_nothing_is_made(tmp_path):
    (tmp_path / "folder").mkdir()
    for place in ("nothing", "folder"):
        with pytest.raises(StoreNotFound):
            repair(tmp_path / place)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


def test_readers_with_views_go_on_while_it_is_repaired(store):
    path = store.shards()[0]
    store.flip(path, row_bytes(store, path, 3))
    with open_store(store.root, "r") as reader:
        second = reader.vectors("second", "text")[0]
        view = shard.open_shard(store.root, path.stem)
        before = view.vectors[5].tobytes()
        repair(store.root)
        assert view.vectors[5].tobytes() == before
        np.testing.assert_array_equal(reader.vectors("second", "text")[0], second)


STEP = """
import os, sys
from pathlib import Path
from cachestore import files
from cachestore.repair import repair
left = int(sys.argv[2])
def counted(name):
    real = getattr(os, name)
    def call(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return real(*arguments, **options)
    setattr(os, name, call)
for name in ("rename", "fsync", "unlink", "rmdir"):
    counted(name)
repair(Path(sys.argv[1]))
"""


def test_killed_at_any_step_it_loses_nothing_and_the_next_one_finishes(store, tmp_path):
    ids, vectors, path = manifests_of(store), store.vectors(), store.shards()[0]
    store.flip(path, row_bytes(store, path, 3))
    store.flip(store.shards()[1], 30)
    chunk = max((store.root / "chunks").rglob("*.arrow"), key=lambda path: path.stat().st_size)
    store.truncate(chunk, 100)
    log = store.root / "names" / "second.jsonl"
    log.write_text("{\n" + log.read_text())
    step, code = 0, 9
    while code == 9:
        copy = store.copy(tmp_path / f"copy{step}")
        done = subprocess.run([sys.executable, "-c", STEP, str(copy.root), str(step)], capture_output=True, check=False)
        code = done.returncode
        assert code in (0, 9), done.stderr.decode()
        planned = repair(copy.root)
        only_needs_a_build(copy, planned)
        before = len(copy.encoder.seen)
        assert rebuilt(copy)[0] == ids
        assert len(copy.encoder.seen) - before <= 1
        np.testing.assert_array_equal(copy.vectors(), vectors)
        assert not copy.verify().damage
        shutil.rmtree(copy.root)
        step += 5
    assert step > 20


def test_an_unindexed_damaged_shard_no_longer_stops_builds(store):
    keys = [bytes([number]) * 32 for number in range(4)]
    name, _ = shard.write(store.root, store.encoder.spec, keys, np.ones((4, 8), np.float16))
    path = layout.content_path(store.root, shard.FOLDER, name, shard.SUFFIX)
    store.flip(path, path.read_bytes().index(keys[2]))
    assert [mend.salvaged for mend in repair(store.root).shards] == [3]
    assert rebuilt(store)[1] == 0
    assert not store.verify().damage


def test_a_lost_line_of_a_log_is_told_by_its_version(store):
    store.build("first", 120)
    path = store.root / "names" / "first.jsonl"
    lines = path.read_text().splitlines()
    identity = json.loads(lines[1])["manifest"]
    path.write_text(f"{lines[0]}\n{{{lines[1][20:]}\n")
    planned = repair(store.root)
    ((lost,), complete) = planned.lost, planned.complete
    assert lost.what == "first@2"
    assert identity[:12] in lost.said
    assert "newest" in lost.said
    assert not complete
    assert repair(store.root).complete
    path.write_text("nothing\n")
    assert [lost.what for lost in repair(store.root).lost] == ["the name first"]


def kept_by(store):
    """A tag and a pin of the first version, and the bytes of their files."""
    with open_store(store.root) as opened:
        opened.tag("first", "good")
        identity = opened.manifest("first").id
        references.write_pin(store.root, references.Pin("run1", "/runs/one", (identity,), "2026-01-01T00:00:00+00:00"))
    places = [store.root / "tags" / "first@good.json", store.root / "pins" / "run1.json"]
    return identity, [(path, path.read_bytes()) for path in places]


@pytest.mark.parametrize("field", ["created", "check", "name", "run", "version", "path", "format"])
def test_a_tag_or_pin_whose_manifest_can_be_read_is_kept(store, field):
    identity, kept = kept_by(store)
    for path, data in kept:
        path.write_bytes(data.replace(f'"{field}":'.encode(), b'"x\xff":').replace(b'"check": "', b'"check": "0'))
    planned = repair(store.root)
    assert {mend.path for mend in planned.records} == {"tags/first@good.json", "pins/run1.json"}
    assert all("check it" in mend.said for mend in planned.records)
    assert planned.complete
    assert not store.verify().damage
    tag, pin = references.read_tag(store.root, "first", "good"), references.read_pin(store.root, "run1")
    assert (tag.manifest, tag.version, pin.manifests) == (identity, 1, (identity,))
    assert (pin.path == "/runs/one") == (field != "path")
    assert len(list((store.root / "quarantine").iterdir())) == 2


def test_a_tag_is_not_made_of_what_is_not_there_or_of_another_name(store):
    identity, ((tag, data), (pin, pinned)) = kept_by(store)
    with open_store(store.root, "r") as opened:
        other = opened.manifest("second").id
    broken = data.replace(b'"check": "', b'"check": "0')
    for content in (
        broken.replace(identity.encode(), b"ab" * 32),
        broken.replace(identity.encode(), other.encode()),
        broken.replace(identity[:20].encode(), b"?"),
        b"",
    ):
        tag.write_bytes(content)
        planned = repair(store.root)
        assert not planned.records, content
        assert [lost.what for lost in planned.lost] == ["the tag first@good"]
        assert not tag.exists()
    sealed = json.loads(data)
    del sealed["check"]
    tag.write_text(json.dumps(seal({**sealed, "tag": "fine"})))  # whole, and the file of another tag
    pin.write_bytes(pinned.replace(identity.encode(), b"ab" * 32).replace(b'"check": "', b'"check": "0'))
    planned = repair(store.root)
    assert [lost.what for lost in planned.lost] == ["the tag first@good", "the pin of run run1"]
    assert not planned.complete


@pytest.mark.parametrize("how", ["gone", "noise", "flipped", "no audit"])
def test_what_took_the_place_of_a_manifest_is_found_in_the_audit(store, how):
    kept_by(store)
    with open_store(store.root) as opened:
        forget(opened, [b"first row 3"])
        before = references.superseded(store.root)
        rows = opened.manifest("first@good").id
    path = store.root / "superseded.json"
    match how:
        case "gone":
            path.unlink()
        case "noise":
            path.write_bytes(b"\xff" * 50)
        case "flipped" | "no audit":
            path.write_bytes(path.read_bytes().replace(b'"check": "', b'"check": "0'))
    if how == "no audit":
        (store.root / "audit.jsonl").unlink()
    planned = repair(store.root, dry_run=True)
    assert planned.complete
    assert repair(store.root).complete
    assert references.superseded(store.root) == before
    assert not store.verify().damage
    with open_store(store.root, "r") as opened:
        assert opened.manifest("first@good").id == rows
    assert repair(store.root).empty


def test_without_audit_and_map_what_was_superseded_is_told_as_lost(store):
    (store.root / "superseded.json").write_text("[")
    planned = repair(store.root)
    assert [lost.what for lost in planned.lost] == ["superseded.json"]


@pytest.mark.parametrize("index", ["there", "gone"])
def test_a_shard_in_a_wrong_folder_goes_back_and_nothing_is_lost(store, index):
    ids, vectors, path = manifests_of(store), store.vectors(), store.shards()[0]
    wrong = store.root / "shards" / ("00" if path.parent.name != "00" else "01") / path.name
    wrong.parent.mkdir(exist_ok=True)
    path.rename(wrong)
    if index == "gone":
        shutil.rmtree(store.root / "index")
    for planned in (repair(store.root, dry_run=True), repair(store.root)):
        assert [(one.name, one.left) for one in planned.displaced] == [(path.stem, "")]
        assert planned.complete
        assert bool(planned.index) == (index == "gone")
    assert path.exists()
    assert not wrong.exists()
    assert rebuilt(store) == (ids, 0)
    np.testing.assert_array_equal(store.vectors(), vectors)
    assert not store.verify().damage


def test_a_displaced_shard_that_is_not_what_it_says_or_that_nothing_misses_is_left(store):
    path = store.shards()[0]
    wrong = store.root / "shards" / "copy" / path.name
    wrong.parent.mkdir()
    path.rename(wrong)
    store.flip(wrong, 900)
    planned = repair(store.root)
    assert [one.left[:9] for one in planned.displaced] == ["its bytes"]
    assert [(one.label, one.vectors) for one in planned.build] == [("first@1", 32)]
    rebuilt(store)
    assert path.exists()  # the same rows are the same shard
    (store.root / "shards" / "copy" / f"{'ab' * 32}.arrow").write_bytes(wrong.read_bytes())
    planned = repair(store.root)
    assert ["nothing misses" in one.left for one in planned.displaced] == [True]
    assert planned.complete
    assert wrong.exists()


def test_a_shard_that_was_dropped_from_the_index_meanwhile_goes_back_as_well(store):
    ids, path = manifests_of(store), store.shards()[0]
    wrong = store.root / "shards" / "copy" / path.name
    wrong.parent.mkdir()
    path.rename(wrong)
    store.build("third", 5)  # which drops what is gone from the index
    planned = repair(store.root)
    assert planned.complete
    assert rebuilt(store) == (ids, 0)
    assert not store.verify().damage


def test_a_folder_that_is_no_store_is_left_alone(tmp_path):
    for folders in (["shards"], ["shards", "names"]):
        for folder in folders:
            (tmp_path / folder).mkdir(exist_ok=True)
        with pytest.raises(StoreNotFound):
            repair(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(folders)


def test_a_chunk_that_repair_took_out_is_not_to_be_repaired_again(store):
    chunk = max((store.root / "chunks").rglob("*.arrow"), key=lambda path: path.stat().st_size)
    store.truncate(chunk, 100)
    (before,) = store.verify(read_data=False).damage
    assert "repair" in before.advice
    repair(store.root)
    (after,) = store.verify(read_data=False).damage
    assert "repair" not in after.advice
    assert "Build" in after.advice
    again = repair(store.root)
    assert again.empty
    assert not again.complete


def test_what_nobody_can_mend_is_told_until_it_is_dealt_with(store):
    kept_by(store)
    (store.root / "names" / "first.jsonl").unlink()
    (store.root / "forgetting.json").write_text("{")
    for _ in range(2):
        planned = repair(store.root)
        assert planned.empty
        assert not planned.complete
        assert [lost.what for lost in planned.lost] == ["names/first.jsonl", "forgetting.json"]
    store.build("first", 100)
    (store.root / "forgetting.json").unlink()
    assert repair(store.root).complete
