"""The store: opens where it may, refuses clearly where not, serves what was put and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import cachestore
from cachestore import layout, locks, open_store, references, shard
from cachestore.build import run as run_build
from cachestore.errors import (
    DamageError,
    DataError,
    EncoderError,
    ManifestNotFound,
    MissingVector,
    StoreError,
    StoreFormatError,
    StoreLocked,
    StoreNotFound,
    StoreNotReadable,
    StoreNotWritable,
    UsageError,
)
from cachestore.fill import Limits
from cachestore.index import Index
from cachestore.keys import fingerprint, keys
from tests.store.counting import CountingEncoder

AS_ROOT = os.geteuid() == 0


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "store") as opened:
        yield opened


def snapshot(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "lock.mdb"
    }


def test_place_is_argument_then_environment_then_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CACHESTORE_STORE", raising=False)
    with open_store() as opened:
        assert opened.root == tmp_path / "home" / ".cache" / "cachestore"
    monkeypatch.setenv("CACHESTORE_STORE", str(tmp_path / "env"))
    with open_store() as opened:
        assert opened.root == tmp_path / "env"
    with open_store(tmp_path / "given") as opened:
        assert opened.root == tmp_path / "given"


def test_embed_encodes_once_and_keeps_the_order(store):
    encoder = CountingEncoder()
    first = store.embed(["b", "a", "b", ""], encoder)
    assert encoder.seen == [b"b", b"a", b""]
    assert first.dtype == np.float16
    np.testing.assert_array_equal(first, CountingEncoder().encode([b"b", b"a", b"b", b""]).astype(np.float16))
    again = store.embed(["a", "c", "b"], encoder)
    assert encoder.seen == [b"b", b"a", b"", b"c"]
    np.testing.assert_array_equal(again[[0, 2]], first[[1, 0]])
    assert store.embed([], encoder).shape == (0, 8)


def test_what_was_put_survives_reopening(tmp_path):
    with open_store(tmp_path / "store") as store:
        expected = store.embed(["a", "b"], CountingEncoder())
    encoder = CountingEncoder()
    with open_store(tmp_path / "store", mode="r") as store:
        np.testing.assert_array_equal(store.embed(["b", "a"], encoder), expected[::-1])
    assert encoder.seen == []


def test_encoders_never_share_vectors(store):
    store.embed(["a"], CountingEncoder())
    for change in ({"pooling": "max"}, {"dtype": "float32"}, {"precision": "bfloat16"}):
        other = CountingEncoder(**change)
        store.embed(["a"], other)
        assert other.seen == [b"a"], change


def test_many_shards_are_gathered_in_order(store):
    encoder = CountingEncoder()
    names = keys(fingerprint(encoder.spec), [str(number).encode() for number in range(500)])
    with store.writing():
        fill = store.fill(encoder, Limits(shard_rows=7, window_rows=5))
        fill.add({name: str(number).encode() for number, name in enumerate(names)})
        fill.flush()
    assert len(store.index.shards()) > 40  # more than are kept mapped
    order = np.random.default_rng(0).permutation(500)
    texts = [str(number) for number in order]
    np.testing.assert_array_equal(
        store.embed(texts, encoder), encoder.encode([text.encode() for text in texts]).astype(np.float16)
    )


def test_a_store_is_not_made_where_it_should_not_be(tmp_path):
    with pytest.raises(StoreNotFound, match="no store at"):
        open_store(tmp_path / "absent", mode="r")
    assert not (tmp_path / "absent").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("x")
    with pytest.raises(StoreFormatError, match=r"not empty.*thesis\.doc"):
        open_store(tmp_path / "full")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreNotFound, match="not a directory"):
        open_store(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "thesis.doc"]


@pytest.mark.parametrize("header", [{"format": 2, "features": []}, {"format": 1, "features": ["encryption"]}])
def test_a_newer_format_is_refused_and_left_alone(tmp_path, header):
    open_store(tmp_path / "store").close()
    (tmp_path / "store" / "store.json").write_text(json.dumps(header))
    before = snapshot(tmp_path / "store")
    for mode in ("r", "w"):
        with pytest.raises(StoreFormatError, match="Upgrade"):
            open_store(tmp_path / "store", mode=mode)
    assert snapshot(tmp_path / "store") == before


@pytest.mark.parametrize("header", ["", "{", "[]", "{}", '{"format": "x", "features": []}'])
def test_a_header_that_is_none_is_refused(tmp_path, header):
    open_store(tmp_path / "store").close()
    (tmp_path / "store" / "store.json").write_text(header)
    with pytest.raises(StoreFormatError, match=r"store\.json"):
        open_store(tmp_path / "store")


def test_a_store_opened_for_reading_never_writes(tmp_path):
    with open_store(tmp_path / "store") as store:
        store.embed(["a"], CountingEncoder())
    before = snapshot(tmp_path / "store")
    with open_store(tmp_path / "store", mode="r") as store:
        store.embed(["a"], CountingEncoder())
        with pytest.raises(StoreNotWritable, match="open for reading only"):
            store.embed(["new"], CountingEncoder())
        store.digest(tmp_path / "store" / "store.json")
    assert snapshot(tmp_path / "store") == before


@pytest.mark.skipif(AS_ROOT, reason="root may write anywhere")
def test_a_folder_without_permission_says_so(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreNotWritable, match="--store"):
        open_store(tmp_path / "store")
    tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (shutil.rmtree, None),
        (lambda folder: (folder / "data.mdb").write_bytes(os.urandom(20_000)), "A new one is filled"),
        (lambda folder: os.truncate(folder / "data.mdb", 5000), "A new one is filled"),
    ],
    ids=["deleted", "garbage", "truncated"],
)
def test_the_index_is_a_cache(tmp_path, harm, said):
    with open_store(tmp_path / "store") as store:
        expected = store.embed(["a", "b", "c"], CountingEncoder())
    harm(tmp_path / "store" / "index")
    encoder = CountingEncoder()
    with pytest.warns(UserWarning, match=said) if said else contextlib.nullcontext():
        store = open_store(tmp_path / "store")
    with store:
        with store.writing():
            pass
        np.testing.assert_array_equal(store.embed(["a", "b", "c"], encoder), expected)
    assert encoder.seen == []


def test_a_shard_that_was_deleted_is_encoded_again(tmp_path):
    with open_store(tmp_path / "store") as store:
        store.embed(["a", "b"], CountingEncoder())
        kept = store.embed(["c"], CountingEncoder())
        victim = next(entry.name for entry in store.index.shards().values() if entry.rows == 2)
        layout.content_path(store.root, shard.FOLDER, victim, shard.SUFFIX).unlink()
    encoder = CountingEncoder()
    with open_store(tmp_path / "store") as store:
        with store.writing():
            pass
        np.testing.assert_array_equal(store.embed(["a", "b", "c"], encoder)[2:], kept)
    assert encoder.seen == [b"a", b"b"]


def test_a_damaged_shard_is_not_indexed_again(tmp_path):
    with open_store(tmp_path / "store") as store:
        store.embed(["a"], CountingEncoder())
    (path,) = (tmp_path / "store" / "shards").rglob("*.arrow")
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    shutil.rmtree(tmp_path / "store" / "index")
    with open_store(tmp_path / "store") as store, pytest.raises(DamageError, match=path.stem), store.writing():
        pass


def test_a_lost_vector_is_named_by_row(store):
    manifest = cachestore.build(store, {"text": ["a", None, "b"]}, {"text": CountingEncoder()})
    store.index.drop(store.index.shards())
    with pytest.raises(MissingVector, match=r"row 0 .* of column 'text'.*nor have 1 of the rows after it"):
        store.vectors(manifest, "text")


@pytest.mark.parametrize(("bad", "why"), [(np.nan, "NaN"), (np.inf, "infinity"), (70000.0, "float16")])
def test_a_bad_vector_is_never_stored(store, bad, why):
    class Faulty(CountingEncoder):
        def encode(self, payloads):
            vectors = super().encode(payloads).copy()
            vectors[[payload == b"bad" for payload in payloads], 3] = bad
            return vectors

    with pytest.raises(DataError, match=why):
        store.embed(["good", "bad"], Faulty())
    assert store.missing(keys(fingerprint(Faulty().spec), [b"good", b"bad"])) == keys(
        fingerprint(Faulty().spec), [b"bad"]
    )


def test_a_wrong_count_of_vectors_stores_nothing(store):
    class Faulty(CountingEncoder):
        def encode(self, payloads):
            return super().encode(payloads)[:-1]

    with pytest.raises(EncoderError, match=r"shape \(1, 8\) for 2 payloads"):
        store.embed(["a", "b"], Faulty())
    assert not store.index.shards()


@pytest.mark.parametrize("text", ["a\ud800b", None, 3])
def test_texts_that_are_none_are_named(store, text):
    with pytest.raises(DataError, match="Text 1"):
        store.embed(["a", text], CountingEncoder())


def test_writers_wait_for_who_holds_the_store_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(cachestore.header, "LOCK_SECONDS", 0.1)
    with open_store(tmp_path / "store") as store:
        with (
            locks.held(store.root, "builders", exclusive=True, timeout=0),
            pytest.raises(StoreLocked, match="in use by this process itself"),
        ):
            store.embed(["a"], CountingEncoder())
        store.embed(["a"], CountingEncoder())


def test_temporary_files_are_swept_only_by_a_lone_writer(store):
    left = store.root / "tmp" / "left-by-a-killed-writer"
    left.write_bytes(b"x")
    with locks.held(store.root, "builders", exclusive=False, timeout=0), store.writing():
        assert left.exists()
    with store.writing():
        assert not left.exists()


def test_threads_share_a_store(store):
    encoder = CountingEncoder()
    results = {}

    def embed(number):
        results[number] = store.embed([f"{number}-{row}" for row in range(20)], encoder)

    threads = [threading.Thread(target=embed, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, vectors in results.items():
        np.testing.assert_array_equal(
            vectors, encoder.encode([f"{number}-{row}".encode() for row in range(20)]).astype(np.float16)
        )


def test_digests_are_remembered_but_never_believed(store, tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    os.utime(path, (1, 1))
    first = store.digest(path)
    assert store.digest(path) == first
    path.write_bytes(b"two")
    os.utime(path, (1, 1))  # same size and mtime: only ctime tells
    assert store.digest(path) != first


def test_a_digest_is_remembered_the_first_time(store, tmp_path, monkeypatch):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    later = time.time() + 60
    monkeypatch.setattr(time, "time", lambda: later)
    first = store.digest(path)
    monkeypatch.setattr(cachestore.encoders, "sha256_of_file", lambda path: pytest.fail("read again"))
    assert store.digest(path) == first


def two_shards_of_the_same_keys_less_the_first(tmp_path):
    """A store from which a shard was deleted that held the keys of another as well; returns its number, those keys and their vectors."""
    encoder = CountingEncoder()
    names = keys(fingerprint(encoder.spec), [b"a", b"b"])
    vectors = encoder.encode([b"a", b"b"]).astype(np.float16)
    with open_store(tmp_path / "store") as store, store.writing():
        number, _ = store.put(encoder.spec, names, vectors)
        store.put(encoder.spec, names[::-1], vectors[::-1])
        victim = store.index.shards()[number].name
    layout.content_path(tmp_path / "store", shard.FOLDER, victim, shard.SUFFIX).unlink()
    return number, names, vectors


def test_a_dropped_shard_leaves_its_keys_to_another_that_holds_them(tmp_path):
    _, _, vectors = two_shards_of_the_same_keys_less_the_first(tmp_path)
    with open_store(tmp_path / "store") as store:
        with store.writing():
            assert store.settled()
        again = CountingEncoder()
        np.testing.assert_array_equal(store.embed(["a", "b"], again), vectors)
    assert again.seen == []


def test_one_store_under_two_paths_is_shared(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "store")
    with open_store(tmp_path / "store") as one, open_store(tmp_path / "link") as other:
        vectors = one.embed(["a"], CountingEncoder())
        encoder = CountingEncoder()
        np.testing.assert_array_equal(other.embed(["a"], encoder), vectors)
    assert encoder.seen == []


@pytest.mark.parametrize("change", [{"dtype": "float64"}, {"dtype": None}])
def test_an_encoder_that_does_not_say_how_it_is_stored_is_refused(store, change):
    with pytest.raises(EncoderError, match="float16 or float32"):
        store.embed(["a"], CountingEncoder(**change))


def test_a_store_may_be_read_while_it_is_open_for_writing_here(tmp_path):
    with open_store(tmp_path / "store") as writer:
        writer.embed(["a"], CountingEncoder())
        with open_store(tmp_path / "store", mode="r") as reader, pytest.raises(StoreNotWritable):
            reader.embed(["b"], CountingEncoder())
    with open_store(tmp_path / "store", mode="r") as reader, open_store(tmp_path / "store") as writer:
        expected = writer.embed(["b"], CountingEncoder())
        np.testing.assert_array_equal(reader.embed(["b"], CountingEncoder()), expected)


def test_one_text_is_not_taken_for_a_list_of_letters(store):
    with pytest.raises(UsageError, match=r"embed\(\[text\]"):
        store.embed("hello", CountingEncoder())
    assert store.embed((text for text in ("a", "b")), CountingEncoder()).shape == (2, 8)


def test_a_mode_is_r_or_w(tmp_path):
    with pytest.raises(UsageError, match="'r' or 'w'"):
        open_store(tmp_path / "store", mode="x")
    assert not (tmp_path / "store").exists()


def test_a_damaged_name_does_not_hide_the_others(store):
    for name in ("a", "b", "c"):
        cachestore.build(store, {"text": [name]}, {"text": CountingEncoder()}, name=name)
    (store.root / "names" / "a.jsonl").write_bytes(b"")
    layout.content_path(store.root, "manifests", store.log("b")[-1].manifest, ".json").unlink()
    assert [(name.name, name.manifest is not None, bool(name.fault)) for name in store.names()] == [
        ("a", False, True),
        ("b", False, True),
        ("c", True, False),
    ]


def test_a_file_nobody_may_read_is_no_damage(tmp_path, monkeypatch):
    open_store(tmp_path / "store").close()

    def forbidden(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", forbidden)
    with pytest.raises(StoreNotReadable, match=r"store\.json: Permission denied"):
        open_store(tmp_path / "store", mode="r")


@pytest.mark.parametrize("mode", ["r", "w"])
def test_a_store_can_be_sent_to_another_process(tmp_path, mode):
    with open_store(tmp_path / "store") as made:
        vectors = made.embed(["a", "b"], CountingEncoder())
    with open_store(tmp_path / "store", mode=mode) as store, pickle.loads(pickle.dumps(store)) as sent:
        assert (sent.root, sent.readonly) == (store.root, store.readonly)
        again = CountingEncoder()
        np.testing.assert_array_equal(sent.embed(["a", "b"], again), vectors)
        assert again.seen == []


@pytest.fixture
def open_folder():
    """A folder that other users can reach, as they cannot pytest's."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become two other users")
def test_users_of_a_group_share_a_store(open_folder):
    place = open_folder
    os.chown(place, 4001, 4000)
    place.chmod(0o2770)

    def as_user(user, texts, known):
        child = os.fork()
        if child == 0:
            try:
                os.umask(0o002)
                os.setgroups([])
                os.setgid(4000)
                os.setuid(user)
                encoder = CountingEncoder()
                with open_store(place / "store") as store:
                    store.embed(texts, encoder)
                    run_build(store, {"text": texts}, {"text": encoder}, name="shared")
                    store.tag("shared", f"of-{len(texts)}-{user}")
                    with store.alone():
                        store.rebuild_index()
                os._exit(0 if len(encoder.seen) == len(texts) - known else 2)
            except BaseException as error:
                print(repr(error), file=sys.stderr)
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    with open_store(place.parent / f"{place.name}-warm") as store:  # imports what these users may not be able to read
        run_build(store, {"text": ["a"]}, {"text": CountingEncoder()}, name="warm")
    shutil.rmtree(store.root)
    assert as_user(4001, ["a", "b"], 0) == 0
    (place / "store").chmod(0o2770)  # made for its owner alone
    assert as_user(4002, ["a", "b", "c"], 2) == 0
    assert as_user(4001, ["a", "b", "c", "d"], 3) == 0
    assert as_user(4002, ["d", "e"], 1) == 0


def test_a_shard_that_is_gone_leaves_its_keys_to_another_in_one_step(tmp_path, monkeypatch):
    number, names, vectors = two_shards_of_the_same_keys_less_the_first(tmp_path)
    child = os.fork()
    if child == 0:
        write = Index._write

        def dying(self, body):
            done = write(self, body)
            if self.lookup(names).shards[0] != number:
                os._exit(9)  # right after the transaction that dropped the shard
            return done

        Index._write = dying
        with open_store(tmp_path / "store") as store, store.writing():
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    with open_store(tmp_path / "store", mode="r") as store:
        again = CountingEncoder()
        np.testing.assert_array_equal(store.embed(["a", "b"], again), vectors)
    assert again.seen == []


@pytest.mark.parametrize("folder", ["shards", "tmp", "locks"])
def test_nothing_is_written_through_a_link_out_of_the_store(tmp_path, folder):
    with open_store(tmp_path / "store") as store:
        store.embed(["a"], CountingEncoder())
    (tmp_path / "store" / folder).rename(tmp_path / "outside")
    (tmp_path / "store" / folder).symlink_to(tmp_path / "outside")
    before = sorted(path for path in (tmp_path / "outside").rglob("*"))
    with pytest.raises(StoreError, match=r"is a .*link"), open_store(tmp_path / "store") as store:
        store.embed(["b"], CountingEncoder())
    assert sorted(path for path in (tmp_path / "outside").rglob("*")) == before


def test_a_manifest_that_is_removed_while_it_is_read_is_no_damage(tmp_path):
    with open_store(tmp_path / "store") as store:
        made = run_build(store, {"text": ["a", "b"]}, {"text": CountingEncoder()}).manifest
        for path in [*store.root.glob("manifests/*/*"), *store.root.glob("chunks/*/*")]:
            path.unlink()
        with pytest.raises(ManifestNotFound, match="Run again"):
            store.vectors(made, "text")
        pin = references.Pin("a" * 32, str(tmp_path), (made.id,), "2026-01-01T00:00:00+00:00")
        with pytest.raises(ManifestNotFound, match="Run again"):
            references.write_pin(store.root, pin)
