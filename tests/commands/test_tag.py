"""`cachestore tag`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.conftest import Command

HASHING = ("--column", "text", "--encoder", "{type: hashing, dim: 32}")


@pytest.fixture
def shop(command: Command, store: Path, reviews: Path) -> Path:
    """A store with two versions of ``shop``."""
    for _ in range(2):
        assert command("build", reviews, *HASHING, "--name", "shop", "--store", store).code == 0
        with reviews.open("a", encoding="utf-8") as file:
            file.write("one more,5,yes\n")
    return store


def test_a_version_is_tagged_listed_and_its_tag_deleted(command: Command, shop: Path) -> None:
    done = command("tag", "shop@1", "v1", "--store", shop, "--json")
    assert done.code == 0, done.out
    assert (done.json["tag"]["version"], done.json["tag"]["tag"]) == (1, "v1")
    done = command("tag", "shop", "newest", "--store", shop)
    assert (done.code, "shop@newest is version 2" in done.out) == (0, True)

    listed = command("tag", "--store", shop, "--json").json["tags"]
    assert [(tag["tag"], tag["version"]) for tag in listed] == [("newest", 2), ("v1", 1)]
    assert "shop@v1" in command("tag", "--store", shop).out

    assert command("tag", "--delete", "shop@v1", "--store", shop, "--json").json == {"deleted": "shop@v1"}
    assert len(command("tag", "--store", shop, "--json").json["tags"]) == 1
    assert command("tag", "--delete", "shop@v1", "--store", shop).code == 3


def test_a_tag_of_another_version_says_how_to_delete_it(command: Command, shop: Path) -> None:
    command("tag", "shop@1", "v1", "--store", shop)
    done = command("tag", "shop@2", "v1", "--store", shop)
    assert (done.code, "cachestore tag --delete shop@v1" in done.err) == (2, True)
    assert command("tag", "shop@1", "v1", "--store", shop).code == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["shop"], 2),
        (["shop", "7"], 2),
        (["shop@v1", "v2"], 2),
        (["shop@9", "v1"], 3),
        (["shp", "v1"], 3),
        (["shop", "v1", "--delete", "shop@v1"], 2),
        (["--delete", "shop"], 2),
        (["--delete", "shop@none"], 3),
    ],
)
def test_what_cannot_be_tagged_is_refused(command: Command, shop: Path, arguments: list[str], code: int) -> None:
    done = command("tag", *arguments, "--store", shop)
    assert (done.code, done.err.count("\n")) == (code, 1), done.err
    assert "holds no tags" in command("tag", "--store", shop).out


def test_tag_makes_no_store(command: Command, store: Path) -> None:
    for arguments in ([], ["shop", "v1"], ["--delete", "shop@v1"]):
        assert command("tag", *arguments, "--store", store).code == 3
    assert not store.exists()
