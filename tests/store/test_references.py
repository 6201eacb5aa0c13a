"""References: what leads to a manifest, what took its place, and what keeps it."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

import cachestore
from cachestore import locks, references
from cachestore import manifest as manifests
from cachestore.errors import (
    DamageError,
    ManifestNotFound,
    StoreFormatError,
    StoreLocked,
    StoreNotWritable,
    UsageError,
)
from cachestore.references import Pin, Tag
from cachestore.store import Store
from tests.store.counting import CountingEncoder

NOW = "2026-01-02T03:04:05+00:00"


@pytest.fixture
def store(tmp_path):
    """A store in which ``reviews`` has three versions, the third with the content of the first."""
    with cachestore.open_store(tmp_path / "store") as opened:
        for texts in (["a", "b"], ["a", "b", "c"], ["a", "b"]):
            cachestore.build(opened, {"text": texts}, {"text": CountingEncoder()}, name="reviews")
        yield opened


def ids(store: Store) -> list[str]:
    return [line.manifest for line in store.log("reviews")]


def collect(store: Store, identity: str) -> None:
    """As gc does it, in the end."""
    manifests.manifest_path(store.root, identity).unlink()


def test_a_manifest_is_found_by_id_digits_name_version_and_tag(store):
    first, second, _ = ids(store)
    store.tag("reviews", "best", version=2)
    for reference, expected in {
        first: first,
        second[:8]: second,
        second[:63]: second,
        "reviews": first,
        "reviews@1": first,
        "reviews@2": second,
        "reviews@3": first,
        "reviews@best": second,
    }.items():
        assert references.resolve(store.root, reference) == expected
        assert store.manifest(reference).id == expected
    assert len(store.vectors("reviews@best", "text")[0]) == 3


def test_a_name_goes_before_the_digits_of_an_id(store):
    second = ids(store)[1]
    cachestore.build(store, {"text": ["z"]}, {"text": CountingEncoder()}, name=second[:8])
    assert store.manifest(second[:8]).rows == 1
    assert store.manifest(second[:9]).rows == 3


def test_digits_of_several_manifests_are_refused(store, monkeypatch):
    alike = ["abcdef0123" + digit * 54 for digit in "01"]
    monkeypatch.setattr(manifests, "all_manifests", lambda root: alike)
    with pytest.raises(UsageError, match="begins the ids of 2 manifests"):
        references.resolve(store.root, "abcdef01")
    assert references.resolve(store.root, alike[0][:11]) == alike[0]


@pytest.mark.parametrize(
    ("reference", "error", "says"),
    [
        ("review", ManifestNotFound, "did you mean 'reviews'"),
        ("review@1", ManifestNotFound, "did you mean 'reviews'"),
        ("review@best", ManifestNotFound, "did you mean 'reviews'"),
        ("reviews@7", ManifestNotFound, "has versions 1 to 3"),
        ("reviews@0", ManifestNotFound, "no version 0"),
        ("reviews@bestt", ManifestNotFound, r"no tag 'bestt'.*did you mean 'best'.*Its tags: best\."),
        ("reviews@", UsageError, "cannot be a tag"),
        ("reviews@a@b", UsageError, "cannot be a tag"),
        ("reviews@../../x", UsageError, "cannot be a tag"),
        ("../x@1", UsageError, "cannot be a name"),
        ("", UsageError, "cannot be a name"),
        ("0123456789", ManifestNotFound, "no manifest whose id begins so"),
        ("0" * 64, ManifestNotFound, "no manifest"),
    ],
)
def test_a_reference_to_nothing_says_what_there_is(store, reference, error, says):
    store.tag("reviews", "best")
    with pytest.raises(error, match=says):
        store.manifest(reference)


def test_a_collected_version_says_how_to_get_it_back(store):
    second = ids(store)[1]
    collect(store, second)
    with pytest.raises(ManifestNotFound, match=r"Version 2 of 'reviews' was removed .* by gc.*Build that data again"):
        store.manifest("reviews@2")
    assert [name.fault for name in store.names()] == [""]
    rebuilt = cachestore.build(store, {"text": ["a", "b", "c"]}, {"text": CountingEncoder()})
    assert store.manifest("reviews@2") == rebuilt


def test_a_head_that_is_gone_is_damage_and_not_collected(store):
    collect(store, ids(store)[0])
    with pytest.raises(ManifestNotFound, match="holds no manifest"):
        store.manifest("reviews")
    assert store.names()[0].manifest is None


def test_what_superseded_a_manifest_is_followed_wherever_one_is_named(store):
    first, second, _ = ids(store)
    store.tag("reviews", "best", version=1)
    references.supersede(store.root, {first: "e" * 64})
    assert references.follow(store.root, first) == first  # it is there, so it is itself
    collect(store, first)
    references.supersede(store.root, {"e" * 64: second})
    for reference in ("reviews", "reviews@1", "reviews@best", first, first[:10], "e" * 64, "e" * 9):
        assert store.manifest(reference).id == second
    assert store.names()[0].manifest == store.manifest(second)
    assert {root.manifest for root in references.roots(store.root)} == {second}
    assert references.follow(store.root, "0" * 64) == "0" * 64


def test_a_circle_of_superseded_manifests_is_damage_not_a_hang(store):
    references.supersede(store.root, {"d" * 64: "e" * 64, "e" * 64: "d" * 64})
    with pytest.raises(DamageError, match="circle"):
        store.manifest("d" * 64)


def test_a_tag_does_not_move_until_it_is_deleted(store):
    first, second, _ = ids(store)
    made = store.tag("reviews", "v1")
    assert (made.version, made.manifest) == (3, first)
    assert store.tag("reviews", "v1").version == 3
    store.tag("reviews", "v1", version=1)  # the same manifest
    assert references.read_tag(store.root, "reviews", "v1") == made
    with pytest.raises(UsageError, match=r"cachestore tag --delete reviews@v1"):
        store.tag("reviews", "v1", version=2)
    references.delete_tag(store.root, "reviews", "v1")
    assert store.tag("reviews", "v1", version=2).manifest == second
    assert [tag.version for tag in references.tags(store.root)] == [2]
    references.delete_tag(store.root, "reviews", "v1")
    with pytest.raises(ManifestNotFound, match=r"no tag 'v1'.*has no tags"):
        references.delete_tag(store.root, "reviews", "v1")


@pytest.mark.parametrize("tag", ["12", "a" * 41, "", "-x", ".x", "a b", "a/b", "é", "a@b"])
def test_words_that_cannot_be_tags_are_refused(store, tag):
    with pytest.raises(UsageError, match="cannot be a tag"):
        store.tag("reviews", tag)


def test_only_what_is_there_can_be_tagged(store):
    with pytest.raises(ManifestNotFound, match="no manifest"):
        references.write_tag(store.root, Tag("reviews", "v1", 1, "0" * 64, NOW))
    with pytest.raises(ManifestNotFound, match="no version 9"):
        store.tag("reviews", "v1", version=9)
    collect(store, ids(store)[1])
    with pytest.raises(ManifestNotFound, match="removed"):
        store.tag("reviews", "v1", version=2)
    assert references.tags(store.root) == []


def test_a_store_open_for_reading_takes_no_tag(store):
    with cachestore.open_store(store.root, "r") as reading, pytest.raises(StoreNotWritable):
        reading.tag("reviews", "v1")


def test_pins_are_kept_until_they_are_dropped(store):
    first, second, _ = ids(store)
    pins = [Pin("b" * 32, "/runs/\udcff", (first, second), NOW), Pin("a" * 32, "/runs/b", (first,), NOW)]
    for pin in pins:
        references.write_pin(store.root, pin)
    assert references.pins(store.root) == pins[::-1]
    references.write_pin(store.root, replace(pins[0], manifests=(first,)))
    references.drop_pin(store.root, "a" * 32)
    references.drop_pin(store.root, "a" * 32)
    assert references.pins(store.root) == [replace(pins[0], manifests=(first,))]
    with pytest.raises(UsageError, match="not the id of a run"):
        references.drop_pin(store.root, "../../store")
    assert pickle.loads(pickle.dumps(pins)) == pins


def test_a_pin_is_missing_its_run_when_none_of_its_id_lies_at_its_path(tmp_path):
    place = tmp_path / "run[1]"
    pin = Pin("a" * 32, str(place), (), NOW)

    def mark(folder: Path, content: object) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "run.json").write_text(json.dumps(content))

    assert pin.missing()
    mark(place, {"id": pin.run})
    assert not pin.missing()
    mark(place, {"id": "b" * 32})  # another took its place
    assert pin.missing()
    mark(tmp_path / ".run[1].new-12345678", {"id": pin.run})  # on its way there
    assert not pin.missing()
    mark(place, ["no object"])
    assert not replace(pin, path=str(tmp_path / ".run[1].new-12345678")).missing()


def test_roots_are_all_versions_tags_and_pins(store):
    first, second, _ = ids(store)
    store.tag("reviews", "v1", version=2)
    references.write_pin(store.root, Pin("a" * 32, "/runs/a", (first, second), NOW))
    assert [(root.kind, root.label, root.manifest, root.version) for root in references.roots(store.root)] == [
        ("name", "reviews@1", first, 1),
        ("name", "reviews@2", second, 2),
        ("name", "reviews@3", first, 3),
        ("tag", "reviews@v1", second, 2),
        ("pin", "/runs/a", first, None),
        ("pin", "/runs/a", second, None),
    ]
    assert all(root.created for root in references.roots(store.root))


def test_the_newest_version_that_is_a_manifest_refers_to_it(store):
    first, second, _ = ids(store)
    cachestore.build(store, {"text": ["a", "b"]}, {"text": CountingEncoder()}, name="again")
    assert references.reference_to(store.root, first) == "again@1"
    assert references.reference_to(store.root, first, "reviews") == "reviews@3"
    assert references.reference_to(store.root, second) == "reviews@2"
    assert references.reference_to(store.root, "0" * 64) == "0" * 64


def small_files(store: Store) -> list[Path]:
    first, second, _ = ids(store)
    store.tag("reviews", "v1")
    references.write_pin(store.root, Pin("a" * 32, "/runs/a", (first,), NOW))
    references.supersede(store.root, {"d" * 64: second})
    return [store.root / "tags/reviews@v1.json", store.root / f"pins/{'a' * 32}.json", store.root / "superseded.json"]


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", "{}", '{"format": 1}', '{"format": "x"}', "\x00\xff"])
def test_a_damaged_file_is_named_with_what_to_do(store, damage):
    for path in small_files(store):
        sound = path.read_bytes()
        path.write_text(damage, encoding="latin-1")
        with pytest.raises(DamageError, match=f"{path.name} cannot be read.*(Delete it|backup)"):
            references.roots(store.root)
        path.write_bytes(sound)
    assert references.roots(store.root)


def test_a_file_of_a_newer_format_is_refused(store):
    for path in small_files(store):
        sound = path.read_bytes()
        path.write_text(json.dumps({**json.loads(sound), "format": 2}))
        with pytest.raises(StoreFormatError, match="Upgrade"):
            references.roots(store.root)
        path.write_bytes(sound)


def test_a_tag_that_was_copied_under_another_name_is_damage(store):
    store.tag("reviews", "v1")
    (store.root / "tags/reviews@v2.json").write_bytes((store.root / "tags/reviews@v1.json").read_bytes())
    with pytest.raises(DamageError, match="of another tag"):
        store.manifest("reviews@v2")
    references.delete_tag(store.root, "reviews", "v2")
    assert len(references.tags(store.root)) == 1


def test_nothing_is_tagged_or_pinned_while_somebody_is_alone_in_the_store(store, monkeypatch):
    monkeypatch.setattr("cachestore.header.LOCK_SECONDS", 0.1)
    with locks.held(store.root, "builders", exclusive=True, timeout=1):
        with pytest.raises(StoreLocked):
            store.tag("reviews", "v1")
        with pytest.raises(StoreLocked):
            references.write_pin(store.root, Pin("a" * 32, "/runs/a", (), NOW))
        references.supersede(store.root, {"d" * 64: ids(store)[0]})
        references.drop_pin(store.root, "a" * 32)


def test_all_manifests_and_chunks_are_listed_whether_or_not_they_are_referred_to(store):
    cachestore.build(store, {"text": ["nameless"]}, {"text": CountingEncoder()})
    found = manifests.all_manifests(store.root)
    assert len(found) == 3
    assert set(ids(store)) < set(found)
    chunks = manifests.all_chunks(store.root)
    assert chunks.keys() == {chunk for identity in found for chunk, _ in store.manifest(identity).chunks}
    assert all(chunks.values())
