"""A key is encoded by one writer: claims, waiting, and what becomes of claims whose writer is gone."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

from cachestore import open_store
from cachestore.build import run
from cachestore.claims import Claims
from cachestore.errors import StoreFull
from cachestore.fill import Limits
from cachestore.keys import fingerprint, keys
from tests.store.counting import CountingEncoder

TEXTS = [f"text {row}" for row in range(200)]
SMALL = Limits(shard_rows=50, window_rows=16)


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "store") as opened:
        yield opened


def keys_of(texts, **settings):
    return keys(fingerprint(CountingEncoder(**settings).spec), [text.encode() for text in texts])


def payloads_of(names):
    """The texts by their keys, which are those of the first texts."""
    return {name: text.encode() for name, text in zip(names, TEXTS, strict=False)}


class Slow(CountingEncoder):
    """Takes long enough that builds which begin together overlap."""

    def encode(self, payloads):
        time.sleep(0.002)
        return super().encode(payloads)


def test_builds_at_the_same_time_encode_each_text_once(tmp_path):
    encoders = [Slow() for _ in range(4)]
    barrier = threading.Barrier(4)
    found = []

    def build(encoder):
        with open_store(tmp_path / "store") as store:
            barrier.wait()
            found.append(run(store, {"text": TEXTS * 2}, {"text": encoder}, name="t", limits=SMALL))

    threads = [threading.Thread(target=build, args=(encoder,)) for encoder in encoders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(payload for encoder in encoders for payload in encoder.seen) == sorted(t.encode() for t in TEXTS)
    assert len({build.manifest.id for build in found}) == 1
    for build in found:
        assert build.counts.encoded + build.counts.hits + build.counts.duplicates == 400
    assert sum(build.counts.encoded for build in found) == 200
    with open_store(tmp_path / "store") as store:
        assert [version.version for version in store.log("t")] == [1]
        vectors, mask = store.vectors("t", "text")
        truth = CountingEncoder().encode([text.encode() for text in TEXTS]).astype(np.float16)
        np.testing.assert_array_equal(vectors, np.concatenate([truth, truth]))
        assert mask.all()


def test_builds_with_two_encoders_in_opposite_order_do_not_wait_for_each_other_in_a_circle(tmp_path):
    barrier = threading.Barrier(2)
    encoders = [(Slow(), Slow(other=1)) for _ in range(2)]

    def build(columns):
        with open_store(tmp_path / "store") as store:
            barrier.wait()
            run(store, {"a": TEXTS, "b": TEXTS}, columns, limits=Limits(window_rows=16, put_off_rows=20))

    one = threading.Thread(target=build, args=({"a": encoders[0][0], "b": encoders[0][1]},))
    two = threading.Thread(target=build, args=({"a": encoders[1][1], "b": encoders[1][0]},))
    one.start()
    two.start()
    one.join(60)
    two.join(60)
    assert not one.is_alive()
    assert not two.is_alive()
    assert sum(len(encoder.seen) for pair in encoders for encoder in pair) == 400


def test_claims_tell_mine_from_stored_and_from_those_of_others(store):
    with store.writing():
        mine, other = Claims(store.root, store.index), Claims(store.root, store.index)
        store.embed(TEXTS[:1], CountingEncoder())
        assert other.take(keys_of(TEXTS[1:3])).mine == set(keys_of(TEXTS[1:3]))
        taken = mine.take(keys_of(TEXTS[:5]))
        assert taken.stored == set(keys_of(TEXTS[:1]))
        assert taken.others == {other.owner: set(keys_of(TEXTS[1:3]))}
        assert taken.mine == set(keys_of(TEXTS[3:5]))
        assert mine.take(keys_of(TEXTS[3:5])).mine == set(keys_of(TEXTS[3:5])), (
            "one's own claims do not stand in the way"
        )
        other.release()
        assert mine.take(keys_of(TEXTS[1:3])).mine == set(keys_of(TEXTS[1:3]))
        assert mine.take([]) == (set(), set(), {})
        mine.close()
        other.close()
        assert not list((store.root / "locks").glob("claims-*"))


def test_claims_of_a_dead_writer_are_worth_nothing(store):
    child = os.fork()
    if child == 0:
        with store.writing():
            Claims(store.root, store.index).take(keys_of(TEXTS))
            os._exit(9)  # as a kill would: nothing is given up
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(list((store.root / "locks").glob("claims-*"))) == 1
    encoder = CountingEncoder()
    store.embed(TEXTS, encoder)
    assert len(encoder.seen) == 200
    assert not list((store.root / "locks").glob("claims-*")), "a lone writer sweeps what the dead left"


def test_a_writer_waits_for_what_another_encodes_and_finds_it(store):
    with (
        store.writing(),
        store.fill(CountingEncoder()) as other,
        store.fill(CountingEncoder(), tick=lambda: waited.append(1)) as fill,
    ):
        waited: list[int] = []
        held = keys_of(TEXTS[:20])
        other.add(payloads_of(held))
        other._encode_window()  # claimed and encoded, not stored yet
        fill.add(payloads_of(keys_of(TEXTS[:30])))
        fill.flush()
        assert fill.waiting == 20
        threading.Timer(0.3, other.flush).start()
        fill.settle()
    assert (fill.encoded, fill.found, fill.waiting) == (10, 20, 0)
    assert waited, "waiting is visible"


def test_a_writer_that_stores_nothing_for_too_long_is_not_waited_for(store):
    with store.writing(), Claims(store.root, store.index) as frozen:
        frozen.take(keys_of(TEXTS[:20]))
        encoder = CountingEncoder()
        with store.fill(encoder, Limits(claim_seconds=0.1)) as fill:
            fill.add(payloads_of(keys_of(TEXTS[:20])))
            fill.flush()
            assert encoder.seen == []
            fill.settle()
        assert len(encoder.seen) == 20


def test_what_was_encoded_is_stored_when_the_encoder_fails(store):
    class Fails(CountingEncoder):
        def encode(self, payloads):
            if len(self.seen) >= 256:
                raise ConnectionError("the service went away")
            return super().encode(payloads)

    texts = [f"t{row}" for row in range(600)]
    with pytest.raises(ConnectionError):
        store.embed(texts, Fails())
    again = CountingEncoder()
    store.embed(texts, again)
    assert len(again.seen) == 600 - 256
    assert store.index.claim(bytes(16), keys_of(["x"]), lambda owner: pytest.fail("a claim was left"))[0]


def test_a_store_that_fails_is_not_written_to_again(store, monkeypatch):
    calls = []

    def full(*_, **__):
        calls.append(1)
        raise StoreFull("No space.")

    monkeypatch.setattr(type(store), "put", full)
    with pytest.raises(StoreFull):
        store.embed(TEXTS, CountingEncoder())
    assert len(calls) == 1


def test_an_open_store_goes_on_with_a_new_generation_of_the_index(tmp_path):
    with open_store(tmp_path / "store") as one:
        vectors = one.embed(TEXTS, CountingEncoder())
        found = one.index.lookup(keys_of(TEXTS))
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)
            again = CountingEncoder()
            same = np.array_equal(one.embed(TEXTS, again), vectors) and not again.seen
            os._exit(0 if same else 1)
        os.close(reader)
        with open_store(tmp_path / "store") as two:
            with two.alone():
                assert two.rebuild_index() == 200
            assert not list((two.root / "tmp").iterdir())
        os.write(writer, b"x")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        out = np.empty_like(vectors)
        one.gather(np.frombuffer(b"".join(keys_of(TEXTS)), "V32"), found, out)  # places of the old generation
        np.testing.assert_array_equal(out, vectors)
        encoder = CountingEncoder()
        one.embed(["new", *TEXTS], encoder)
        assert encoder.seen == [b"new"]


def test_threads_read_on_while_the_index_is_replaced(tmp_path):
    with open_store(tmp_path / "store") as store:
        vectors = store.embed(TEXTS, CountingEncoder())
        failures, stop = [], threading.Event()

        def read():
            while not stop.is_set():
                try:
                    assert np.array_equal(store.embed(TEXTS, CountingEncoder()), vectors)
                except BaseException as error:
                    failures.append(error)
                    return

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            with store.alone():
                store.rebuild_index()
        stop.set()
        for thread in threads:
            thread.join(30)
        assert not failures


def test_a_forced_claim_leaves_the_other_claims_of_a_living_writer(store):
    with store.writing(), Claims(store.root, store.index) as healthy, Claims(store.root, store.index) as mine:
        healthy.take(keys_of(TEXTS[:20]))
        assert mine.take(keys_of(TEXTS[:1]), force=True).mine == set(keys_of(TEXTS[:1]))
        with Claims(store.root, store.index) as third:
            assert third.take(keys_of(TEXTS[1:20])).mine == set()


def test_what_was_put_off_is_claimed_window_by_window(store):
    """A shard that gets full while it is encoded ends all claims of its writer, so none may be open then."""
    robbed = []

    class Watched(CountingEncoder):
        def encode(self, payloads):
            with Claims(store.root, store.index) as third:
                wanted = keys_of([payload.decode() for payload in payloads])
                robbed.extend(third.take(wanted).mine)
            return super().encode(payloads)

    with store.writing(), Claims(store.root, store.index) as other:
        other.take(keys_of(TEXTS[:40]))
        with store.fill(Watched(), Limits(shard_rows=10, window_rows=8)) as fill:
            fill.add(payloads_of(keys_of(TEXTS[:40])))
            fill.flush()
            other.release()
            fill.settle()
    assert robbed == []


def test_a_lock_ends_with_its_holder_though_a_forked_child_lives_on(store):
    reader, writer = os.pipe()
    with store.writing(), store.fill(CountingEncoder()) as fill:
        fill.add(payloads_of(keys_of(TEXTS[:1])))
        fill.flush()
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
    try:
        with store.alone(wait=0):
            pass
    finally:
        os.write(writer, b"x")
        os.waitpid(child, 0)
