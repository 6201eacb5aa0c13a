"""A store driven at random beside dicts, which are the truth: whatever is done in whatever order, they say the same.

Writing, reading, reopening, losing the index, damage and its repair, tags, collecting and forgetting, in any order Hypothesis likes.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from numpy.typing import NDArray

from cachestore import open_store, references
from cachestore.build import run
from cachestore.errors import ManifestNotFound, MissingVector
from cachestore.fill import Limits
from cachestore.forget import forget
from cachestore.gc import collect
from cachestore.gc_rules import Rules
from cachestore.keys import Key, fingerprint, key
from cachestore.manifest import FORGOTTEN, MISSING, PRESENT
from cachestore.repair import repair
from cachestore.store import Store
from cachestore.verify import verify
from tests.store.counting import CountingEncoder

TEXTS = [f"text {number}" for number in range(10)]
LIMITS = Limits(shard_rows=3, window_rows=2)  # many small shards
GONE = object()
"""A cell whose text was forgotten."""

texts = st.sampled_from(TEXTS)
cells = st.lists(st.none() | texts, min_size=1, max_size=7).filter(any)
encoders = st.integers(0, 1)
names = st.sampled_from(["reviews", "tickets"])
Vector = tuple[int, str]


def encoder_of(number: int) -> CountingEncoder:
    return CountingEncoder("float32", salt=1) if number else CountingEncoder()


def key_of(vector: Vector) -> Key:
    return key(fingerprint(encoder_of(vector[0]).spec), vector[1].encode())


def truth(payloads: Sequence[str], encoder: int) -> NDArray[Any]:
    """The vectors as they are stored."""
    made = encoder_of(encoder)
    return made.encode([text.encode() for text in payloads]).astype(str(made.spec["dtype"]))


class StoreBesideDicts(RuleBasedStateMachine):
    """``stored`` holds what can be read; ``manifests`` the cells of every manifest; ``logs`` and ``tags`` their ids."""

    @initialize()
    def create(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="state-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.root = self.folder / "store"
        self.store: Store = open_store(self.root)
        self.stored: set[Vector] = set()
        self.lost: set[Vector] = set()
        self.manifests: dict[str, tuple[int, list[Any]]] = {}
        self.superseded: dict[str, str] = {}
        self.logs: dict[str, list[str]] = {}
        self.tags: dict[str, str] = {}

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.check_names()
            self.store.close()
            shutil.rmtree(self.folder)

    # -- writing -------------------------------------------------------------------------------------------------------

    @rule(payloads=st.lists(texts, max_size=5), encoder=encoders)
    def embed(self, payloads: list[str], encoder: int) -> None:
        made = encoder_of(encoder)
        found = self.store.embed(payloads, made)
        assert found.tobytes() == truth(payloads, encoder).tobytes()
        self.encoded(made, encoder, payloads)

    @rule(name=names, payloads=cells, encoder=encoders, as_file=st.booleans())
    def build(self, name: str, payloads: list[str | None], encoder: int, as_file: bool) -> None:
        made = encoder_of(encoder)
        data: Any = {"text": payloads}
        if as_file:  # recognised when it is the same again
            data = self.folder / "data.csv"
            data.write_text("n,text\n" + "".join(f"{at},{text or ''}\n" for at, text in enumerate(payloads)))
        built = run(self.store, data, {"text": made}, name=name, limits=LIMITS)
        self.encoded(made, encoder, [text for text in payloads if text])
        self.manifests[built.manifest.id] = (encoder, list(payloads))
        log = self.logs.setdefault(name, [])
        if not log or self.followed(log[-1]) != built.manifest.id:
            log.append(built.manifest.id)

    def encoded(self, made: CountingEncoder, encoder: int, payloads: Sequence[str]) -> None:
        """What was encoded is what was not stored, once."""
        wanted = {(encoder, text) for text in payloads}
        assert sorted(made.seen) == sorted(text.encode() for _, text in wanted - self.stored)
        self.stored |= wanted
        self.lost -= wanted

    @precondition(lambda self: self.logs)
    @rule(data=st.data(), tag=st.sampled_from(["v1", "v2"]))
    def tag(self, data: st.DataObject, tag: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.logs)))
        if f"{name}@{tag}" not in self.tags:
            version = references.version(self.root, name)
            found = self.store.manifest(name).id
            references.write_tag(self.root, references.Tag(name, tag, version.version, found, version.created))
            self.tags[f"{name}@{tag}"] = found

    # -- reading -------------------------------------------------------------------------------------------------------

    @invariant()
    def holds_what_was_stored(self) -> None:
        everything = [(encoder, text) for encoder in (0, 1) for text in TEXTS]
        missing = set(self.store.missing([key_of(vector) for vector in everything]))
        assert {vector for vector in everything if key_of(vector) not in missing} == self.stored

    @rule()
    def check_names(self) -> None:
        assert [name.name for name in self.store.names()] == sorted(self.logs)
        for name, log in self.logs.items():
            assert [line.manifest for line in self.store.log(name)] == log
            self.check_reference(name, log[-1])
            for version, identity in enumerate(log, 1):
                self.check_reference(f"{name}@{version}", identity)
        for tag, identity in self.tags.items():
            self.check_reference(tag, identity)

    def check_reference(self, reference: str, logged: str) -> None:
        identity = self.followed(logged)
        if identity not in self.manifests:
            with pytest.raises(ManifestNotFound):
                self.store.manifest(reference)
            return
        encoder, payloads = self.manifests[identity]
        assert self.store.manifest(reference).id == identity
        present = [text for text in payloads if isinstance(text, str)]
        if self.lost & {(encoder, text) for text in present}:
            with pytest.raises(MissingVector):
                self.store.column(reference, "text")
            return
        vectors, reasons = self.store.column(reference, "text")
        expected = [MISSING if text is None else FORGOTTEN if text is GONE else PRESENT for text in payloads]
        assert reasons.tolist() == expected
        assert vectors[reasons == PRESENT].tobytes() == truth(present, encoder).tobytes()
        assert not np.any(vectors[reasons != PRESENT])

    def followed(self, identity: str) -> str:
        while identity not in self.manifests and identity in self.superseded:
            identity = self.superseded[identity]
        return identity

    # -- what befalls a store ------------------------------------------------------------------------------------------

    def reopened(self) -> None:
        self.store = open_store(self.root)
        with self.store.writing():
            pass

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = open_store(self.root)

    @rule()
    def lose_the_index(self) -> None:
        self.store.close()
        shutil.rmtree(self.root / "index")
        self.reopened()

    @rule()
    def damage_the_index(self) -> None:
        self.store.close()
        (self.root / "index" / "data.mdb").write_bytes(b"\xff" * 5000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.reopened()

    @precondition(lambda self: self.stored)
    @rule(data=st.data())
    def damage_a_shard_and_repair(self, data: st.DataObject) -> None:
        victim = data.draw(st.sampled_from(sorted(self.root.glob("shards/*/*.arrow"))), label="shard")
        content = bytearray(victim.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1), label="byte")
        content[at] ^= data.draw(st.integers(1, 255), label="bits")
        rows = {entry.name: entry.rows for entry in self.store.index.shards().values()}
        self.store.close()
        victim.chmod(0o644)
        victim.write_bytes(content)
        assert verify(self.root, read_data=True).damage, "a shard that is not what its name says"
        repair(self.root)
        self.reopened()
        gone = set(self.store.missing([key_of(vector) for vector in self.stored]))
        lost = {vector for vector in self.stored if key_of(vector) in gone}
        assert len(lost) <= rows[victim.stem]
        self.stored -= lost
        self.lost |= lost

    @rule()
    def verify(self) -> None:
        self.store.close()
        report = verify(self.root, read_data=True)
        needed = {vector for identity in self.rooted() for vector in self.vectors_of(identity)}
        assert bool(report.damage) == bool(needed & self.lost), report.findings
        self.store = open_store(self.root)

    # -- keeping it ----------------------------------------------------------------------------------------------------

    def rooted(self, keep_last: int | None = None) -> set[str]:
        """Ids of the manifests that names and tags lead to."""
        logged = [identity for log in self.logs.values() for identity in log[-(keep_last or len(log)) :]]
        return {self.followed(identity) for identity in [*logged, *self.tags.values()]} & self.manifests.keys()

    def vectors_of(self, identity: str) -> set[Vector]:
        encoder, payloads = self.manifests[identity]
        return {(encoder, text) for text in payloads if isinstance(text, str)}

    @rule(unreferenced=st.booleans(), keep_last=st.none() | st.integers(1, 2), repack=st.booleans())
    def collect(self, unreferenced: bool, keep_last: int | None, repack: bool) -> None:
        rules = Rules(grace=0, unreferenced_older_than=0 if unreferenced else None, keep_last=keep_last, repack=repack)
        kept = self.rooted(keep_last)
        needed = {vector for identity in kept for vector in self.vectors_of(identity)}
        collect(self.store, rules)
        gone = set(self.store.missing([key_of(vector) for vector in self.stored]))
        dropped = {vector for vector in self.stored if key_of(vector) in gone}
        assert not dropped & needed, "something needed was collected"
        if not unreferenced:
            assert not dropped, "vectors were collected that nobody asked to be"
        self.stored -= dropped
        there = set(self.on_disk())
        assert kept <= there, "a manifest that something leads to was collected"
        self.manifests = {identity: cells for identity, cells in self.manifests.items() if identity in there}

    @rule(text=texts)
    def forget(self, text: str) -> None:
        old = {identity: cells for identity, cells in self.manifests.items() if text in cells[1]}
        forget(self.store, [text.encode()], wait=5)
        self.stored -= {(0, text), (1, text)}
        self.lost -= {(0, text), (1, text)}
        for identity, (encoder, payloads) in old.items():
            del self.manifests[identity]
            self.superseded[identity] = references.superseded(self.root)[identity]
            self.manifests[self.superseded[identity]] = (encoder, [GONE if cell == text else cell for cell in payloads])
        needles = [key_of((encoder, text)) for encoder in (0, 1)]
        for path in self.root.rglob("*"):
            content = path.read_bytes() if path.is_file() else b""
            assert not any(needle in content for needle in needles), f"{path} still holds the key"
        assert set(self.on_disk()) == self.manifests.keys()

    def on_disk(self) -> list[str]:
        return [path.stem for path in self.root.glob("manifests/*/*.json")]


TestStoreBesideDicts = StoreBesideDicts.TestCase
TestStoreBesideDicts.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_for_a_long_time() -> None:
    run_state_machine_as_test(
        StoreBesideDicts,
        settings=settings(
            max_examples=500, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
