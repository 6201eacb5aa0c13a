"""Verify: a sound store passes, and every kind of damage is found, named and told apart from what harms nothing."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
import sys

import lmdb
import lmdb.verify
import numpy as np
import pytest

from cachestore import build, files, index_checker, index_file, layout, open_store, references, shard, verify_index
from cachestore import manifest as manifests
from cachestore.errors import ManifestNotFound, StoreError, StoreFormatError, StoreNotFound
from cachestore.findings import Findings
from cachestore.keys import Key, fingerprint
from cachestore.manifest import read_chunks
from cachestore.repair import repair
from cachestore.sealed import seal, unseal
from cachestore.verify import verify
from cachestore.verify_index import IndexCheck
from cachestore.verify_shards import Shards
from tests.store.counting import CountingEncoder
from tests.store.damage import Damaged, kinds


@pytest.fixture
def store(tmp_path):
    store = Damaged(tmp_path / "store", tmp_path)
    store.build("first", 100)
    store.build("second", 40)
    return store


def place(store, path):
    return str(path.relative_to(store.root))


def test_a_sound_store_has_no_finding_and_everything_was_looked_at(store):
    report = store.verify()
    assert report.findings == ()
    assert (report.manifests, report.chunks, report.shards) == (2, 2, len(store.shards()))
    assert report.cells == report.rows_read == 140
    assert report.bytes_read == sum(path.stat().st_size for path in store.shards())


def test_an_empty_store_and_one_of_a_missing_row_pass(tmp_path):
    open_store(tmp_path / "empty").close()
    assert verify(tmp_path / "empty", read_data=True).findings == ()
    data = tmp_path / "data.csv"
    data.write_text('text,n\na,1\n,2\nb,3\n"",4\n', encoding="utf-8")
    with open_store(tmp_path / "store") as opened:
        build(opened, data, {"text": CountingEncoder()})
    report = verify(tmp_path / "store", read_data=True)
    assert report.findings == ()
    assert report.cells == 3


def test_where_there_is_no_store_or_a_newer_one_it_says_so(store, tmp_path):
    with pytest.raises(StoreNotFound):
        verify(tmp_path / "nothing")
    with pytest.raises(ManifestNotFound):
        store.verify("third")
    (store.root / "store.json").write_text('{"format": 9, "features": []}')
    with pytest.raises(StoreFormatError, match="Upgrade"):
        store.verify()


def test_every_flipped_bit_of_a_shard_is_found_when_its_bytes_are_read(store):
    path = store.shards()[0]
    size = path.stat().st_size
    draw = random.Random(1)
    for at in [0, 8, 100, size - 1, *draw.sample(range(size), 20)]:
        store.flip(path, at, bit := draw.randrange(8))
        assert place(store, path) in {finding.what for finding in store.verify().damage}, at
        store.flip(path, at, bit)
    assert store.verify().findings == ()


def test_a_rotten_row_is_counted_in_the_shard_and_in_the_data_set(store):
    path = store.shards()[0]
    opened = shard.open_shard(store.root, path.stem)
    at = path.read_bytes().index(opened.vectors[3].tobytes())
    store.flip(path, at)
    by_kind = {finding.kind: finding for finding in store.verify().damage}
    assert set(by_kind) == {"shard", "vector"}
    assert "1 of 32 rows fail their check, the first is row 3" in by_kind["shard"].detail
    assert "repair" in by_kind["shard"].advice
    assert by_kind["vector"].what == "first@1"
    assert not store.verify(read_data=False).damage  # its form is that of a shard


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 200, 1000, -1])
def test_a_truncated_shard_is_found_without_reading_data(store, keep):
    path = store.shards()[0]
    store.truncate(path, keep if keep >= 0 else path.stat().st_size + keep)
    report = store.verify(read_data=False)
    assert kinds(report.damage) == {"shard", "vector"}
    assert place(store, path) in {finding.what for finding in report.damage}


def test_a_missing_and_a_foreign_shard_file_are_found(store):
    first, second, third = store.shards()[:3]
    first.unlink()
    second.chmod(0o644)
    second.write_bytes(third.read_bytes())  # swapped: sound in itself, but not what its name says
    damage = {finding.what: finding.detail for finding in store.verify().damage}
    assert "gone" in damage[place(store, first)]
    assert "SHA-256" in damage[place(store, second)]


def test_what_lies_in_the_place_of_a_shard_and_is_no_file_is_found(store):
    first, second, third = store.shards()[:3]
    for path in (first, second, third):
        path.unlink()
    first.mkdir()
    second.symlink_to("/etc/passwd")
    os.mkfifo(third)
    found = {finding.what for finding in store.verify().damage}
    assert {place(store, path) for path in (first, second, third)} <= found


def raw_shard(store, vectors, keys, checks=None):
    """A shard as no encoder of ours would write it, with the checks given."""
    with open_store(store.root) as opened, opened.writing():
        name, nbytes = shard.write(store.root, store.encoder.spec, keys, vectors)
        path = layout.content_path(store.root, shard.FOLDER, name, shard.SUFFIX)
        if checks is not None:
            found = shard.open_shard(store.root, name)
            data = path.read_bytes().replace(found.checks.tobytes(), checks.tobytes())
            path.unlink()
            name = files.write_once(store.root, shard.FOLDER, data, shard.SUFFIX)
        opened.index.commit(name, fingerprint(store.encoder.spec), store.encoder.spec, keys, nbytes)
    return name


def test_values_that_no_vector_has_and_zero_vectors_are_told_apart(store):
    keys = [Key(bytes([number]) * 32) for number in range(4)]
    vectors = np.ones((4, 8), np.float16)
    vectors[1, 3], vectors[2, 7], vectors[3] = np.nan, -np.inf, -0.0
    raw_shard(store, vectors, keys)
    raw_shard(store, np.zeros((1, 8), np.float16), [Key(b"z" * 32)])
    report = store.verify()
    (finding,) = report.damage
    assert "2 of 4 rows hold NaN or an infinity, the first is row 1" in finding.detail
    assert any("1 of 1 vectors are zero" in notice.detail for notice in report.notices)


def test_a_file_that_fits_its_name_with_rows_that_fail_their_checks_is_damage(store):
    raw_shard(store, np.ones((3, 8), np.float16), [Key(bytes([n]) * 32) for n in range(3)], np.zeros(3, np.uint64))
    (finding,) = store.verify().damage
    assert finding.detail == "3 of 3 rows fail their check, the first is row 0."


def lmdb_write(store, database, edit):
    with lmdb.open(str(store.root / "index"), max_dbs=16, map_size=1 << 30) as environment:
        handle = environment.open_db(database)
        with environment.begin(write=True, db=handle) as txn:
            edit(txn)


def first_key(store):
    return shard.open_shard(store.root, store.shards()[0].stem).keys[0].tobytes()


def test_an_index_entry_that_leads_elsewhere_or_nowhere_is_found(store):
    key = first_key(store)
    for wrong in ((0, 1), (1, 0), (0, 9999), (77, 0)):
        with lmdb.open(str(store.root / "index"), max_dbs=16, map_size=1 << 30) as environment:
            handle = environment.open_db(b"keys")
            with environment.begin(db=handle) as txn:
                right = txn.get(key)
        if struct.unpack("<II", right) == wrong:
            continue
        lmdb_write(store, b"keys", lambda txn, wrong=wrong: txn.put(key, struct.pack("<II", *wrong)))
        report = store.verify(read_data=False)
        assert kinds(report.damage) == {"index", "vector"}, wrong
        assert any("1 of its keys are at rows that do not hold them" in finding.detail for finding in report.damage)
        assert kinds(store.verify("first", read_data=False).damage) == {"vector"}
        lmdb_write(store, b"keys", lambda txn, right=right: txn.put(key, right))
    assert store.verify().findings == ()


def test_a_key_that_the_index_lacks_and_one_it_should_not_have_are_found(store):
    key = first_key(store)
    lmdb_write(store, b"keys", lambda txn: (txn.put(b"!" * 32, txn.get(key)), txn.delete(key)))
    details = " ".join(finding.detail for finding in store.verify(read_data=False).damage)
    assert "It lacks 1 of the 32 keys" in details
    assert "1 of its keys are at rows that do not hold them" in details
    assert "1 are not in the store" in details


def test_values_of_odd_sizes_in_the_index_are_found(store):
    key = first_key(store)
    lmdb_write(store, b"keys", lambda txn: txn.put(key, b"short"))
    assert kinds(store.verify(read_data=False).damage) == {"index"}


def test_what_the_index_says_of_a_shard_is_compared_with_its_file(store):
    def edit(txn):
        number, value = next(iter(txn.cursor()))
        digest, encoder, rows, nbytes = struct.unpack("<32s32sIQ", value)
        txn.put(number, struct.pack("<32s32sIQ", digest, encoder, rows + 1, nbytes))

    lmdb_write(store, b"shards", edit)
    assert kinds(store.verify(read_data=False).damage) == {"index"}


@pytest.mark.parametrize("names", [(), ("first",)])
@pytest.mark.parametrize("how", ["gone", "empty", "noise", "torn", "zeros", "folder"])
def test_a_damaged_index_is_a_finding_and_never_a_crash(store, how, names):
    path = store.root / "index" / "data.mdb"
    size = path.stat().st_size
    match how:
        case "gone":
            shutil.rmtree(path.parent)
        case "empty":
            store.truncate(path, 0)
        case "torn":
            store.truncate(path, 4096 * 3)
        case "noise":
            path.write_bytes(random.Random(0).randbytes(size))
        case "zeros":
            store.change(path, lambda data: data.__setitem__(slice(8192, size), bytes(size - 8192)))
        case "folder":
            path.unlink()
            path.mkdir()
    report = store.verify(*names)
    assert "index" in kinds(report.damage)
    assert not report.indexed
    assert kinds(report.damage) <= {"index"}  # the rest could not be asked, and is not accused


def test_flipped_bits_of_the_index_are_found_or_harmless(store):
    """Free pages and slack may flip; what a lookup gives may not change unseen."""
    path = store.root / "index" / "data.mdb"
    before = store.vectors()
    draw = random.Random(3)
    size = path.stat().st_size
    for _ in range(20):
        at, bit = draw.randrange(size), draw.randrange(8)
        store.flip(path, at, bit)
        report = store.verify(read_data=False)
        if not report.damage:
            np.testing.assert_array_equal(store.vectors(), before)
        store.flip(path, at, bit)


def test_the_checker_and_lmdbs_own_agree(store, tmp_path):
    draw = random.Random(5)
    source = store.root / "index" / "data.mdb"
    for number in range(20):
        folder = tmp_path / str(number)
        folder.mkdir()
        data = bytearray(source.read_bytes())
        for _ in range(number):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        (folder / "data.mdb").write_bytes(data)
        try:
            theirs = bool(lmdb.verify.verify(str(folder)))
        except lmdb.verify.VerifyError:
            theirs = True
        ours = index_file.examine(folder).problems
        assert bool(ours) >= theirs, ours
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        ("raise MemoryError('no room')", "MemoryError: no room"),
        ("import lmdb_of_another_kind", "No module named"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("raise SystemExit(2)", "ended with 2"),
    ],
)
def test_a_checker_that_cannot_finish_is_no_damage_and_repair_leaves_the_index(
    store, tmp_path, monkeypatch, ending, said
):
    program = tmp_path / "checker.py"
    program.write_text(ending, encoding="utf-8")
    monkeypatch.setattr(index_file, "_PROGRAM", str(program))
    path = store.root / "index" / "data.mdb"
    before = (path.stat().st_ino, path.read_bytes())
    for act in (store.verify, lambda: repair(store.root)):
        with pytest.raises(StoreError, match="could not be checked") as caught:
            act()
        assert said in str(caught.value)
        assert caught.value.exit_code == 3
    assert (path.stat().st_ino, path.read_bytes()) == before


OTHER_LMDB = """
import os, runpy, sys
import lmdb.verify as module
true = module._Verifier

def verify(path, subdir=None):
    with open(path, "rb") as file:
        return true(file, os.path.getsize(path)).verify()

class Changed(true):
    def _walk_leaf(self, ctx, pgno, buf, depth):
        raise AssertionError("called as it was before")

class Renamed:
    _read_at, _walk_leaf = true._read_at, true._walk_leaf

module.verify = verify
{change}
sys.argv[0] = {program!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("change", ["del module._Verifier", "module._Verifier = Renamed", "module._Verifier = Changed"])
def test_an_lmdb_with_another_private_checker_is_used_by_its_public_one(store, tmp_path, monkeypatch, change):
    program = tmp_path / "checker.py"
    program.write_text(OTHER_LMDB.format(change=change, program=index_file._PROGRAM), encoding="utf-8")
    folder = store.root / "index"
    usual = np.concatenate(index_file.examine(folder, keys=True).nodes)
    monkeypatch.setattr(index_file, "_PROGRAM", str(program))
    found = index_file.examine(folder, keys=True)
    assert found.problems == []
    assert len(usual) == 140
    assert np.concatenate(found.nodes).tobytes() == usual.tobytes()
    assert store.verify().findings == ()
    lmdb_write(store, b"keys", lambda txn: txn.put(b"k" * 32, b"odd"))
    assert index_file.examine(folder).problems
    store.change(folder / "data.mdb", lambda data: data.__setitem__(slice(8192, None), bytes(len(data) - 8192)))
    assert index_file.examine(folder).problems


def test_the_lmdb_installed_here_has_what_the_fast_way_needs():
    assert index_checker._has_hooks()


def test_a_held_snapshot_is_a_reader_of_the_index(store):
    folder = store.root / "index"
    with index_file._held(folder), lmdb.open(str(folder), max_dbs=8, lock=True) as environment:
        assert len(environment.readers().splitlines()) == 2  # a title, and the one that holds
    with lmdb.open(str(folder), max_dbs=8, lock=True) as environment:
        assert "no active readers" in environment.readers()


def test_damaged_and_missing_chunks_and_manifests_are_found(store):
    for folder, kind in (("chunks", "chunk"), ("manifests", "manifest")):
        copy = store.copy(store.folder / f"flipped {folder}")
        paths = sorted((copy.root / folder).rglob("*.*"))
        for path in (path for path in paths if path.is_file()):
            copy.flip(path, path.stat().st_size // 2)
        assert kinds(copy.verify().damage) == {kind}
        copy = store.copy(store.folder / f"gone {folder}")
        shutil.rmtree(copy.root / folder)
        damage = copy.verify().damage
        assert kinds(damage) == {kind}
        assert len(damage) == 2


def test_every_flipped_bit_of_a_chunk_that_is_read_is_found(store):
    path = max((path for path in (store.root / "chunks").rglob("*.arrow")), key=lambda path: path.stat().st_size)
    whole = path.read_bytes()
    with open_store(store.root, "r") as opened:
        first = opened.manifest("first")
        before = list(read_chunks(store.root, first, "text"))
    draw = random.Random(2)
    for at in draw.sample(range(len(whole)), 30):
        store.flip(path, at, draw.randrange(8))
        if not store.verify("first", read_data=False).damage:
            for (keys, why), (old_keys, old_why) in zip(read_chunks(store.root, first, "text"), before, strict=True):
                assert (keys == old_keys).all()
                assert (why == old_why).all()
        path.write_bytes(whole)


def test_logs_are_checked_line_by_line_and_against_each_other(store):
    store.build("first", 120)
    store.build("first", 130)
    path = store.root / "names" / "first.jsonl"
    lines = path.read_text().splitlines()
    versions = [json.loads(line) for line in lines]

    def verified(changed):
        path.write_text("\n".join(changed) + "\n")
        return store.verify(read_data=False)

    assert kinds(verified([lines[0], "{torn", lines[2]]).damage) == {"log"}
    assert kinds(verified([lines[0], lines[1].replace('"20', '"21'), lines[2]]).damage) == {"log"}
    assert kinds(verified([lines[0], lines[2], lines[1]]).damage) == {"log"}
    other = json.dumps({**versions[1], "manifest": versions[0]["manifest"]})
    assert kinds(verified([lines[0], other, lines[2]]).damage) == {"log"}
    gap = verified([lines[0], lines[2]])
    assert not gap.damage
    assert "Versions 2 to 2 are missing" in " ".join(finding.detail for finding in gap.notices)
    lost = verified([*lines[:2], json.dumps(seal({**unseal(versions[2]), "manifest": "ab" * 32}))])
    assert {finding.what for finding in lost.damage} == {"first@3"}
    old = verified(
        [
            json.dumps(seal({**unseal(versions[0]), "manifest": "ab" * 32})),
            json.dumps(seal({**unseal(versions[1]), "parent": "ab" * 32})),
            lines[2],
        ]
    )
    assert not old.damage  # gc collects old versions
    assert "first@1" in {finding.what for finding in old.notices}
    assert verified(lines).findings == ()


def test_tags_pins_and_the_map_of_superseded_manifests_are_checked(store):
    with open_store(store.root) as opened:
        first = opened.manifest("first").id
    references.write_tag(store.root, references.Tag("first", "good", 1, first, "2026-01-01T00:00:00+00:00"))
    references.write_pin(store.root, references.Pin("run1", "/runs/one", (first,), "2026-01-01T00:00:00+00:00"))
    assert store.verify().findings == ()
    tag, pin = store.root / "tags" / "first@good.json", store.root / "pins" / "run1.json"
    whole = [path.read_text() for path in (tag, pin)]
    tag.write_text(whole[0][:-9])
    pin.write_text("[]")
    (store.root / "superseded.json").write_text("{")
    assert kinds(store.verify().damage) == {"tag", "pin", "superseded"}
    (store.root / "superseded.json").unlink()
    for path, text in zip((tag, pin), whole, strict=True):
        path.write_text(text.replace("2026", "2027"))
    assert kinds(store.verify().damage) == {"tag", "pin"}, "their checks are wrong"
    for path, text in zip((tag, pin), whole, strict=True):
        path.write_text(json.dumps(seal(json.loads(json.dumps(unseal(json.loads(text))).replace(first, "cd" * 32)))))
    gone = store.verify().damage
    assert {finding.what for finding in gone} == {"first@good", "run /runs/one"}


def test_a_damaged_header_is_a_finding_and_the_rest_is_still_checked(store):
    (store.root / "store.json").write_text('{"form')
    report = store.verify()
    assert kinds(report.damage) == {"header"}
    assert report.cells == 140
    (store.root / "store.json").unlink()
    assert kinds(store.verify().damage) == {"header"}


def test_leftovers_are_notices(store):
    (store.root / "tmp" / "killed").write_bytes(b"half")
    (store.root / "quarantine").mkdir()
    (store.root / "quarantine" / "old").write_bytes(b"rotten")
    (store.root / "index.damaged-1").mkdir()
    with open_store(store.root) as opened:
        opened.embed(["of no data set"], CountingEncoder(other=1))
        build(opened, {"text": ["in memory"]}, {"text": store.encoder})
    (store.root / "tmp" / "killed").write_bytes(b"half")
    report = store.verify()
    assert not report.damage
    assert {finding.what for finding in report.notices} == {
        "tmp",
        "quarantine",
        "index.damaged-1",
        "shards",
        "manifests",
    }


def test_an_unindexed_shard_is_a_notice_when_it_is_sound_and_damage_when_it_is_not(store):
    keys = [Key(b"a" * 32)]
    name, _ = shard.write(store.root, store.encoder.spec, keys, np.ones((1, 8), np.float16))
    report = store.verify(read_data=False)
    assert not report.damage
    assert "not indexed yet" in report.notices[0].detail
    store.flip(layout.content_path(store.root, shard.FOLDER, name, shard.SUFFIX), 700)
    assert kinds(store.verify(read_data=False).damage) == {"shard"}


def test_a_name_is_checked_alone(store):
    with open_store(store.root, "r") as opened:
        keys = next(read_chunks(store.root, opened.manifest("second"), "text"))[0]
        place_of = opened.index.lookup(keys.tolist())
        names = opened.index.names(set(place_of.shards.tolist()))
    for name in names.values():
        layout.content_path(store.root, shard.FOLDER, name, shard.SUFFIX).unlink()
    assert not store.verify("first").damage
    assert store.verify("first@1", "first").manifests == 1
    assert kinds(store.verify("second").damage) == {"vector", "shard"}
    assert store.verify("first").rows_read == 100


def test_a_sample_reads_part_of_the_bytes_and_the_same_part_for_the_same_seed(store):
    sizes = [path.stat().st_size for path in store.shards()]
    read = {seed: store.verify(read_data=False, sample=0.3, seed=seed).bytes_read for seed in range(8)}
    assert all(0.3 * sum(sizes) <= nbytes < 0.3 * sum(sizes) + max(sizes) for nbytes in read.values())
    report = store.verify(read_data=False, sample=0.3)
    again = store.verify(read_data=False, sample=0.3, seed=report.seed)
    assert again.bytes_read == report.bytes_read
    store.flip(
        path := store.shards()[0], path.read_bytes().index(shard.open_shard(store.root, path.stem).vectors[3].tobytes())
    )
    found = [bool(store.verify(read_data=False, sample=0.3, seed=seed).damage) for seed in range(12)]
    assert set(found) == {True, False}


def test_an_index_larger_than_a_part_is_taken_part_by_part(store, monkeypatch):
    monkeypatch.setattr("cachestore.verify_index._PART", 16)
    monkeypatch.setattr("cachestore.index_file._BLOCK", 8)
    assert store.verify().findings == ()
    assert store.verify().cells == 140
    monkeypatch.setattr("cachestore.index_file._KEPT_BYTES", 0)  # and read a second time
    assert store.verify().findings == ()
    key = first_key(store)
    lmdb_write(store, b"keys", lambda txn: txn.delete(key))
    assert kinds(store.verify().damage) == {"index", "vector"}


def test_an_index_is_checked_by_whole_pages_as_node_by_node(store, tmp_path, monkeypatch):
    keys = [Key(bytes([at % 256, at // 256]) * 16) for at in range(3000)]
    for start in range(0, len(keys), 500):
        raw_shard(store, np.zeros((500, store.encoder.dim), np.float16), keys[start : start + 500])
    folder = store.root / "index"
    slow = index_file._by_nodes(folder, True)
    quick = index_file._by_pages(folder, True)
    assert quick is not None
    assert quick[:2] == slow[:2] == (0, [])
    assert np.concatenate(quick[2]).tobytes() == np.concatenate(slow[2]).tobytes()
    monkeypatch.setattr(index_file, "_BY_PAGES", 0)
    monkeypatch.setattr(index_file, "_PAGES", 4)
    for kept in (1 << 30, 0):
        monkeypatch.setattr(index_file, "_KEPT_BYTES", kept)
        found = np.concatenate(list(index_file.examine(folder, keys=True).blocks()))
        assert found.tobytes() == np.concatenate(slow[2]).tobytes()
    # an odd node near the end: the pages before it are not told twice
    monkeypatch.setattr(index_file, "_KEPT_BYTES", 1 << 30)
    lmdb_write(store, b"keys", lambda txn: txn.put(b"\xff" * 32, b"odd"))
    assert index_file._by_pages(folder, True) is None
    problems = index_file.examine(folder, keys=True).problems
    assert "is not a key of 32 bytes with a place of 8" in " ".join(problems)
    read = np.concatenate(list(index_file.Examined(folder, [], None).blocks()))
    assert read["key"].tobytes() == np.concatenate(slow[2])["key"].tobytes()


def test_a_key_in_two_shards_is_no_damage(store):
    keys = [Key(key) for key in shard.open_shard(store.root, store.shards()[0].stem).keys[:3].tolist()]
    raw_shard(store, shard.open_shard(store.root, store.shards()[0].stem).vectors[:3], keys)
    assert not store.verify().damage


def test_it_is_silent_while_others_build_and_collect(store):
    """A process builds, and rebuilds the index, as fast as it can; no check may take the change for damage."""
    program = """
import sys
from pathlib import Path
from cachestore import build, open_store
from tests.store.counting import CountingEncoder
from cachestore.fill import Limits
root = sys.argv[1]
print("ready", flush=True)
with open_store(root) as store:
    for number in range(10_000):
        build(store, {"text": [f"{number} {row}" for row in range(20)]}, {"text": CountingEncoder()}, f"loop{number % 3}")
        if number % 5 == 4:
            with store.alone():
                store.rebuild_index()
"""
    with subprocess.Popen([sys.executable, "-c", program, str(store.root)], stdout=subprocess.PIPE) as builder:
        try:
            assert builder.stdout
            assert builder.stdout.readline() == b"ready\n"
            for number in range(12):
                report = store.verify(read_data=number % 2 == 0)
                assert not report.damage, report.damage
            assert not store.verify("loop0", "first").damage
            assert builder.poll() is None
        finally:
            builder.kill()
    assert not store.verify().damage


def test_a_store_that_may_only_be_read_is_checked_and_left_as_it_is(store):
    seen = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
    store.verify()
    changed = {path for path in store.root.rglob("*") if path.stat().st_mtime_ns != seen.get(path)}
    assert changed <= {store.root / "index" / "lock.mdb"}  # LMDB registers its readers there


def test_an_open_store_of_this_process_does_not_mind(store):
    with open_store(store.root) as opened:
        assert store.verify().findings == ()
        opened.embed(["and it still writes"], store.encoder)
    assert not store.verify().damage


def test_places_are_told_apart(store, monkeypatch):
    """What the index check says of a key decides what a report says of a row."""
    with open_store(store.root, "r") as opened:
        findings = Findings()
        check = IndexCheck(opened.index, Shards(store.root, findings), findings)
        keys = shard.open_shard(store.root, store.shards()[0].stem).keys
        states, names = check.places(keys)
        assert set(states.tolist()) == {verify_index.RIGHT}
        assert names == {store.shards()[0].stem}
        assert set(check.places(keys, fingerprint(CountingEncoder(x=1).spec), 8)[0].tolist()) == {verify_index.FOREIGN}
        assert set(check.places(keys, fingerprint(store.encoder.spec), 9)[0].tolist()) == {verify_index.FOREIGN}
        unknown = np.frombuffer(b"?" * 32, "V32")
        assert check.places(unknown)[0].tolist() == [verify_index.ABSENT]


def test_what_has_not_the_form_of_a_stores_file_is_a_notice_and_changes_nothing_else(store):
    references.write_tag(store.root, references.Tag("first", "kept", 1, store.build().manifest.id, "2026-01-01"))
    (store.root / "pins").mkdir()
    before = store.verify()
    strays = []
    for path in [
        path for folder in ("shards", "chunks", "manifests", "names", "tags") for path in files_below(store, folder)
    ]:
        strays += [path.with_name(f"._{path.name}"), path.with_name(f"{path.stem} copy{path.suffix}")]
    strays += [
        store.root / "shards" / "ab" / "nothex.arrow",
        store.root / "pins" / "._p.json",
        store.root / "shards" / "x.txt",
    ]
    first = store.shards()[0]
    strays += [store.root / "shards" / "zz" / first.name]
    for path in strays:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(first.read_bytes())

    report = store.verify()
    assert report.damage == ()
    assert {finding.what for finding in report.notices} == {place(store, path) for path in strays}
    assert (report.manifests, report.chunks, report.shards) == (before.manifests, before.chunks, before.shards)
    assert manifests.names(store.root) == ["first", "second"]
    assert [tag.tag for tag in references.tags(store.root)] == ["kept"]
    assert references.pins(store.root) == []
    assert store.build("first", 100).counts.encoded == 0


def files_below(store, folder):
    return [path for path in (store.root / folder).rglob("*") if path.is_file()]


def displace(store):
    """Move a shard by hand; returns where it was and where it lies."""
    path = store.shards()[0]
    elsewhere = path.parent.with_name("cd" if path.parent.name != "cd" else "ce") / path.name
    elsewhere.parent.mkdir(exist_ok=True)
    path.rename(elsewhere)
    return path, elsewhere


@pytest.mark.parametrize("indexed", [True, False])
def test_a_shard_in_a_wrong_folder_is_missed_and_it_says_where_it_lies(store, indexed):
    path, elsewhere = displace(store)
    if not indexed:
        shutil.rmtree(store.root / "index")
    report = store.verify()
    (found,) = (finding for finding in report.damage if finding.kind == "shard")
    assert found.what == place(store, path)
    assert place(store, elsewhere) in found.detail
    assert place(store, elsewhere) not in {finding.what for finding in report.findings}
    repair(store.root)
    assert path.exists()
    assert store.verify().damage == ()


@pytest.mark.parametrize("indexed", [True, False])
def test_a_build_encodes_again_what_lies_in_a_wrong_folder(store, indexed):
    vectors = store.vectors()
    displace(store)
    if not indexed:
        shutil.rmtree(store.root / "index")
    assert store.build("first", 100).counts.encoded > 0
    np.testing.assert_array_equal(store.vectors(), vectors)
    assert store.verify().damage == ()


def test_a_displaced_file_that_is_not_what_its_name_says_is_only_a_stray(store):
    path, elsewhere = displace(store)
    store.flip(elsewhere, 700)
    report = store.verify()
    (found,) = (finding for finding in report.damage if finding.kind == "shard")
    assert place(store, elsewhere) not in found.detail
    assert place(store, elsewhere) in {finding.what for finding in report.notices}
    assert not path.exists()


def test_tags_whose_log_is_gone_are_a_finding_and_still_lead_to_their_versions(store):
    first = store.build("first", 100).manifest
    references.write_tag(store.root, references.Tag("first", "kept", 1, first.id, "2026-01-01"))
    (store.root / "names" / "first.jsonl").unlink()
    for names in ([], ["first@kept"]):
        (found,) = store.verify(*names).damage
        assert (found.kind, found.what) == ("name", "names/first.jsonl")
        assert "first@kept" in found.detail
    assert references.resolve(store.root, "first@kept") == first.id
    with pytest.raises(ManifestNotFound, match="first@kept"):
        references.resolve(store.root, "first")
    anew = store.build("first", 50)
    assert store.verify().damage == ()
    tag = references.read_tag(store.root, "first", "kept")
    assert anew.manifest.id != first.id
    assert references.frozen(store.root, tag, manifests.read_log(store.root, "first")) is None
