"""`cachestore ls`."""

from __future__ import annotations

from pathlib import Path

import cachestore
from tests.commands.conftest import Command

HASHING = ("--column", "text", "--encoder", "{type: hashing, dim: 32}")


def test_ls_lists_names_versions_encoders_rows_and_bytes(command: Command, store: Path, reviews: Path) -> None:
    built = command("build", reviews, *HASHING, "--name", "shop", "--store", store, "--json").json
    with reviews.open("a", encoding="utf-8") as file:
        file.write("one more,5,yes\n")
    appended = command("build", reviews, *HASHING, "--name", "shop", "--store", store, "--json").json
    assert appended["manifest"] != built["manifest"]

    done = command("ls", "--store", store, "--json")
    assert done.code == 0
    assert done.json["store"] == str(store)
    (entry,) = done.json["names"]
    assert entry.keys() == {"name", "versions", "manifest", "rows", "columns", "bytes", "created"}
    assert (entry["name"], entry["versions"], entry["rows"]) == ("shop", 2, 6)
    assert entry["manifest"] == appended["manifest"]
    assert entry["bytes"] > 0
    assert entry["columns"][0]["column"] == "text"
    assert "hashing" in entry["columns"][0]["encoder"]

    text = command("ls", "--store", store).out
    for word in ("shop", "6", "hashing", appended["manifest"][:12]):
        assert word in text


def test_ls_of_an_empty_store_says_what_to_do(command: Command, store: Path) -> None:
    cachestore.open_store(store).close()
    done = command("ls", "--store", store)
    assert (done.code, "cachestore build" in done.out) == (0, True), done.err


def test_ls_makes_no_store(command: Command, store: Path) -> None:
    done = command("ls", "--store", store)
    assert done.code == 3
    assert str(store) in done.err
    assert not store.exists()
