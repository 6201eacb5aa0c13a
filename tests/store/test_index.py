"""The index: one answer per key, explicit misses, and it grows and survives sharing."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading

import lmdb
import numpy as np
import pytest

from cachestore import environment, index_file
from cachestore import index as indexes
from cachestore.errors import DamageError, StoreError, StoreFormatError, StoreFull, StoreLocked
from cachestore.index import Index
from cachestore.keys import fingerprint, key

SPEC = {"type": "test", "dtype": "float16"}
ENCODER = fingerprint(SPEC)
HEAD = bytes([8, 0, 0, 0, 0, 0, 32, 0])  # of a node that is a key with its place


def some_keys(count, offset=0):
    return [key(ENCODER, str(number).encode()) for number in range(offset, offset + count)]


@pytest.fixture
def index(tmp_path):
    opened = Index(tmp_path / "index", readonly=False)
    yield opened
    opened.close()


def test_one_answer_per_key_in_the_order_asked(index):
    keys = some_keys(10)
    index.commit("aa" * 32, ENCODER, SPEC, keys[:6], 100)
    index.commit("bb" * 32, ENCODER, SPEC, keys[6:9], 100)
    found = index.lookup([keys[8], None, keys[0], keys[9], keys[0], keys[5]])
    assert found.shards.tolist() == [1, -1, 0, -1, 0, 0]
    assert found.rows.tolist() == [2, 0, 0, 0, 0, 5]
    assert index.lookup([]).shards.tolist() == []


def test_a_key_keeps_its_first_place_and_a_shard_is_indexed_once(index):
    keys = some_keys(4)
    first = index.commit("aa" * 32, ENCODER, SPEC, keys, 100)
    assert index.commit("aa" * 32, ENCODER, SPEC, keys, 100) == first
    second = index.commit("bb" * 32, ENCODER, SPEC, keys[::-1], 100)
    assert second != first
    assert index.lookup(keys).shards.tolist() == [first] * 4
    assert {entry.name: (entry.rows, entry.fingerprint, entry.nbytes) for entry in index.shards().values()} == {
        "aa" * 32: (4, ENCODER, 100),
        "bb" * 32: (4, ENCODER, 100),
    }


def test_a_shard_whose_writer_dies_between_two_transactions_is_finished_by_committing_it_again(index, monkeypatch):
    monkeypatch.setattr(indexes, "_SLICE", 4)
    keys, write, calls = some_keys(10), index._write, []

    def dying(body, *wait):
        calls.append(body)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(body, *wait)

    monkeypatch.setattr(index, "_write", dying)
    with pytest.raises(KeyboardInterrupt):
        index.commit("aa" * 32, ENCODER, SPEC, keys, 100)
    monkeypatch.setattr(index, "_write", write)
    assert index.unfinished() == {"aa" * 32}
    found = index.lookup(keys)
    assert sorted(found.shards.tolist()) == [-1, -1, *[0] * 8]
    assert index.names([0]) == {0: "aa" * 32}, "what is found can be read"
    assert index.commit("bb" * 32, ENCODER, SPEC, some_keys(6, 100), 100) == 1
    assert index.commit("aa" * 32, ENCODER, SPEC, keys, 100) == 0
    assert index.unfinished() == set()
    found = index.lookup(keys)
    assert (found.shards.tolist(), found.rows.tolist()) == ([0] * 10, list(range(10)))


def test_an_unfinished_shard_that_is_dropped_leaves_nothing(index, monkeypatch):
    monkeypatch.setattr(indexes, "_SLICE", 4)
    write = index._write
    monkeypatch.setattr(index, "_write", lambda body, *wait: write(body) if not index.unfinished() else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        index.commit("aa" * 32, ENCODER, SPEC, some_keys(10), 100)
    monkeypatch.setattr(index, "_write", write)
    index.drop([0])
    assert index.unfinished() == set()
    assert (index.lookup(some_keys(10)).shards == -1).all()
    assert index.commit("aa" * 32, ENCODER, SPEC, some_keys(10), 100) == 1, "a number is never given again"


def test_dropped_shards_are_forgotten_with_their_keys_and_numbers_are_not_reused(index):
    keys = some_keys(6)
    index.commit("aa" * 32, ENCODER, SPEC, keys[:3], 100)
    kept = index.commit("bb" * 32, ENCODER, SPEC, keys[3:], 100)
    index.remember(b"source:x", b"fact")
    assert index.drop([0]) == 3
    assert index.lookup(keys).shards.tolist() == [-1, -1, -1, kept, kept, kept]
    assert index.recall(b"source:x") is None
    assert index.commit("cc" * 32, ENCODER, SPEC, keys[:3], 100) == 2


def test_knows_the_spec_of_what_it_holds(index):
    assert index.spec(ENCODER) is None
    index.commit("aa" * 32, ENCODER, SPEC, some_keys(1), 100)
    assert index.spec(ENCODER) == SPEC


def test_the_map_grows_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "_MAP_SIZE", 1 << 17)
    grown = Index(tmp_path / "index", readonly=False)
    for number in range(10):
        grown.commit(f"{number:064x}", ENCODER, SPEC, some_keys(2000, number * 2000), 100)
    assert (grown.lookup(some_keys(20_000)).shards >= 0).all()
    grown.close()


def _grow(folder):
    index = Index(folder, readonly=False)
    for number in range(10):
        index.commit(f"{number:064x}", ENCODER, SPEC, some_keys(2000, number * 2000), 100)
    index.close()


def test_a_reader_follows_a_map_that_another_process_grew(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "_MAP_SIZE", 1 << 17)
    Index(tmp_path / "index", readonly=False).close()
    reader = Index(tmp_path / "index", readonly=True)
    assert (reader.lookup(some_keys(10)).shards < 0).all()
    child = multiprocessing.get_context("spawn").Process(target=_grow, args=(tmp_path / "index",))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert (reader.lookup(some_keys(20_000)).shards >= 0).all()
    reader.close()


def test_a_path_opened_twice_in_a_process_is_shared(tmp_path, index):
    again = Index(tmp_path / "index", readonly=False)
    again.commit("aa" * 32, ENCODER, SPEC, some_keys(3), 100)
    again.close()
    assert (index.lookup(some_keys(3)).shards == 0).all()


def test_after_close_it_says_so(tmp_path):
    index = Index(tmp_path / "index", readonly=False)
    index.close()
    index.close()
    with pytest.raises(StoreError, match="closed"):
        index.lookup(some_keys(1))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_reads_and_writes_through_its_own_environment(index):
    index.commit("aa" * 32, ENCODER, SPEC, some_keys(5), 100)
    child = os.fork()
    if child == 0:
        try:
            known = (index.lookup(some_keys(5)).shards == 0).all()
            index.commit("bb" * 32, ENCODER, SPEC, some_keys(5, 100), 100)
            os._exit(0 if known else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (index.lookup(some_keys(5, 100)).shards == 1).all()


@pytest.mark.parametrize("keep", [0, 10, 4096, 8192, 0.5, 0.9])
def test_a_truncated_file_is_recognised_before_it_is_mapped(tmp_path, keep):
    index = Index(tmp_path / "index", readonly=False)
    index.commit("aa" * 32, ENCODER, SPEC, some_keys(5000), 100)
    used = (index._environment._lmdb.info()["last_pgno"] + 1) * 4096
    index.close()
    data = tmp_path / "index" / "data.mdb"
    assert data.stat().st_size > used + (1 << 16), "a wrong offset in its last page must not lead past its end"
    assert not environment.looks_torn(tmp_path / "index")
    os.truncate(data, int(keep if keep > 1 or keep == 0 else keep * used))
    assert environment.looks_torn(tmp_path / "index")


STOPPED_WRITER = """
import os, signal, sys
from pathlib import Path
from cachestore.index import Index
index = Index(Path(sys.argv[1]), readonly=False)
index._write(lambda txn, dbs: os.kill(os.getpid(), signal.SIGSTOP))
"""


def test_a_writer_stopped_inside_a_transaction_keeps_no_reader_waiting_and_no_writer_for_ever(tmp_path):
    opened = Index(tmp_path / "index", readonly=False)
    opened.commit("aa" * 32, ENCODER, SPEC, some_keys(5), 100)
    opened.close()
    writer = subprocess.Popen([sys.executable, "-c", STOPPED_WRITER, str(tmp_path / "index")])
    try:
        _, status = os.waitpid(writer.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        reader = Index(tmp_path / "index", readonly=True)
        assert (reader.lookup(some_keys(5)).shards == 0).all()
        shared = environment.acquire(tmp_path / "index", indexes._DATABASES, writable=False)
        with pytest.raises(StoreLocked, match=f"process {writer.pid} "):
            shared.write(lambda txn, dbs: None, 0.1)
        environment.release(shared)
        assert (reader.lookup(some_keys(5)).shards == 0).all()
        reader.close()
    finally:
        writer.kill()
        writer.wait()
    opened = Index(tmp_path / "index", readonly=False)
    assert opened.commit("bb" * 32, ENCODER, SPEC, some_keys(5, 100), 100) == 1
    opened.close()


def test_who_reads_goes_on_where_the_same_process_then_writes(tmp_path):
    Index(tmp_path / "index", readonly=False).close()
    reader = Index(tmp_path / "index", readonly=True)
    writer = Index(tmp_path / "index", readonly=False)
    writer.commit("aa" * 32, ENCODER, SPEC, some_keys(5), 100)
    assert (reader.lookup(some_keys(5)).shards == 0).all()
    writer.close()
    assert (reader.lookup(some_keys(5)).shards == 0).all()
    reader.close()


def test_a_newer_index_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(indexes, "FORMAT", 2)
    Index(tmp_path / "index", readonly=False).close()
    monkeypatch.undo()
    with pytest.raises(StoreFormatError, match="format 2"):
        Index(tmp_path / "index", readonly=False)


def test_readers_go_on_while_another_thread_grows_the_map(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "_MAP_SIZE", 1 << 17)
    index = Index(tmp_path / "index", readonly=False)
    index.commit("aa" * 32, ENCODER, SPEC, some_keys(50), 100)
    faults, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            try:
                if not (index.lookup(some_keys(50)).shards == 0).all():
                    faults.append("a key was lost")
            except Exception as error:
                faults.append(repr(error))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(12):
        index.commit(f"{number:064x}", ENCODER, SPEC, some_keys(2000, 100 + number * 2000), 100)
    stop.set()
    for thread in threads:
        thread.join()
    index.close()
    assert faults == []


def test_every_error_of_lmdb_has_a_class_and_only_damage_leads_to_a_new_index(tmp_path):
    kinds = [kind for kind in vars(lmdb).values() if isinstance(kind, type) and issubclass(kind, lmdb.Error)]
    assert len(kinds) > 20
    for kind in kinds:
        translated = environment._translate(kind("what lmdb said"), tmp_path)
        assert isinstance(translated, (StoreError, DamageError)), kind
        assert "what lmdb said" in str(translated) or kind is lmdb.NotFoundError
        damage = {
            "CorruptedError",
            "InvalidError",
            "PageNotFoundError",
            "BadChecksumError",
            "ProblemError",
            "BadTxnError",
            "BadDbiError",
            "IncompatibleError",
            "CursorFullError",
        }
        assert isinstance(translated, DamageError) == (kind.__name__ in damage | {"NotFoundError"}), kind
    assert isinstance(environment._translate(lmdb.DiskError("No space left on device"), tmp_path), StoreFull)


def test_a_file_of_another_lmdb_format_is_refused_and_left_alone(tmp_path):
    lmdb.open(str(tmp_path / "index"), lib_version=1).close()
    before = (tmp_path / "index" / "data.mdb").read_bytes()
    with pytest.raises(StoreFormatError, match="LMDB format"):
        Index(tmp_path / "index", readonly=False)
    assert (tmp_path / "index" / "data.mdb").read_bytes() == before


def test_limited_address_space_only_makes_the_map_smaller(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path; from cachestore.index import Index\n"
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\n"
        "Index(Path(sys.argv[1]), readonly=False).close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "index")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("fault", ["none", "order", "head", "page number", "offset"])
def test_many_pages_are_checked_at_once_and_none_less_for_it(tmp_path, fault):
    keys = some_keys(20_000)
    index = Index(tmp_path / "index", readonly=False)
    index.commit("aa" * 32, ENCODER, SPEC, keys, 100)
    index.close()
    data = tmp_path / "index" / "data.mdb"
    pages = np.frombuffer(data.read_bytes(), np.uint8).reshape(-1, 4096)
    # leaves whose first node is a key and its place, of the two kinds of transactions that lie in the file
    leaves = [at for at in range(len(pages)) if pages[at, 10] == 2 and pages[at, 16:18].view("<u2")[0] <= 4096 - 48]
    keyed = [
        at for at in leaves if bytes(pages[at, (first := int(pages[at, 16:18].view("<u2")[0])) : first + 8]) == HEAD
    ]
    assert len(keyed) > 200, "enough to be looked at together"
    sound = index_file.examine(tmp_path / "index", keys=True)
    assert sound.problems == []
    nodes = np.concatenate(sound.nodes)
    assert [bytes(key) for key in nodes["key"]] == sorted(keys)
    assert [keys[row] for row in nodes["row"]] == sorted(keys)
    if fault == "none":
        return
    with data.open("r+b") as file:
        for page in keyed:  # all, as those of older transactions are no longer reached
            first, second = (int(one) for one in pages[page, 16:20].view("<u2"))
            at, new = {
                "order": (16, np.array([second, first], "<u2").tobytes()),
                "head": (first + 6, b"\x1f"),
                "page number": (0, b"\xff"),
                "offset": (16, b"\x0a\x00"),
            }[fault]
            file.seek(page * 4096 + at)
            file.write(new)
    assert index_file.examine(tmp_path / "index", keys=True).problems != []
