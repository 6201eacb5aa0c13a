"""`cachestore log`."""

from __future__ import annotations

from pathlib import Path

import pytest

import cachestore
from cachestore import references
from cachestore.manifest import manifest_path
from cachestore.references import Pin
from tests.commands.conftest import Command

HASHING = ("--column", "text", "--encoder", "{type: hashing, dim: 32}")


@pytest.fixture
def versions(command: Command, store: Path, reviews: Path) -> list[str]:
    """The manifests of two versions of ``shop``."""
    found = []
    for _ in range(2):
        done = command("build", reviews, *HASHING, "--name", "shop", "--store", store, "--json")
        found.append(done.json["manifest"])
        with reviews.open("a", encoding="utf-8") as file:
            file.write("one more,5,yes\n")
    return found


def test_log_tells_of_every_version_what_it_is_and_who_uses_it(
    command: Command, store: Path, reviews: Path, versions: list[str]
) -> None:
    with cachestore.open_store(store) as opened:
        opened.tag("shop", "v1", version=1)
        references.write_pin(store, Pin("a" * 32, "/runs/a", (versions[1],), "2026-01-01"))
    done = command("log", "shop", "--store", store, "--json")
    assert done.code == 0, done.err
    second, first = done.json["versions"]
    assert first == {
        "version": 1,
        "created": first["created"],
        "manifest": versions[0],
        "state": "there",
        "rows": 5,
        "encoded": 3,
        "hits": 0,
        "source": str(reviews),
        "parent": None,
        "tags": ["v1"],
        "runs": [],
    }
    assert (second["version"], second["parent"], second["runs"]) == (2, versions[0], ["/runs/a"])
    assert (second["rows"], second["encoded"], second["hits"], second["tags"]) == (6, 1, 4, [])

    lines = command("log", "shop", "--store", store).out.splitlines()
    assert [line.split()[0] for line in lines] == ["version", "2", "run:", "1"]
    for word in ("v1", versions[0][:12], str(reviews)):
        assert word in lines[-1]


def test_a_version_that_gc_removed_is_collected_and_one_with_rows_forgotten_says_so(
    command: Command, store: Path, versions: list[str]
) -> None:
    manifest_path(store, versions[0]).unlink()
    done = command("log", "shop", "--store", store, "--json")
    assert done.code == 0
    assert [entry["state"] for entry in done.json["versions"]] == ["there", "collected"]
    assert done.json["versions"][1]["rows"] == 5
    assert f"{versions[0][:12]} (collected)" in command("log", "shop", "--store", store).out
    assert command("ls", "--store", store).code == 0

    with cachestore.open_store(store):
        references.supersede(store, {versions[0]: versions[1]})
    done = command("log", "shop", "--store", store, "--json")
    assert [entry["state"] for entry in done.json["versions"]] == ["there", "forgotten from"]
    assert [entry["manifest"] for entry in done.json["versions"]] == [versions[1]] * 2


def test_a_newest_version_without_its_manifest_is_lost_and_that_is_damage(
    command: Command, store: Path, versions: list[str]
) -> None:
    manifest_path(store, versions[1]).unlink()
    done = command("log", "shop", "--store", store, "--json")
    assert (done.code, done.json["versions"][0]["state"]) == (4, "lost")


def test_log_of_no_name_suggests_one(command: Command, store: Path, versions: list[str]) -> None:
    done = command("log", "shops", "--store", store)
    assert (done.code, "did you mean 'shop'" in done.err) == (3, True)
    assert command("log", "shop@1", "--store", store).code == 2


def test_a_tag_of_a_log_that_was_lost_is_not_shown_at_another_version(
    command: Command, store: Path, reviews: Path
) -> None:
    def build() -> str:
        done = command("build", reviews, *HASHING, "--name", "shop", "--store", store, "--json")
        identity: str = done.json["manifest"]
        return identity

    old = build()
    assert command("tag", "shop", "kept", "--store", store).code == 0
    (store / "names" / "shop.jsonl").unlink()
    gone = command("log", "shop", "--store", store)
    assert (gone.code, "shop@kept" in gone.err) == (3, True), gone.err
    with reviews.open("a", encoding="utf-8") as file:
        file.write("one more,5,yes\n")
    build()

    done = command("log", "shop", "--store", store, "--json").json
    assert [entry["tags"] for entry in done["versions"]] == [[]]
    assert done["other_tags"] == [{"tag": "kept", "version": 1, "manifest": old}]
    assert f"shop@kept is manifest {old[:12]}" in command("log", "shop", "--store", store).out
